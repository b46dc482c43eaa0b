"""A recipe: everything from text to score in one YAML file, with ``--set path=value``."""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from segpt.errors import SpecError

from .base import decode, encode, nearest, spec
from .expand import expand
from .model import ModelSpec
from .ngram import Ngram
from .quant import QuantSpec
from .score import Policy, ScoreSpec, Sgd
from .train import TrainSpec

# PyYAML lets the errors of its own constructors through, e.g. for "2001-99-99" or "!!bool x".
_NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)
_MERGE = "tag:yaml.org,2002:merge"
_SETTING = re.compile(r"[^.\[\]]+(?:\.[^.\[\]]+|\[-?\d{1,6}\])*")


class _Loader(yaml.SafeLoader):
    """Plain values only, and no key twice in a table: YAML readers would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        met: set[tuple[str, Any]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if (key.tag, key.value) in met:
                    problem = f"the key {key.value!r} stands twice in one table"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                met.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _plain(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


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

    budget: int = 16_000_000


@spec
class Recipe:
    """One named way from text to score. ``adapt`` and ``ngram`` are what ``score --ttt`` does."""

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


def names() -> list[str]:
    """The recipes that ship with the package."""
    files = resources.files("segpt.recipes").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def read_recipe(source: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or a YAML file by path, and apply ``path=value`` settings.

    Raises:
        SpecError: naming the file or the key that is wrong, and the nearest valid one.
    """
    text, place = _source(source)
    try:
        table = _plain(text)
    except _NOT_YAML as error:
        detail = " ".join(str(error).split())
        raise SpecError(f"{place}: not valid YAML: {detail}") from None
    if not isinstance(table, dict):
        raise SpecError(f"{place}: expected a table of name, tokenizer, model and train")
    # The model has a short form, which settings change; elsewhere they reach defaults too.
    of_model = [s for s in settings if s.startswith("model.")]
    table = apply_settings(table, of_model)
    if not isinstance(table.get("model"), dict):
        raise SpecError(f"{place}: missing key 'model'")
    try:
        table["model"] = expand(table["model"])
        whole = encode(decode(Recipe, table))
        return decode(Recipe, apply_settings(whole, [s for s in settings if s not in of_model]))
    except SpecError as error:
        raise SpecError(f"{place}: {error}") from error


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
        except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
            raise SpecError(f"cannot read recipe {path}: {error}") from None
    if str(source) not in names():
        raise SpecError(f"unknown recipe {str(source)!r}; {nearest(str(source), names())}")
    shipped = resources.files("segpt.recipes") / f"{source}.yaml"
    return shipped.read_text(encoding="utf-8"), f"recipe {source}"


def _set(table: dict[str, Any], setting: str) -> None:
    path, equals, value = setting.partition("=")
    if not equals or not _SETTING.fullmatch(path):
        raise SpecError(f"--set {setting!r}: write path=value, e.g. --set train.batch=16")
    steps: list[str | int] = [
        int(number) if number else name
        for name, number in re.findall(r"([^.\[\]]+)|\[(-?\d+)\]", path)
    ]
    try:
        new = _plain(value)
    except _NOT_YAML:
        raise SpecError(f"--set {path}: cannot read the value {value!r}") from None
    here: Any = table
    for step in steps[:-1]:
        try:
            here = here.setdefault(step, {}) if isinstance(here, dict) else here[step]
        except (IndexError, TypeError, KeyError):
            raise SpecError(f"--set {path}: nothing at {step!r}") from None
        if here is None:
            raise SpecError(f"--set {path}: nothing at {step!r}")
    try:
        here[steps[-1]] = new
    except (IndexError, TypeError):
        raise SpecError(f"--set {path}: nothing at {steps[-1]!r}") from None
