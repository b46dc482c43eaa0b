"""The short form of a model that people write, expanded into the full form."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from segpt.errors import SpecError

from .base import decode, nearest, patch
from .model import ModelSpec
from .route import indices, parse_route


def expand(recipe: Mapping[str, Any], path: str = "$.model") -> ModelSpec:
    """Expand the short form people write into the full form everything else reads.

    ``depth`` copies of ``layer``, patched by each ``override`` in turn, visited in ``route``
    order. ``norm_scale: depth`` gives layer i the scale 1/sqrt(i + 1). ``skips: mirror`` treats
    the first half of the visits as a stack that the second half pops, as in a U-Net.
    """
    full = {f.name for f in dataclasses.fields(ModelSpec)} - {"layers", "visits"}
    if unknown := sorted(map(str, recipe.keys() - _SHORT - full)):
        hint = nearest(unknown[0], _SHORT | full)
        raise SpecError(f"{path}: unknown key {unknown[0]!r}; {hint}")
    layers = _layers(recipe, path)
    visits = _visits(recipe, len(layers), path)
    table = {name: value for name, value in recipe.items() if name not in _SHORT}
    table.setdefault("embed", ["token"])
    return decode(ModelSpec, table | {"layers": layers, "visits": visits}, path)


_SHORT = {"depth", "layer", "override", "route", "join", "skips"}


def _layers(recipe: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    for name in ("depth", "layer"):
        if name not in recipe:
            raise SpecError(f"{path}: missing key {name!r}")
    depth, base, overrides = recipe["depth"], recipe["layer"], recipe.get("override", [])
    if type(depth) is not int or not 1 <= depth <= 1024:
        raise SpecError(f"{path}.depth: expected a number of layers from 1 to 1024")
    if not isinstance(base, Mapping):
        raise SpecError(f"{path}.layer: expected a table of mixer and feed")
    if not isinstance(overrides, list):
        raise SpecError(f"{path}.override: expected a list of tables")
    layers = [dict(base)] * depth
    for n, override in enumerate(overrides):
        here = f"{path}.override[{n}]"
        if not isinstance(override, Mapping) or override.keys() != {"layers", "set"}:
            raise SpecError(f"{here}: expected the keys 'layers' and 'set'")
        if not isinstance(override["set"], Mapping):
            raise SpecError(f"{here}.set: expected a table of changes to a layer")
        with _at(f"{here}.layers"):
            chosen = indices(override["layers"], depth)
        for i in chosen:
            layers[i] = patch(layers[i], override["set"])
    for i, layer in enumerate(layers):
        if layer.get("norm_scale") == "depth":
            layers[i] = layer | {"norm_scale": (i + 1) ** -0.5}
    return layers


def _visits(recipe: Mapping[str, Any], depth: int, path: str) -> list[dict[str, Any]]:
    with _at(f"{path}.route"):
        order = parse_route(str(recipe.get("route", ":")), depth)
    join, skips = recipe.get("join", []), recipe.get("skips")
    if not isinstance(join, list):
        raise SpecError(f"{path}.join: expected a list of parts")
    if skips not in (None, "mirror"):
        raise SpecError(f"{path}.skips: expected 'mirror' or nothing")
    joins: list[list[Any]] = [list(join) for _ in order]
    if skips == "mirror":
        half = len(order) // 2
        for i in range(half):
            joins[half + i].insert(0, {"kind": "skip", "source": half - 1 - i})
    return [
        {"layer": layer, "join": join, "since": since}
        for (layer, since), join in zip(order, joins, strict=True)
    ]


@contextlib.contextmanager
def _at(path: str) -> Iterator[None]:
    try:
        yield
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
