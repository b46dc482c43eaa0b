"""What was made here before, so that every command works without arguments.

``runs/latest.json`` names the newest output of each stage and ``runs/texts.json`` the places of
prepared texts. Both are hints: what is on the disk counts, and a hint that is lost or damaged
is made up for by looking there.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segpt.atomic import write_file
from segpt.errors import SegptError
from segpt.locks import locked

RUNS = Path("runs")
_POINTER = RUNS / "latest.json"
_TEXTS = RUNS / "texts.json"
_MADE_BY = {
    "core": "segpt data fetch core",
    "data": "segpt data prepare",
    "run": "segpt train",
    "checkpoint": "segpt train",
    "quantized": "segpt quantize",
    "artifact": "segpt pack",
}
_WAIT = 20.0  # seconds for another command that writes the same hint
_MOST_TEXTS = 1000
_SPLITS = ("train", "validation")  # of a prepared text


def remember(kind: str, path: Path) -> None:
    """Make ``path`` the newest ``kind``; it exists by now.

    Raises:
        SegptError: if the disk refuses. Nothing that was made is lost by that.
    """
    with locked(_POINTER, wait=_WAIT):
        write_file(_POINTER, _json(_pointer() | {kind: str(path)}))
    if kind == "data":
        note_text(path)


def note_text(path: Path) -> None:
    """Remember where a text was prepared, without making it the newest.

    Raises:
        SegptError: if the disk refuses.
    """
    place = str(from_here(path))
    with locked(_TEXTS, wait=_WAIT):
        others = [known for known in _noted() if known != place]
        write_file(_TEXTS, _json([*others[-_MOST_TEXTS:], place]))


def latest(kind: str) -> Path | None:
    """The newest ``kind``: that which was remembered last if it is there, else the last written."""
    path = remembered(kind)
    if path is not None and os.path.exists(path):  # noqa: PTH110 - never raises
        return path
    return max(on_disk(kind), key=_written, default=None)


def remembered(kind: str) -> Path | None:
    """The ``kind`` that was made last, whether or not it is still there."""
    path = _pointer().get(kind)
    return Path(path) if path else None


def need(kind: str, named: Path | None) -> Path:
    """What the user named, or the newest ``kind``.

    Raises:
        SegptError: if there is neither.
    """
    path = named or latest(kind)
    if path is None:
        raise SegptError(f"no {kind} given and none made here yet; run `{_MADE_BY[kind]}` first")
    return path


def existing(path: Path, advice: str = "") -> Path:
    """``path``, if something lies there: asked before torch is loaded, which takes seconds.

    Raises:
        SegptError: if nothing does, with what to do about it.
    """
    if not path.exists():
        raise SegptError(f"{path} does not exist{advice}")
    return path


def texts(*near: Path) -> list[Path]:
    """Where prepared texts are known to lie, those that were remembered last first.

    Beside what is remembered these are the directories below ``runs/data``, and below ``data``
    beside or above the paths in ``near``.
    """
    places = [Path(place) for place in reversed(_noted())]
    shelves = [RUNS / "data", *(parent / "data" for path in near for parent in _above(path))]
    places += [child for shelf in shelves for child in _children(shelf)]
    return list(dict.fromkeys(place for place in places if is_text(place)))


def texts_below(below: Path) -> list[Path]:
    """The prepared texts that lie below a directory."""
    outer = _children(below)
    places = [below, *outer, *(inner for folder in outer for inner in _children(folder))]
    return [place for place in places if is_text(place)]


def is_text(place: Path) -> bool:
    """Whether a directory looks like a prepared text."""
    files = (place / split / "manifest.json" for split in _SPLITS)
    return all(os.path.isfile(file) for file in files)  # noqa: PTH113 - never raises


def on_disk(kind: str, below: Path = RUNS) -> Iterator[Path]:
    """What ``below`` holds of a kind.

    Beside the kinds of ``need`` there are ``partial``, a quantization that was interrupted, and
    ``begun``, a run that has no checkpoint yet.
    """
    folders = [below, *_children(below)]
    folders += [inner for outer in folders[1:] for inner in _children(outer)]
    folders = [folder for folder in folders if not folder.name.startswith("step-")]
    for folder in folders:
        if kind == "begun":
            if (folder / "metrics.jsonl").is_file() and "run" not in _kinds(folder):
                yield folder
        elif kind == "partial":
            yield from (p for p in folder.glob("*.partial") if (p / "header.json").is_file())
        elif kind == "artifact":
            yield from sorted(p for p in folder.glob("*.segpt") if p.is_file())
        elif kind in _kinds(folder):
            yield folder


def partial_of(place: Path) -> Path:
    """Where a quantization lies that is under way to ``place``."""
    return place.with_name(f"{place.name}.partial")


def _kinds(folder: Path) -> tuple[str, ...]:
    """What a directory is, in the words of ``need``."""
    if any(folder.glob("step-*/header.json")):
        return ("run", "checkpoint")
    header = _read(folder / "header.json")
    return (str(header.get("kind")),) if isinstance(header, dict) else ()


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []


def _above(path: Path) -> list[Path]:
    return list(path.absolute().parents)[:3]


def _written(path: Path) -> float:
    headers = list(path.glob("step-*/header.json")) or [path / "header.json", path]
    times = [0.0]
    for file in headers:
        with contextlib.suppress(OSError):
            times.append(file.stat().st_mtime)
    return max(times)


def from_here(path: Path) -> Path:
    """A path that holds from this directory on, so that all of it can be moved."""
    whole, working = path.absolute(), Path.cwd()
    return whole.relative_to(working) if whole.is_relative_to(working) else whole


def _pointer() -> dict[str, str]:
    table = _read(_POINTER)
    entries = table.items() if isinstance(table, dict) else ()
    return {kind: path for kind, path in entries if _is_path(path)}


def _noted() -> list[str]:
    places = _read(_TEXTS)
    return [place for place in places if _is_path(place)] if isinstance(places, list) else []


def _is_path(value: object) -> bool:
    """Whether a value names a place on this machine: damaged hints hold anything."""
    try:
        return isinstance(value, str) and bool(value) and b"\0" not in os.fsencode(value)
    except ValueError:  # half a surrogate pair
        return False


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
