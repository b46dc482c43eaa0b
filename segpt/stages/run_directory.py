"""The directory of a run: its checkpoints, its metrics, and which checkpoint a path means."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segpt.atomic import remove_directory, standing, sweep
from segpt.convert import gguf_file, hugging_face
from segpt.errors import CheckpointError

from .value_directory import STEP, WORDS, has_header, holds, is_whole, raw_header

METRICS = "metrics.jsonl"  # in the directory of a run


def checkpoint_name(step: int) -> str:
    """The directory of a step; names sort as steps do."""
    return f"step-{step:08d}"


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, without those that were removed by half."""
    return sorted(p for p in Path(run).glob("step-*") if is_whole(p))


def clean_run(run: Path) -> None:
    """Remove what a kill has left in a run: temporaries, and checkpoints removed by half."""
    sweep(run, STEP)
    whole = checkpoints(run)
    for place in Path(run).glob("step-*"):
        older = whole and place.name < whole[-1].name
        if place not in whole and holds(place, "checkpoint") and (older or not has_header(place)):
            remove_directory(place)


def newest_checkpoint(path: Path) -> Path:
    """A checkpoint directory itself, or the last one of a run.

    Raises:
        CheckpointError: if the path holds neither.
    """
    match kind_of(path):
        case "checkpoint":
            return Path(path)
        case "run":
            return checkpoints(path)[-1]
        case other:
            raise CheckpointError(no_checkpoint(path, other))


def no_checkpoint(path: Path, kind: str) -> str:
    """What to say of a path of another kind where a checkpoint or run is wanted."""
    if kind == "foreign":
        form = "hf" if path.is_dir() else "gguf"
        line = shlex.join(["segpt", "import", form, str(path)])
        return f"{path} is a model of others and not a checkpoint; make one with: {line}"
    words = {"file": "a file", "partial": "an unfinished quantization", **WORDS}
    return (
        f"{path} is {words.get(kind, 'something else')} and not a checkpoint; "
        "name a run or one of its checkpoints"
    )


def kind_of(path: Path) -> str:
    """What a path holds: ``checkpoint``, ``quantized``, ``run``, ``foreign`` or ``file``.

    A model of others is ``foreign``.

    Raises:
        CheckpointError: if there is nothing, or a directory of another kind.
    """
    path = standing(Path(path))
    if path.is_file():
        return "foreign" if gguf_file.is_gguf(path) else "file"
    if (path / "header.json").is_file():
        return str(raw_header(path).get("kind"))
    if checkpoints(path):
        return "run"
    if hugging_face.is_model_directory(path):
        return "foreign"
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    raise CheckpointError(f"{path} holds no checkpoint and no quantized model")


def logged(run: Path) -> Iterator[dict[str, Any]]:
    """What a run logged, step by step; what cannot be read, as a kill leaves it, is left out."""
    try:
        lines = (run / METRICS).read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            yield entry
