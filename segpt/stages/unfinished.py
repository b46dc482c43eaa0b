"""What an interrupted call leaves to go on from: a quantization or a score that is under way."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segpt.atomic import standing
from segpt.errors import CheckpointError
from segpt.values import Arrays, QuantizeProgress

from .quantized_io import check_coded, coded_arrays, coded_of
from .value_directory import (
    pack_arrays,
    read_header,
    read_value,
    reading,
    unpack_arrays,
    write_value,
)


def save_partial(path: Path, partial: QuantizeProgress, origin: Mapping[str, str]) -> None:
    """Write a quantization that is under way, over what was written there before.

    ``origin`` names what is being quantized, and how.
    """
    arrays, coding = coded_arrays(partial.coded)
    numbers = {"scale": partial.scale.hex(), "drift": partial.drift.hex()}
    header = {
        **coding,
        "done": partial.done,
        "numbers": numbers,
        "multipliers": dict(partial.multipliers),
        "planned": list(partial.planned),
        "dampings": dict(partial.dampings),
        "origin": dict(origin),
    }
    floats = {f"float|{name}": array for name, array in partial.weights.items()}
    write_value(path, "partial", header, {"weights.safetensors": pack_arrays(arrays | floats)})


def read_partial(path: Path, origin: Mapping[str, str]) -> QuantizeProgress:
    """Read a quantization that was interrupted.

    Raises:
        CheckpointError: if there is none, it is damaged, or it has another ``origin``.
    """
    begun = "on another checkpoint or with other settings"
    header, files = _read_begun(path, "partial", origin, begun)
    arrays = unpack_arrays(path, "weights.safetensors", files)
    floats = {k.removeprefix("float|"): a for k, a in arrays.items() if k.startswith("float|")}
    with reading(path):
        coded = coded_of(header, arrays)
        for name, value in coded.items():
            check_coded(name, value)
        return QuantizeProgress(
            done=int(header["done"]),
            scale=float.fromhex(header["numbers"]["scale"]),
            weights=floats,
            coded=coded,
            multipliers={k: float(v) for k, v in header["multipliers"].items()},
            planned=tuple(map(float, header["planned"])),
            drift=float.fromhex(header["numbers"]["drift"]),
            dampings={k: v if v is None else float(v) for k, v in header["dampings"].items()},
        )


def save_scoring(path: Path, arrays: Arrays, origin: Mapping[str, str]) -> None:
    """Write a score that is under way, over what was written there before.

    ``origin`` names what is being scored, and how.
    """
    write_value(
        path, "scoring", {"origin": dict(origin)}, {"state.safetensors": pack_arrays(arrays)}
    )


def read_scoring(path: Path, origin: Mapping[str, str]) -> Arrays:
    """Read a score that was interrupted.

    Raises:
        CheckpointError: if there is none, it is damaged, or it has another ``origin``.
    """
    begun = "on another model or text, or in another way"
    _, files = _read_begun(path, "scoring", origin, begun)
    return unpack_arrays(path, "state.safetensors", files)


def begun(path: Path, kind: str) -> dict[str, Any]:
    """What an interrupted call wrote into its origin, as JSON under ``begun``, to go on alone.

    Raises:
        CheckpointError: if there is none, it is damaged, or says nothing of the kind.
    """
    _check_begun(path)
    header = read_header(path, kind)
    with reading(path):
        table = json.loads(header["origin"]["begun"])
        return {str(name): value for name, value in table.items()}


def _read_begun(
    path: Path, kind: str, origin: Mapping[str, str], otherwise: str
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read what an interrupted call left, if it was about the same ``origin``."""
    _check_begun(path)
    header, files = read_value(path, kind)
    with reading(path):
        before = dict(header["origin"])
    if any(before.get(name) != value for name, value in origin.items()):
        raise CheckpointError(f"{path} was begun {otherwise}; leave out --resume")
    return header, files


def _check_begun(path: Path) -> None:
    if not standing(Path(path)).exists():
        raise CheckpointError(f"there is nothing to resume at {path}; leave out --resume")
