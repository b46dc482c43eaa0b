"""The short form of a model that people write, expanded into the full form."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from segpt.errors import SpecError

from .base import decode, patch, spec, unknown_key
from .model import ModelSpec
from .route import indices, parse_route


def expand(recipe: Mapping[str, Any], path: str = "$.model") -> ModelSpec:
    """Expand the short form people write into the full form everything else reads.

    ``depth`` copies of ``layer``, patched by each ``override`` in turn, visited in ``route``
    order. ``norm_scale: depth`` gives layer i the scale 1/sqrt(i + 1), and ``norm_scale: visit``
    each visit, by its place in the route. ``skips`` are those of ``mirror`` or ``depth``, or a
    table ``{kind: mirror, form: add, per: scalar}`` that says of what form they are.

    ``windows`` is a table of ``long``, ``short`` and a ``pattern`` such as ``LSSS``, which says
    over and over which window the next layer has (null is none). ``last`` may say it of the last
    one, and ``by: visit`` goes by visits instead of layers.
    """
    full = {f.name for f in dataclasses.fields(ModelSpec)} - {"layers", "visits"}
    if unknown := sorted(map(str, recipe.keys() - _SHORT - full)):
        raise unknown_key(unknown[0], _SHORT | full, path, None)
    layers = _layers(recipe, path)
    visits = _visits(recipe, len(layers), path)
    _scale_visits(layers, visits)
    if recipe.get("windows") is not None:
        _set_windows(decode(Windows, recipe["windows"], f"{path}.windows"), layers, visits)
    table = {name: value for name, value in recipe.items() if name not in _SHORT}
    table.setdefault("embed", ["token"])
    return decode(ModelSpec, table | {"layers": layers, "visits": visits}, path)


_SHORT = {"depth", "layer", "override", "route", "join", "skips", "windows"}


@spec
class Windows:
    """Which layers or visits have the ``long`` window, and which ones the ``short`` one."""

    long: int | None = None
    short: int
    pattern: str = "LS"
    last: Literal["long", "short"] | None = None
    by: Literal["layer", "visit"] = "layer"

    def __post_init__(self) -> None:
        if not self.pattern or set(self.pattern) - set("LS"):
            raise SpecError(f"pattern is a word of L and S such as LSSS, got {self.pattern!r}")
        if self.long is not None and self.short > self.long:
            raise SpecError(
                f"the short window is not wider than the long one; got {self.short} and {self.long}"
            )

    def of(self, count: int) -> list[int | None]:
        """The windows of so many layers or visits, in order."""
        sizes = {"L": self.long, "S": self.short, "long": self.long, "short": self.short}
        cycled = [
            sizes[letter] for letter in itertools.islice(itertools.cycle(self.pattern), count)
        ]
        return cycled if self.last is None else [*cycled[:-1], sizes[self.last]]


def _set_windows(
    windows: Windows, layers: list[dict[str, Any]], visits: list[dict[str, Any]]
) -> None:
    """Give each its window, but none to a layer without attention or with a window of its own."""
    if windows.by == "visit":
        for visit, window in zip(visits, windows.of(len(visits)), strict=True):
            visit["window"] = window
        return
    for i, window in enumerate(windows.of(len(layers))):
        mixer = layers[i].get("mixer")
        if isinstance(mixer, Mapping) and mixer.get("kind", "attention") == "attention":
            layers[i] = layers[i] | {"mixer": {"window": window, **mixer}}


@spec
class Mirror:
    """Skips of a U-Net: the second half of the visits pops what the first half pushed."""

    form: Literal["lerp", "add"] = "lerp"
    per: Literal["channel", "scalar"] = "channel"

    def pairs(self, count: int) -> list[tuple[int, int]]:
        """Which visit of so many receives the output of which."""
        half = count // 2
        return [(half + i, half - 1 - i) for i in range(half)]


@spec
class Depth:
    """Skips into the last three visits: n - 3 + m of n from max(1, n // 4) * (m + 1) before it."""

    form: Literal["lerp", "add"] = "add"
    per: Literal["channel", "scalar"] = "scalar"

    def pairs(self, count: int) -> list[tuple[int, int]]:
        """Which visit of so many receives the output of which.

        Raises:
            SpecError: if there are too few of them.
        """
        if count < 4:
            raise SpecError(f"skips of depth need a route of at least 4 visits, got {count}")
        stride = max(1, count // 4)
        return [(count - 3 + m, count - 3 + m - stride * (m + 1)) for m in range(3)]


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
        place = f"{path}.override[{n}]"
        if not isinstance(override, Mapping) or override.keys() != {"layers", "set"}:
            raise SpecError(f"{place}: expected the keys 'layers' and 'set'")
        if not isinstance(override["set"], Mapping):
            raise SpecError(f"{place}.set: expected a table of changes to a layer")
        with _at(f"{place}.layers"):
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
    join = recipe.get("join", [])
    if not isinstance(join, list):
        raise SpecError(f"{path}.join: expected a list of parts")
    joins: list[list[Any]] = [list(join) for _ in order]
    skips: Mirror | Depth | None = None
    if recipe.get("skips") is not None:
        skips = decode(Mirror | Depth, recipe["skips"], f"{path}.skips")  # type: ignore[arg-type]
    if skips is not None:
        form = {"kind": "skip", "form": skips.form, "per": skips.per}
        with _at(f"{path}.skips"):
            for place, source in skips.pairs(len(order)):
                joins[place].insert(0, form | {"source": source})
    return [
        {"layer": layer, "join": join, "since": since}
        for (layer, since), join in zip(order, joins, strict=True)
    ]


def _scale_visits(layers: list[dict[str, Any]], visits: list[dict[str, Any]]) -> None:
    """Replace the scale ``visit`` of layers by one of each of their visits."""
    for place, visit in enumerate(visits):
        if layers[visit["layer"]].get("norm_scale") == "visit":
            visit["norm_scale"] = (place + 1) ** -0.5
    for i, layer in enumerate(layers):
        if layer.get("norm_scale") == "visit":
            layers[i] = layer | {"norm_scale": 1.0}


@contextlib.contextmanager
def _at(path: str) -> Iterator[None]:
    try:
        yield
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
