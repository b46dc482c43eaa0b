"""Where the newest output of each stage is, so that every command works without arguments."""

import json
import os
from pathlib import Path

from segpt.atomic import write_file
from segpt.errors import SegptError

RUNS = Path("runs")
_POINTER = RUNS / "latest.json"
_MADE_BY = {
    "core": "segpt data fetch core",
    "data": "segpt data prepare",
    "checkpoint": "segpt train",
    "quantized": "segpt quantize",
    "artifact": "segpt pack",
}


def remember(kind: str, path: Path) -> None:
    """Make ``path`` the newest ``kind``."""
    found = _read() | {kind: str(path)}
    write_file(_POINTER, json.dumps(found, indent=2).encode() + b"\n")


def latest(kind: str) -> Path | None:
    """The newest ``kind`` that still exists."""
    path = _read().get(kind)
    return Path(path) if path and os.path.exists(path) else None  # noqa: PTH110 - never raises


def need(kind: str, given: Path | None) -> Path:
    """What the user named, or the newest ``kind``.

    Raises:
        SegptError: if there is neither.
    """
    path = given or latest(kind)
    if path is None:
        raise SegptError(f"no {kind} given and none made here yet; run `{_MADE_BY[kind]}` first")
    return path


def fresh(path: Path) -> Path:
    """``path``, or the first of path-2, path-3, ... that does not exist."""
    names = [path, *(path.with_name(f"{path.name}-{i}") for i in range(2, 10_000))]
    return next(p for p in names if not p.exists())


def _read() -> dict[str, str]:
    try:
        found = json.loads(_POINTER.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {kind: path for kind, path in found.items() if isinstance(path, str)}
