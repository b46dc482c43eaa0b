"""A recipe file that holds several recipes: stages of one training, experiments, or a base.

``stages:`` maps the name of each stage to what it changes of the rest of the file, in the order in
which they are trained; ``experiments:`` does so for recipes that are apart from each other.
``base:`` names another recipe that the file changes, and ``anchors:`` is a place for YAML anchors.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from segpt.errors import SpecError

from .base import decode, nearest, patch, spec

_DEEPEST = 8  # of bases that name bases
_SPECIAL = ("base", "anchors", "stages", "stage", "experiments")

Plain = Mapping[str, Any]
ReadBase = Callable[[str], Plain]


@spec
class StageStart:
    """What a stage begins with: the last weights of the stage ``after`` which it comes.

    The state of the optimizer is ``fresh``, or ``kept`` from there, which takes the same rules for
    the same weights.
    """

    after: str
    optimizer: Literal["fresh", "kept"] = "fresh"


class Stage(NamedTuple):
    """A stage that was chosen: its name, its start, and the recipe of the stage before it."""

    name: str
    start: StageStart | None = None
    before: str | None = None


class Choice(NamedTuple):
    """Which of the recipes in a file is meant; None is not said."""

    stage: str | None = None
    experiment: str | None = None


FIRST = Choice()  # the stage that training begins with


class Chosen(NamedTuple):
    """The table of one recipe, and the stage that it is."""

    table: dict[str, Any]
    stage: Stage | None = None


def choose(table: Plain, choice: Choice, read_base: ReadBase, depth: int = 0) -> Chosen:
    """The recipe that is meant of those in a file.

    Without a choice that is the first stage, as training begins with it; of experiments one has to
    be named.

    Args:
        table: the file.
        choice: what the user named.
        read_base: gives the table of another recipe by the name or path that a file says.
        depth: how many bases led here.

    Raises:
        SpecError: naming what there is no such recipe for, or what is wrong in the file.
    """
    whole = _with_base(table, read_base, depth)
    entries = _entries(whole, "experiments")
    if entries:
        known = ", ".join(map(repr, entries))
        if choice.experiment is None:
            raise SpecError(f"holds several experiments; choose one with --config-key: {known}")
        whole = _changed(whole, entries, choice.experiment, "experiment")
    elif choice.experiment is not None:
        raise SpecError(f"holds no experiments; leave out --config-key {choice.experiment}")
    stages = _entries(whole, "stages")
    if not stages:
        if choice.stage is not None:
            raise SpecError(f"holds no stages; leave out --stage {choice.stage}")
        return Chosen(_without(whole))
    name = choice.stage or whole.get("stage") or next(iter(stages))
    chosen = _changed(whole, stages, str(name), "stage")
    start = None
    if "start" in chosen:
        start = decode(StageStart, chosen.pop("start"), f"stages.{name}.start")
    if start is None:
        return Chosen(_without(chosen), Stage(str(name)))
    if start.after not in stages or list(stages).index(start.after) >= list(stages).index(name):
        raise SpecError(
            f"stages.{name}.start.after: no stage before it is called {start.after!r}; "
            f"{nearest(start.after, list(stages)[: list(stages).index(name)])}"
        )
    before = _changed(whole, stages, start.after, "stage").get("name")
    return Chosen(_without(chosen), Stage(str(name), start, str(before)))


def _with_base(table: Plain, read_base: ReadBase, depth: int) -> dict[str, Any]:
    if "base" not in table:
        return dict(table)
    if depth >= _DEEPEST:
        raise SpecError(f"base: more than {_DEEPEST} recipes that name each other")
    if not isinstance(table["base"], str):
        raise SpecError("base: expected the name of a recipe or the path of a file")
    inner = _with_base(read_base(table["base"]), read_base, depth + 1)
    return patch(inner, {key: value for key, value in table.items() if key != "base"})


def _entries(table: Plain, key: str) -> dict[str, Any]:
    entries = table.get(key)
    if entries is None:
        return {}
    if not isinstance(entries, Mapping) or not entries:
        raise SpecError(f"{key}: expected a table of names and what each changes")
    for name, entry in entries.items():
        if not isinstance(name, str) or not isinstance(entry, Mapping):
            raise SpecError(f"{key}.{name}: expected a name with a table of changes")
    return dict(entries)


def _changed(table: Plain, entries: Plain, name: str, what: str) -> dict[str, Any]:
    """The rest of the file with the changes of one entry; it is called after both."""
    if name not in entries:
        raise SpecError(f"there is no {what} {name!r}; {nearest(name, entries)}")
    inner = {"stages"} & set(entries[name])
    rest = {key: value for key, value in table.items() if key != f"{what}s"}
    changed = patch(rest, entries[name])
    if "name" not in entries[name] and not inner and "name" in rest:
        changed["name"] = f"{rest['name']}-{name}"
    return changed


def _without(table: Plain) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in _SPECIAL}
