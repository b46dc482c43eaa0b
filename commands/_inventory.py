"""What lies below a directory, as rows: from headers, manifests and logs alone, without torch."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from segpt.artifact.container import load
from segpt.artifact.reader import open_artifact
from segpt.data.manifest import read as read_manifest
from segpt.errors import SegptError
from segpt.locks import is_locked
from segpt.stages import (
    checkpoint_io,
    json_files,
    quantized_io,
    run_directory,
    value_directory,
)

from . import _latest

Row = dict[str, Any]

PART = "part of validation"  # what training and quantizing measure on, in chunks

# What a header says may be anyone's: whatever is not as segpt writes it makes a damaged row.
_ODD = (SegptError, OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError)


def rows(below: Path) -> list[Row]:
    """A row for each text, run, checkpoint, quantized model and artifact below a directory."""
    makers: dict[str, Callable[[Path], Row]] = {
        "text": _text,
        "run": _run,
        "checkpoint": _checkpoint,
        "partial": _partial,
        "quantized": _quantized,
        "artifact": _artifact,
    }
    names: dict[tuple[str, str], str] = {}  # of texts and recipes, by what models call them
    table = []
    for kind, make in makers.items():
        for place in dict.fromkeys(_places(kind, below)):
            row = _row(kind, place)
            try:
                row |= make(place)
            except _ODD as error:
                row |= {"state": "damaged", "error": " ".join(str(error).split())}
            for name in ("text", "recipe"):
                known = (name, str(row[f"{name}_digest"]))
                if row[name] is None:
                    row[name] = names.get(known)
                else:
                    names[known] = row[name]
            table.append(row)
    return table


def _places(kind: str, below: Path) -> Iterator[Path]:
    match kind:
        case "text":
            yield from _latest.texts_below(below)
        case "checkpoint":
            for run in _latest.on_disk("run", below):
                yield from run_directory.checkpoints(run)
            others = set(_latest.on_disk("run", below))
            yield from (p for p in _latest.on_disk("checkpoint", below) if p not in others)
        case "run":
            yield from _latest.on_disk("run", below)
            yield from _latest.on_disk("begun", below)
        case _:
            yield from _latest.on_disk(kind, below)


def _row(kind: str, place: Path) -> Row:
    names = ("text", "text_digest", "recipe", "recipe_digest", "bpb", "bpb_of")
    empty = dict.fromkeys(names)
    state = "running" if is_locked(place) else "finished"
    return {"kind": kind, "path": str(place), "bytes": _size(place), "state": state, **empty}


def _size(place: Path) -> int:
    """What a place takes on the disk."""
    if place.is_file():
        return place.stat().st_size
    return sum(p.stat().st_size for p in place.rglob("*") if p.is_file())


def _text(place: Path) -> Row:
    train, _ = read_manifest(place / "train")
    read_manifest(place / "validation")
    return {"text": train.text, "text_digest": train.digest[:16]}


def _run(place: Path) -> Row:
    saved = run_directory.checkpoints(place)
    running = is_locked(place)
    if not saved:
        return {"state": "running" if running else "interrupted"}
    row = _checkpoint(saved[-1])
    row["state"] = "running" if running else row["state"]
    return row


def _checkpoint(place: Path) -> Row:
    header = value_directory.read_header(place, "checkpoint")
    about = checkpoint_io.about_of(header)
    recipe = about.recipe or {}
    ended = bool(about.finished) or about.average is not None
    ended = ended or _reached(int(header["step"]), recipe, about.seconds or 0.0)
    in_run = place.name == run_directory.checkpoint_name(int(header["step"]))
    if in_run and not ended and (last := run_directory.checkpoints(place.parent)[-1]) != place:
        with contextlib.suppress(*_ODD):  # which is said in the row of the last one
            ended = _checkpoint(last)["state"] == "finished"  # an earlier one of an ended run
    bpb = _validated(place.parent, int(header["step"])) if in_run else None
    return {
        "text": None if about.text is None else about.text.training.name,
        **_origin(header["origin"]),
        "recipe": recipe.get("name"),
        "bpb": bpb,
        "bpb_of": None if bpb is None else PART,
        "state": "finished" if ended else "interrupted",
    }


def _origin(origin: Mapping[str, str]) -> Row:
    """The text and recipe that a model was made from, by their fingerprints."""
    return {"text_digest": origin.get("tokens"), "recipe_digest": origin.get("recipe")}


def _reached(step: int, recipe: Mapping[str, Any], seconds: float) -> bool:
    """Whether a checkpoint is the last one of its run, as its stored recipe says."""
    length = recipe.get("train", {}).get("length", {})
    done = step if length.get("kind") == "steps" else seconds
    return bool(length) and done >= length["count"]


def _validated(run: Path, step: int) -> float | None:
    """The last validation of a run up to a step."""
    bpb = None
    for entry in run_directory.logged(run):
        with contextlib.suppress(KeyError, TypeError, ValueError):
            if entry["step"] <= step and entry.get("validation_bpb") is not None:
                bpb = float(entry["validation_bpb"])
    return bpb


def _partial(place: Path) -> Row:
    value_directory.read_header(place, "partial")
    return {"state": "interrupted"}


def _quantized(place: Path) -> Row:
    header = value_directory.read_header(place, "quantized")
    report = quantized_io.report_of(header)
    if report is None:
        return _origin(header["origin"])
    text, quality = report.text, report.quality
    return {
        "text": None if text is None else text.training.name,
        **_origin(header["origin"]),
        "recipe": report.recipe,
        "bpb": None if quality is None else quality.bpb_after,
        "bpb_of": None if quality is None else PART,
    }


def _artifact(place: Path) -> Row:
    artifact = load(place)
    row: Row = _origin(open_artifact(artifact).header.origin)
    for folder in (place.parent, place.with_suffix("")):  # beside it, or in the run it came from
        for name in ("score.json", "score-ttt.json"):
            if (folder / name).is_file():
                score = json_files.read_json(folder / name, "the score")
                if score["origin"].get("artifact") == artifact.digest:
                    return row | {"bpb": float(score["bpb"]), "bpb_of": str(score["text"])}
    return row
