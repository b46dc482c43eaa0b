"""A folder whose digests are right but whose contents are wrong is refused, or is sound."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from segpt.config.base import canonical
from segpt.errors import CheckpointError, SegptError
from segpt.model.model import Model
from segpt.stages import checkpoint_io, quantized_io, unfinished
from segpt.stages.open_model import from_checkpoint, from_quantized
from tests.stages.random_models import checkpoint
from tests.stages.test_partial import ORIGIN, partial, quantized

Header = dict[str, Any]
NASTY: tuple[Any, ...] = (None, True, -1, 10**400, "x", "0x1p99999", "../x", [], [1], {"x": 1})
ARRAYS = "weights.safetensors"


def write(kind: str, place: Path) -> None:
    match kind:
        case "checkpoint":
            checkpoint_io.save_checkpoint(place, checkpoint(vocab=40))
        case "quantized":
            quantized_io.save_quantized(place, quantized())
        case _:
            unfinished.save_partial(place, partial(), ORIGIN)


def opened(kind: str, place: Path) -> Model | None:
    match kind:
        case "checkpoint":
            return from_checkpoint(checkpoint_io.read_checkpoint(place))
        case "quantized":
            return from_quantized(quantized_io.read_quantized(place))
        case _:
            unfinished.read_partial(place, ORIGIN)
            return None


def seal(place: Path, header: Header) -> None:
    header.pop("digest", None)
    header["digest"] = hashlib.sha256(canonical(header)).hexdigest()
    (place / "header.json").write_text(json.dumps(header))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value can be changed, from the outside in; of a list only the first entry."""
    match value:
        case dict():
            inner = list(value.items())
        case list():
            inner = list(enumerate(value))[:1]
        case _:
            inner = []
    for key, each in inner:
        yield (*path, key)
        yield from places(each, (*path, key))


def replaced(header: Header, path: tuple[Any, ...], value: Any) -> Header:
    changed = json.loads(json.dumps(header))
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["checkpoint", "quantized", "partial"])
def test_a_header_with_anything_in_any_place_is_refused_or_opens(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "p"
    write(kind, place)
    header = json.loads((place / "header.json").read_text())
    header.pop("digest")
    refused: list[SegptError] = []
    for path in places(header):
        if path[0] == "spec" and len(path) > 1:
            continue  # specs have tests of their own
        for value in NASTY:
            seal(place, replaced(header, path, value))
            try:
                opened(kind, place)
            except SegptError as error:
                refused.append(error)
    assert len(refused) > 90
    assert {error.exit_code for error in refused} == {2}
    assert not any("\n" in str(error) for error in refused)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "without dimensions": lambda a: np.zeros((), a.dtype),
    "one dimension": lambda a: a.ravel(),
    "empty": lambda a: np.zeros((0, *a.shape[1:]), a.dtype),
    "no columns": lambda a: np.zeros((*a.shape[:-1], 0), a.dtype),
    "one more dimension": lambda a: a[..., None],
    "one row less": lambda a: a[:-1],
    "float64": lambda a: a.astype(np.float64),
    "int64": lambda a: a.astype(np.int64),
    "least": lambda a: np.full_like(a, np.iinfo(a.dtype).min if a.dtype.kind == "i" else -np.inf),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_array_of_another_kind_or_shape_is_refused(
    change: Callable[[Any], Any], tmp_path: Path
) -> None:
    place = tmp_path / "p"
    write("quantized", place)
    header = json.loads((place / "header.json").read_text())
    arrays = load((place / ARRAYS).read_bytes())
    for name, array in arrays.items():
        changed = change(array)
        if change is CHANGES["one dimension"] and array.ndim == 1:
            continue
        data = save(arrays | {name: np.ascontiguousarray(changed)})
        (place / ARRAYS).write_bytes(data)
        header["files"][ARRAYS] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        seal(place, header)
        with pytest.raises(CheckpointError, match="holds no quantized model"):
            opened("quantized", place)
