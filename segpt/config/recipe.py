"""A recipe: everything from text to score in one YAML file, with ``--set path=value``."""

import copy
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from segpt.errors import SpecError

from .base import ADDED, BYTES, answer, decode, encode, nearest, spec
from .expand import expand
from .mixture import Mixture
from .model import ModelSpec
from .ngram import Ngram
from .plain import NOT_YAML, read_yaml
from .quant import QuantSpec
from .score import Policy, ScoreSpec, Sgd
from .stages import FIRST, Choice, Stage, choose
from .train import TrainSpec

_SETTING = re.compile(r"[^.\[\]]+(?:\.[^.\[\]]+|\[-?\d{1,6}\])*")


@spec
class Bytes:
    """One token per byte, and one that starts a document."""


@spec
class Bpe:
    """Lossless SentencePiece byte-pair encoding with ``vocab`` pieces (arXiv 1808.06226)."""

    vocab: int


@spec
class PackSpec:
    """The byte budget of the final file."""

    budget: int = dataclasses.field(default=16_000_000, metadata=BYTES)


@spec
class Recipe:
    """One named way from text to score. ``adapt`` and ``ngram`` are what ``score --ttt`` does.

    ``data`` names prepared texts to train on together, where the command line names none.
    """

    name: str
    about: str
    tokenizer: Bytes | Bpe
    model: ModelSpec
    train: TrainSpec
    quantize: QuantSpec = QuantSpec()
    pack: PackSpec = PackSpec()
    score: ScoreSpec = ScoreSpec()
    adapt: Policy = Sgd()
    ngram: Ngram | None = None
    data: Mixture | None = dataclasses.field(default=None, metadata=ADDED)


def names() -> list[str]:
    """The recipes that ship with the package."""
    files = resources.files("segpt.recipes").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def read_recipe(source: str | Path, settings: Sequence[str] = (), choice: Choice = FIRST) -> Recipe:
    """Read a shipped recipe by name, or a YAML file by path, and apply ``path=value`` settings.

    ``choice`` says which recipe of a file is meant that holds several.

    Raises:
        SpecError: naming the file or the key that is wrong, and the nearest valid one.
    """
    return read_whole(source, settings, choice).recipe


def stage_of(source: str | Path, choice: Choice) -> Stage | None:
    """Which stage a recipe is, of a file that holds several.

    Raises:
        SpecError: as :func:`read_recipe`.
    """
    return read_whole(source, (), choice).stage


class RecipeReading(NamedTuple):
    """A recipe as it was read: the table of the file, before and after settings of the model.

    ``stage`` is which stage it is of a file that holds several.
    """

    recipe: Recipe
    place: str
    written: dict[str, Any]
    changed: dict[str, Any]
    stage: Stage | None = None


def read_whole(
    source: str | Path, settings: Sequence[str], choice: Choice = FIRST
) -> RecipeReading:
    """As :func:`read_recipe`, with what was written."""
    text, place = _source(source)

    def read_base(named: str) -> dict[str, Any]:
        beside = named if named in names() else Path(source).parent / named
        return _written(*_source(beside))

    table = _written(text, place)
    try:
        written, stage = choose(table, choice, read_base)
    except SpecError as error:
        raise SpecError(f"{place}: {error}") from None
    # The model has a short form, which settings change; elsewhere they reach defaults too.
    of_model = [s for s in settings if s.startswith("model.")]
    changed = apply_settings(written, of_model)
    if not isinstance(changed.get("model"), dict):
        raise SpecError(f"{place}: missing key 'model'")
    try:
        full = changed | {"model": expand(changed["model"])}
        whole = encode(decode(Recipe, full))
        rest = [s for s in settings if s not in of_model]
        recipe = decode(Recipe, apply_settings(whole, rest))
    except SpecError as error:
        raise SpecError(f"{place}: {_in_words(error)}") from error
    return RecipeReading(recipe, place, written, changed, stage)


def _written(text: str, place: str) -> dict[str, Any]:
    try:
        written = read_yaml(text)
    except NOT_YAML as error:
        detail = " ".join(str(error).split())
        raise SpecError(f"{place}: not valid YAML: {detail}") from None
    if not isinstance(written, dict):
        raise SpecError(f"{place}: expected a table of name, tokenizer, model and train")
    return written


def _in_words(error: SpecError) -> str:
    """A message about a place in the recipe, which is the root of all places."""
    return re.sub(r"^\$(?:\.|: )", "", str(error))


def apply_settings(table: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """A copy of plain recipe values with each ``path=value`` applied, values read as YAML.

    Raises:
        SpecError: naming the setting that has no ``=`` or leads nowhere.
    """
    changed = copy.deepcopy(dict(table))
    for setting in settings:
        _set(changed, setting)
    return changed


def _source(source: str | Path) -> tuple[str, str]:
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except OSError as error:
            raise SpecError(f"cannot read recipe {path}: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise SpecError(f"cannot read recipe {path}: it is not UTF-8") from None
        except ValueError:
            raise SpecError(f"cannot read recipe {str(path)!r}: no path holds NUL") from None
    if str(source) not in names():
        raise SpecError(f"unknown recipe {str(source)!r}; {nearest(str(source), names())}")
    shipped = resources.files("segpt.recipes") / f"{source}.yaml"
    return shipped.read_text(encoding="utf-8"), f"recipe {source}"


class Setting(NamedTuple):
    """A value and the steps to where it goes."""

    steps: tuple[str | int, ...]
    value: Any


def read_setting(setting: str) -> Setting:
    """Read ``path=value``.

    Raises:
        SpecError: if it has no ``=``, or the value is not YAML.
    """
    path, equals, value = setting.partition("=")
    if not equals or not _SETTING.fullmatch(path):
        raise SpecError(f"--set {setting!r}: write path=value, e.g. --set train.batch=16")
    steps = tuple(
        int(number) if number else name
        for name, number in re.findall(r"([^.\[\]]+)|\[(-?\d+)\]", path)
    )
    try:
        return Setting(steps, read_yaml(value))
    except NOT_YAML:
        raise SpecError(f"--set {path}: cannot read the value {value!r}") from None


def _set(table: dict[str, Any], setting: str) -> None:
    path = setting.partition("=")[0]
    steps, new = read_setting(setting)
    node: Any = table
    for step in steps[:-1]:
        try:
            node = node.setdefault(step, {}) if isinstance(node, dict) else node[step]
        except (IndexError, TypeError, KeyError):
            raise _nothing(path, step) from None
        if node is None:
            raise _nothing(path, step)
    try:
        node[steps[-1]] = new
    except (IndexError, TypeError):
        raise _nothing(path, steps[-1]) from None


def _nothing(path: str, step: str | int) -> SpecError:
    """The error about a setting that leads through ``step``, where there is nothing."""
    hint = answer(str(step))
    return SpecError(f"--set {path}: nothing at {step!r}" + (f"; {hint}" if hint else ""))
