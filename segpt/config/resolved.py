"""A recipe with every value in it, where each came from, and as YAML that is a recipe again."""

import dataclasses
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from segpt.errors import SpecError

from .base import bare_word, decode, kind
from .expand import Depth, Mirror, Windows
from .layer import Layer
from .model import ModelSpec
from .recipe import Recipe, Setting, read_setting, read_whole
from .stages import FIRST, Choice

Origin = Literal["default", "recipe", "--set"]
Steps = tuple[str | int, ...]

_BY_PLACE = ("depth", "visit")  # words for a norm_scale, which expand() turns into numbers


class Resolved(NamedTuple):
    """A recipe, its values as one plain table with the model in short form, and their origins.

    ``origins`` names each value by its path, as ``--set`` does.
    """

    recipe: Recipe
    table: dict[str, Any]
    origins: dict[str, Origin]


def resolve(source: str | Path, settings: Sequence[str] = (), choice: Choice = FIRST) -> Resolved:
    """Read a recipe, of several in a file the one that is meant, and fill in its defaults.

    Raises:
        SpecError: as :func:`segpt.config.recipe.read_recipe`.
    """
    reading = read_whole(source, settings, choice)
    table = _plain(reading.recipe)
    table["model"] = _short(reading.changed["model"], reading.recipe.model)
    layers = [Setting((), reading.written), *map(read_setting, settings)]
    return Resolved(
        reading.recipe,
        table,
        {path_of(steps): _origin(steps, table, layers) for steps in _leaves(table)},
    )


def yaml_lines(resolved: Resolved) -> Iterator[str]:
    """YAML with the origin of each value behind it; it reads as the same recipe again."""
    yield from _mapping(resolved.table, (), resolved.origins, 0)


def path_of(steps: Steps) -> str:
    """Steps into a table as ``--set`` writes them, such as ``model.embed[0].kind``."""
    words = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return words.removeprefix(".")


def _plain(value: Any, hint: Any = None) -> Any:
    """Plain values, those included that :func:`segpt.config.base.encode` leaves out as defaults.

    A table names its kind only where the ``hint`` leaves a choice.
    """
    if word := bare_word(value):
        return word
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = typing.get_type_hints(type(value))
        fields = {
            f.name: _plain(
                getattr(value, f.name), None if _goes_untagged(value, f) else hints[f.name]
            )
            for f in dataclasses.fields(value)
        }
        return {"kind": kind(value)} | fields if _leaves_a_choice(hint) else fields
    if isinstance(value, tuple):
        return [_plain(item, typing.get_args(hint)[0]) for item in value]
    return value


def _goes_untagged(value: Any, field: "dataclasses.Field[Any]") -> bool:
    """Whether what a field holds is of the kind that is read where none is written."""
    untagged = bool(field.metadata.get("untagged"))
    return untagged and kind(getattr(value, field.name)) == kind(field.default)


def _leaves_a_choice(hint: Any) -> bool:
    """Whether values of a type are of several kinds, so that a table has to say of which."""
    members = [a for a in typing.get_args(hint) if a is not type(None)]
    return len(members) > 1


def _short(written: Mapping[str, Any], model: ModelSpec) -> dict[str, Any]:
    """The short form of a model with defaults filled in."""
    full = {k: v for k, v in _plain(model).items() if k not in ("layers", "visits")}
    skips = _filled(Mirror | Depth, written.get("skips"))
    return full | {
        "depth": written["depth"],
        "layer": _layer(written["layer"]),
        "override": written.get("override", []),
        "route": str(written.get("route", ":")),
        "join": written.get("join", []),
        "skips": skips,
        "windows": _filled(Windows, written.get("windows")),
    }


def _layer(written: Mapping[str, Any]) -> dict[str, Any]:
    """The layer that overrides change, filled in as far as it makes sense without them."""
    scale = written.get("norm_scale", 1.0)
    rest = {name: value for name, value in written.items() if name != "norm_scale"}
    try:
        filled = _plain(decode(Layer, rest))
    except SpecError:  # whole only under its overrides
        return dict(written)
    if scale in _BY_PLACE:
        filled["norm_scale"] = scale
    else:
        filled["norm_scale"] = _plain(decode(Layer, rest | {"norm_scale": scale})).get("norm_scale")
    mixer = filled["mixer"]
    if isinstance(mixer, dict) and mixer.get("window", 0) is None:
        del mixer["window"]  # so that `windows` may set it
    return dict(filled)


def _filled(cls: Any, written: Any) -> Any:
    return None if written is None else _plain(decode(cls, written), cls)


def _leaves(value: Any, steps: Steps = ()) -> Iterator[Steps]:
    """The paths of all values that are no tables or lists, or empty ones."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _leaves(item, (*steps, name))
    elif isinstance(value, list) and value:
        for i, item in enumerate(value):
            yield from _leaves(item, (*steps, i))
    else:
        yield steps


def _origin(steps: Steps, table: Any, layers: Sequence[Setting]) -> Origin:
    """Who wrote a value: the last of those who wrote at its path or above it."""
    for i, layer in reversed(list(enumerate(layers))):
        above = _counted(layer.steps, table)
        if above == steps[: len(above)]:
            if _writes(layer.value, steps[len(above) :]):
                return "--set" if i else "recipe"
            if layer.steps and not isinstance(layer.value, Mapping):
                return "default"
    return "default"


def _counted(steps: Steps, table: Any) -> Steps:
    """Steps whose negative indices are counted from the start of their lists."""
    counted: list[str | int] = []
    node = table
    for step in steps:
        if isinstance(step, int) and step < 0 and isinstance(node, list):
            step += len(node)
        counted.append(step)
        try:
            node = node[step]
        except (LookupError, TypeError):
            node = None
    return tuple(counted)


def _writes(value: Any, steps: Steps) -> bool:
    """Whether a written value has something at these steps; a bare word is a kind."""
    for i, step in enumerate(steps):
        if isinstance(value, (Mapping, list)):
            try:
                value = value[step]  # type: ignore[index]
            except (LookupError, TypeError):
                return False
        else:
            return isinstance(value, str) and steps[i:] == ("kind",)
    return True


def _mapping(
    table: Mapping[str, Any], steps: Steps, origins: Mapping[str, Origin], depth: int
) -> Iterator[str]:
    for name, value in table.items():
        yield from _entry(f"{_scalar(name)}:", value, (*steps, name), origins, depth)


def _entry(
    head: str, value: Any, steps: Steps, origins: Mapping[str, Origin], depth: int
) -> Iterator[str]:
    indent = "  " * depth
    if isinstance(value, Mapping) and value:
        yield f"{indent}{head}"
        yield from _mapping(value, steps, origins, depth + 1)
    elif isinstance(value, list) and value:
        yield f"{indent}{head}"
        for i, item in enumerate(value):
            yield from _item(item, (*steps, i), origins, depth + 1)
    else:
        yield f"{indent}{head} {_scalar(value)}  # {origins[path_of(steps)]}"


def _item(value: Any, steps: Steps, origins: Mapping[str, Origin], depth: int) -> Iterator[str]:
    """An item of a list: the first line of a table stands behind the dash."""
    if isinstance(value, Mapping) and value:
        first, *rest = _mapping(value, steps, origins, depth + 1)
        yield f"{'  ' * depth}- {first.lstrip()}"
        yield from rest
    else:
        yield from _entry("-", value, steps, origins, depth)


def _scalar(value: Any) -> str:
    """A value on one line of YAML."""
    if isinstance(value, str) and not value.isprintable():
        return json.dumps(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=1 << 30, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
