"""What flags make of the recipe's way to quantize."""

import dataclasses
from typing import Any

import pytest

from segpt.errors import SpecError
from segpt.spec.quant import QuantSpec, Rule
from segpt.spec.recipe import Recipe, read_recipe
from segpt.stages.recipes import quant_spec


def recipe(**quantize: Any) -> Recipe:
    return dataclasses.replace(read_recipe("demo"), quantize=QuantSpec(**quantize))


def bits(spec: QuantSpec) -> dict[str, int]:
    return {rule.role: rule.bits for rule in spec.rules}


def test_by_default_the_budget_of_the_recipe_is_used_up() -> None:
    found = quant_spec(recipe(states=16, tune_steps=7))
    assert (found.method, found.budget, found.rate) == ("trellis", 1_000_000, None)
    assert (found.states, found.tune_steps) == (16, 7)


def test_a_budget_or_rate_of_the_settings_comes_before_that_of_the_file() -> None:
    assert quant_spec(recipe(budget=5000)).budget == 5000
    found = quant_spec(recipe(rate=2.5))
    assert (found.budget, found.rate) == (None, 2.5)
    found = quant_spec(recipe(rate=2.5), budget=7000)
    assert (found.budget, found.rate) == (7000, None)
    found = quant_spec(recipe(budget=5000), method="rd", bits=3)
    assert (found.method, found.budget, found.rate) == ("rd", None, 3.0)


def test_bits_alone_are_the_width_of_grids() -> None:
    found = quant_spec(recipe(), bits=5)
    assert (found.method, found.budget, found.rate) == ("gptq", None, None)
    assert bits(found) == {"table": 8, "matrix": 5, "head": 8, "vector": 16}
    assert quant_spec(recipe(method="nearest"), bits=5).method == "nearest"


def test_bits_of_grids_keep_the_layers_and_groups_of_rules() -> None:
    rules = (Rule(role="matrix", bits=6), Rule(role="matrix", bits=7, layers="0", group=8, clip=3))
    found = quant_spec(recipe(method="gptq", rules=rules), bits=4)
    assert found.rules == (
        Rule(role="matrix", bits=4),
        Rule(role="matrix", bits=4, layers="0", group=8),
    )


@pytest.mark.parametrize("method", ["trellis", "rd"])
def test_bits_of_designed_steps_are_their_mean(method: Any) -> None:
    found = quant_spec(recipe(), method=method, bits=4)
    assert (found.method, found.budget, found.rate) == (method, None, 4.0)
    assert found.rules == QuantSpec().rules


@pytest.mark.parametrize("method", ["gptq", "nearest"])
def test_grids_need_neither_budget_nor_bits(method: Any) -> None:
    found = quant_spec(recipe(), method=method)
    assert (found.method, found.budget, found.rate) == (method, None, None)
    assert found.rules == QuantSpec().rules
    assert quant_spec(recipe(budget=10), method=method).budget is None


def test_contradictions_are_refused() -> None:
    with pytest.raises(SpecError, match=r"gptq has no budget.*use method trellis or rd"):
        quant_spec(recipe(), method="gptq", budget=10)
    with pytest.raises(SpecError, match="gptq has no budget"):
        quant_spec(recipe(method="gptq"), budget=10)
    for method in (None, "trellis", "rd"):
        chosen: Any = method
        with pytest.raises(SpecError, match="a budget or a rate, not both"):
            quant_spec(recipe(), method=chosen, budget=10, bits=4)
