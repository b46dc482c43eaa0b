"""What lies below a directory, as rows: from headers, manifests and logs alone, without torch."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from segpt.artifact.container import load
from segpt.artifact.reader import open_artifact
from segpt.config.base import ADDED, PlainSpec, spec
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

from . import newest

PART = "part of validation"  # what training and quantizing measure on, in chunks

# What a header says may be anyone's: whatever is not as segpt writes it makes a damaged row.
_ODD = (SegptError, OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError)


@spec
class InventoryRow(PlainSpec):
    """What lies at a path.

    ``bytes`` is what it takes on the disk and ``state`` finished, interrupted, running or damaged,
    of which ``error`` says why. Text and recipe are what it was made from, by name and by
    fingerprint; ``bpb`` is measured on what ``bpb_of`` says. None is what is not known.
    """

    kind: str
    path: str
    bytes: int
    state: str
    text: str | None = None
    text_digest: str | None = None
    recipe: str | None = None
    recipe_digest: str | None = None
    bpb: float | None = None
    bpb_of: str | None = None
    error: str = dataclasses.field(default="", metadata=ADDED)


def rows(below: Path) -> list[InventoryRow]:
    """A row for each text, run, checkpoint, quantized model and artifact below a directory."""
    makers: dict[str, Callable[[InventoryRow, Path], InventoryRow]] = {
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
                row = make(row, place)
            except _ODD as error:
                reason = " ".join(str(error).split())
                row = dataclasses.replace(row, state="damaged", error=reason)
            text, recipe = ("text", str(row.text_digest)), ("recipe", str(row.recipe_digest))
            if row.text is not None:
                names[text] = row.text
            if row.recipe is not None:
                names[recipe] = row.recipe
            table.append(dataclasses.replace(row, text=names.get(text), recipe=names.get(recipe)))
    return table


def _places(kind: str, below: Path) -> Iterator[Path]:
    match kind:
        case "text":
            yield from newest.texts_below(below)
        case "checkpoint":
            for run in newest.on_disk("run", below):
                yield from run_directory.checkpoints(run)
            others = set(newest.on_disk("run", below))
            yield from (p for p in newest.on_disk("checkpoint", below) if p not in others)
        case "run":
            yield from newest.on_disk("run", below)
            yield from newest.on_disk("begun", below)
        case _:
            yield from newest.on_disk(kind, below)


def _row(kind: str, place: Path) -> InventoryRow:
    state = "running" if is_locked(place) else "finished"
    return InventoryRow(kind=kind, path=str(place), bytes=_size(place), state=state)


def _size(place: Path) -> int:
    """What a place takes on the disk."""
    if place.is_file():
        return place.stat().st_size
    return sum(p.stat().st_size for p in place.rglob("*") if p.is_file())


def _text(row: InventoryRow, place: Path) -> InventoryRow:
    train, _ = read_manifest(place / "train")
    read_manifest(place / "validation")
    return dataclasses.replace(row, text=train.text, text_digest=train.digest[:16])


def _run(row: InventoryRow, place: Path) -> InventoryRow:
    saved = run_directory.checkpoints(place)
    state = "interrupted"
    if saved:
        row = _checkpoint(row, saved[-1])
        state = row.state
    return dataclasses.replace(row, state="running" if is_locked(place) else state)


def _checkpoint(row: InventoryRow, place: Path) -> InventoryRow:
    header = checkpoint_io.read_checkpoint_header(place)
    about, recipe = header.about, header.about.recipe or {}
    ended = bool(about.finished) or about.average is not None
    ended = ended or _reached(header.step, recipe, about.seconds or 0.0)
    in_run = place.name == run_directory.checkpoint_name(header.step)
    if in_run and not ended and (last := run_directory.checkpoints(place.parent)[-1]) != place:
        with contextlib.suppress(*_ODD):  # which is said in the row of the last one
            ended = _checkpoint(row, last).state == "finished"  # an earlier one of an ended run
    bpb = _validated(place.parent, header.step) if in_run else None
    return dataclasses.replace(
        _made_from(row, header.origin),
        text=None if about.text is None else about.text.training.name,
        recipe=recipe.get("name"),
        bpb=bpb,
        bpb_of=None if bpb is None else PART,
        state="finished" if ended else "interrupted",
    )


def _made_from(row: InventoryRow, origin: Mapping[str, str]) -> InventoryRow:
    """The row with the text and the recipe that a model was made from, by their fingerprints."""
    return dataclasses.replace(
        row, text_digest=origin.get("tokens"), recipe_digest=origin.get("recipe")
    )


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


def _partial(row: InventoryRow, place: Path) -> InventoryRow:
    value_directory.read_header(place, "partial")
    return dataclasses.replace(row, state="interrupted")


def _quantized(row: InventoryRow, place: Path) -> InventoryRow:
    header = quantized_io.read_quantized_header(place)
    row, report = _made_from(row, header.origin), header.report
    if report is None:
        return row
    text, quality = report.text, report.quality
    return dataclasses.replace(
        row,
        text=None if text is None else text.training.name,
        recipe=report.recipe,
        bpb=None if quality is None else quality.bpb_after,
        bpb_of=None if quality is None else PART,
    )


def _artifact(row: InventoryRow, place: Path) -> InventoryRow:
    artifact = load(place)
    row = _made_from(row, open_artifact(artifact).header.origin)
    for folder in (place.parent, place.with_suffix("")):  # beside it, or in the run it came from
        for name in ("score.json", "score-ttt.json"):
            if (folder / name).is_file():
                score = json_files.read_json(folder / name, "the score")
                if score["origin"].get("artifact") == artifact.digest:
                    bpb, text = float(score["bpb"]), str(score["text"])
                    return dataclasses.replace(row, bpb=bpb, bpb_of=text)
    return row
