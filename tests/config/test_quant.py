"""Which rule quantizes which weight."""

import pytest

from segpt.config.base import decode
from segpt.config.layout import Place, Role, Weight, layout
from segpt.config.quant import CLIP, DEFAULT_RULES, STATES, Method, QuantSpec, Rule
from segpt.config.recipe import read_recipe
from segpt.errors import SpecError
from segpt.trellis import machine


def matrix(layer: int | None) -> Weight:
    return Weight("m", Role.MATRIX, (4, 4), layer, 1, Place.MIXER)


def test_the_last_matching_rule_wins() -> None:
    first, second, third = (
        Rule(role="matrix", bits=6),
        Rule(role="matrix", bits=5, layers="1:3"),
        Rule(role="matrix", bits=4, layers="2,-1"),
    )
    spec = QuantSpec(rules=(first, second, third))
    assert [spec.rule(matrix(i), 5) for i in range(5)] == [first, second, third, first, third]
    backwards = QuantSpec(rules=(third, second, first))
    assert {backwards.rule(matrix(i), 5) for i in range(5)} == {first}


def test_weights_outside_layers_match_only_rules_for_all_layers() -> None:
    everywhere, some = Rule(role="matrix", bits=6), Rule(role="matrix", bits=4, layers=":")
    assert QuantSpec(rules=(everywhere, some)).rule(matrix(None), 5) == everywhere


@pytest.mark.parametrize("role", list(Role))
def test_a_weight_without_a_rule_is_refused(role: Role) -> None:
    weight = Weight("the.weight", role, (4, 4), 0, 1, Place.FEED)
    others = tuple(rule for rule in DEFAULT_RULES if rule.role != role.value)
    assert len(others) == 3
    with pytest.raises(SpecError, match=rf"no quantization rule for the\.weight \({role.value}\)"):
        QuantSpec(rules=others).rule(weight, 1)
    assert Role(QuantSpec().rule(weight, 1).role) is role


def test_defaults_cover_every_weight_of_the_recipes() -> None:
    for name in ("golf16", "seed004", "demo"):
        recipe = read_recipe(name)
        bits = {
            weight.role: recipe.quantize.rule(weight, len(recipe.model.layers)).bits
            for weight in layout(recipe.model)
        }
        assert bits == {Role.TABLE: 8, Role.MATRIX: 6, Role.VECTOR: 16}


def test_bad_selections_in_rules_are_named() -> None:
    spec = QuantSpec(rules=(Rule(role="matrix", bits=6, layers="9"),))
    with pytest.raises(SpecError, match="cannot read '9' as a selection of 5 layers"):
        spec.rule(matrix(0), 5)


def test_the_clip_follows_from_the_bits_unless_given() -> None:
    assert [Rule(role="matrix", bits=bits).k for bits in range(2, 9)] == list(CLIP.values())
    assert Rule(role="matrix", bits=6).k == 12.85
    assert Rule(role="matrix", bits=6, clip=3.5).k == 3.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"role": "matrix", "bits": 9}, "bits are 2 to 8, or 16 for float16; got 9"),
        ({"role": "matrix", "bits": 1}, "bits are 2 to 8"),
        ({"role": "vector", "bits": 8}, "vectors are stored as float16"),
        ({"role": "matrix", "bits": 6, "clip": 0}, "clip must be positive"),
        ({"role": "matrix", "bits": 6, "group": 0}, "group must be at least 1 column"),
        ({"role": "matrixes", "bits": 6}, "unknown value 'matrixes'; did you mean 'matrix'"),
        ({"role": "matrix"}, "missing key 'bits' in rule"),
    ],
)
def test_rules_that_cannot_be(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        decode(QuantSpec, {"rules": [fields]})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "trelis"}, "unknown value 'trelis'"),
        ({"search": -1}, "search must not be negative"),
        ({"tune_steps": -1}, "tune_steps must not be negative"),
        ({"tune_rate": -0.1}, "tune_rate must not be negative"),
        ({"penalty": -0.1}, "penalty must not be negative"),
        ({"by_row": -0.5}, "by_row must not be negative"),
        ({"by_column": -0.5}, "by_column must not be negative"),
        ({"states": 1}, "states are 4, 8 or 16, got 1; rd is one state"),
        ({"states": 6}, "states are 4, 8 or 16, got 6"),
        ({"budget": 0}, "budget must be at least 1 byte, got 0"),
        ({"rate": 0.01}, "rate is 0.1 to 8 bits per weight, got 0.01"),
        ({"rate": 9}, "rate is 0.1 to 8 bits per weight, got 9"),
        ({"rate": float("nan")}, "rate: expected a finite number"),
        ({"budget": 10, "rate": 3}, "give a budget or a rate, not both"),
        ({"method": "gptq", "budget": 10}, "gptq has no budget or rate.*use method trellis or rd"),
        ({"method": "nearest", "rate": 3}, "nearest has no budget or rate"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        decode(QuantSpec, fields)


def test_steps_are_designed_unless_rules_give_the_bits() -> None:
    methods: tuple[Method, ...] = ("trellis", "rd", "gptq", "nearest")
    designed = [QuantSpec(method=method).designed for method in methods]
    assert designed == [True, True, False, False]
    assert QuantSpec().method == "trellis"


@pytest.mark.parametrize("states", [4, 8, 16])
def test_every_machine_can_be_asked_for(states: int) -> None:
    assert machine(QuantSpec(states=states).states).states == states
    assert set(STATES) == {1, 4, 8, 16}


@pytest.mark.parametrize("name", ["calibration_tokens", "block", "report_tokens", "damping"])
def test_sizes_and_damping_are_positive(name: str) -> None:
    with pytest.raises(SpecError, match=f"{name} must be"):
        decode(QuantSpec, {name: 0})
