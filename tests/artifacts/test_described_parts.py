"""The table of parts in the description of the format names every weight that a part brings."""

import dataclasses
import inspect
import re
import typing
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from segpt.config import parts
from segpt.config.base import kind
from segpt.config.layer import Attention
from segpt.config.parts import Weightless
from segpt.errors import SpecError

PAGE = Path(__file__).resolve().parents[2] / "artifacts" / "README.md"
NUMBERS = {"source": 0, "buckets": 8, "width": 4, "table": 0, "count": 8}
MIXER = Attention(heads=4, kv_heads=2, head_dim=8)


def described() -> dict[str, str]:
    """What the page says of each part."""
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("| slot | part | weights |") : text.index("All other parts have no")]
    return dict(re.findall(r"^\| [^|]*\| `(\w+)` \| (.*) \|$", table, re.MULTILINE))


def weighty() -> dict[str, Any]:
    """The parts that may have weights."""
    return {
        kind(cls): cls
        for _, cls in inspect.getmembers(parts, inspect.isclass)
        if hasattr(cls, "weights") and not issubclass(cls, Weightless)
    }


def forms(cls: Any) -> list[Any]:
    """The part with every choice of words and switches."""
    hints = typing.get_type_hints(cls)
    choices: dict[str, list[Any]] = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if typing.get_origin(hint) is typing.Literal:
            choices[field.name] = list(typing.get_args(hint))
        elif hint is bool:
            choices[field.name] = [False, True]
        elif field.name in NUMBERS:
            choices[field.name] = [NUMBERS[field.name]]
    found = []
    for values in product(*choices.values()):
        try:
            found.append(cls(**dict(zip(choices, values, strict=True))))
        except SpecError:
            continue
    return found


def test_every_part_with_weights_is_described() -> None:
    assert described().keys() == weighty().keys()


@pytest.mark.parametrize("name", sorted(weighty()))
def test_every_weight_of_a_part_is_named(name: str) -> None:
    needs_mixer = "mixer" in inspect.signature(weighty()[name].weights).parameters
    names: set[str] = set()
    for part in forms(weighty()[name]):
        entries = part.weights(32, MIXER) if needs_mixer else part.weights(32)
        names |= {entry.name for entry in entries}
    assert names
    told = set(re.findall(r"`(\w+)` \(", described()[name]))
    assert told == names
