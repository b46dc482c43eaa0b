"""What flags make of the recipe's way to quantize and to score."""

import dataclasses
from typing import Any

import pytest

from segpt.config.ngram import Ngram
from segpt.config.quant import QuantSpec, Rule
from segpt.config.recipe import Recipe, read_recipe
from segpt.config.score import Frozen, InPlace, LowRank, Phased, Policy, ScoreSpec, Sgd
from segpt.errors import SpecError
from segpt.stages.resolve_spec import ADAPT_LARGE, Reading, quant_spec, score_spec, strided_spec


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


SMALL = read_recipe("demo").model
LARGE = read_recipe("golf16").model


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("none", Frozen()),
        ("sgd", Sgd()),
        ("lora", LowRank()),
        ("phased", Phased()),
        ("inplace", InPlace()),
        ("ngram", Frozen()),
    ],
)
def test_policies_have_names(name: str, policy: Policy) -> None:
    found = score_spec(SMALL, policy=name)
    assert found.policy == policy
    assert found.ngram == (Ngram() if name == "ngram" else None)
    mixed = score_spec(SMALL, policy=name if name == "ngram" else f"{name}+ngram")
    assert (mixed.policy, mixed.ngram) == (policy, Ngram())


def test_the_best_policy_is_that_of_the_recipe_or_of_the_size() -> None:
    assert score_spec(SMALL, policy="best") == score_spec(SMALL, policy="lora+ngram")
    large = score_spec(LARGE, policy="best")
    assert (large.policy, large.ngram) == (ADAPT_LARGE, None)
    assert score_spec(LARGE, policy="sgd").policy == ADAPT_LARGE
    own = dataclasses.replace(read_recipe("demo"), adapt=LowRank(rank=3), ngram=None)
    found = score_spec(SMALL, policy="best", recipe=own)
    assert (found.policy, found.ngram) == (LowRank(rank=3), None)
    assert score_spec(SMALL, policy="best+ngram", recipe=own).ngram == Ngram()


@pytest.mark.parametrize("name", ["oracle", "sgd+lora", "", "sgd+", "ngram+oracle"])
def test_policies_that_are_not_there_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match=r"write one of none, sgd, .* or one of them and \+ngram"):
        score_spec(SMALL, policy=name)


def test_flags_come_before_the_recipe_and_settings_before_flags() -> None:
    recipe = dataclasses.replace(read_recipe("demo"), score=ScoreSpec(stride=32, batch=3))
    assert score_spec(SMALL, recipe=recipe) == ScoreSpec(stride=32, batch=3)
    found = score_spec(
        SMALL,
        policy="sgd+ngram",
        recipe=recipe,
        reading=Reading("rolling", "document", stride=16, context=64, loops=2),
        settings=("score.stride=8", "adapt.rate=0.5", "ngram.keep=0.7"),
    )
    assert found == ScoreSpec(
        mode="rolling",
        boundaries="document",
        context=64,
        stride=8,
        batch=3,
        loops=2,
        policy=Sgd(rate=0.5),
        ngram=Ngram(keep=0.7),
    )


def test_small_models_roll_unless_what_changes_does_not_go_with_a_cache() -> None:
    reading = {
        name: (found.mode, found.boundaries)
        for name in ("none", "ngram", "sgd", "lora", "phased", "inplace")
        for found in [score_spec(SMALL, policy=name)]
    }
    assert reading == {
        "none": ("rolling", "stream"),
        "ngram": ("rolling", "stream"),
        "sgd": ("strided", "stream"),
        "lora": ("rolling", "document"),
        "phased": ("rolling", "document"),
        "inplace": ("strided", "stream"),
    }
    assert score_spec(LARGE).mode == "strided"
    assert score_spec(SMALL, reading=Reading(stride=8)).mode == "strided"
    assert score_spec(SMALL, policy="lora", reading=Reading("strided")).boundaries == "stream"
    demo = read_recipe("demo")
    assert score_spec(demo.model, recipe=demo).reach(128) == 112
    assert score_spec(demo.model, policy="best", recipe=demo).boundaries == "document"
    assert strided_spec(SMALL).reach(128) == 128


def test_the_stride_of_a_short_context_is_half_of_it() -> None:
    assert score_spec(SMALL).stride == 64
    assert score_spec(SMALL, reading=Reading(context=32)).stride == 16
    assert score_spec(SMALL, reading=Reading(context=1)).stride == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.batch=3", r"settings score\.\*, adapt\.\* and ngram\.\* only"),
        ("adapt.rank=3", "rank"),
        ("score.mode=sideways", "sideways"),
        ("adapt.rate=-1", "rate is not negative"),
    ],
)
def test_settings_that_do_not_fit_are_refused(setting: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        score_spec(SMALL, policy="sgd", settings=(setting,))
