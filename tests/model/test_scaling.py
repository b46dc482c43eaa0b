"""How weights start."""

import math
from typing import Literal

import pytest
import torch

from segpt.config.expand import expand
from segpt.config.layout import Role, layout
from segpt.config.model import ModelSpec
from segpt.config.optimizer import Adam, Muon, Optimizer
from segpt.config.train import Mup, Scaling
from segpt.model.build import build
from segpt.model.model import Model
from segpt.model.params import Matrix, Weight, weights
from segpt.model.scaling import initialise, multiplier, multipliers

SPEC = {
    "vocab": 500,
    "width": 128,
    "context": 16,
    "depth": 2,
    "skips": "mirror",
    "route": "(:)*2",
    "head": {"tied": False},
    "layer": {
        "join": ["mix_input"],
        "mixer": {
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 32,
            "query_key": ["norm", {"kind": "gain", "init": 5.25}],
            "value": ["value_residual"],
            "output": ["head_gate"],
        },
        "feed": {"hidden": 256},
    },
}


def started(scaling: Scaling, seed: int = 1) -> dict[str, Weight]:
    model = build(expand(SPEC))
    initialise(model, scaling, seed)
    return {weight.name: weight for weight in weights(model)}


@pytest.fixture(scope="module")
def found() -> dict[str, Weight]:
    return started(Scaling())


def test_the_same_seed_gives_the_same_weights(found: dict[str, Weight]) -> None:
    again, other = started(Scaling()), started(Scaling(), seed=2)
    for name, weight in found.items():
        assert torch.equal(weight.tensor, again[name].tensor), name
        drawn = weight.role is not Role.VECTOR and not getattr(weight.param, "zero", False)
        assert torch.equal(weight.tensor, other[name].tensor) is not drawn, name


def test_matrices_are_orthogonal(found: dict[str, Weight]) -> None:
    square, tall, wide = (
        found[f"layers.0.{name}"].tensor
        for name in ("mixer.body.query", "feed.body.up", "mixer.body.key")
    )
    assert (square.shape, tall.shape, wide.shape) == ((128, 128), (256, 128), (64, 128))
    torch.testing.assert_close(square @ square.T, torch.eye(128), atol=1e-5, rtol=0)
    torch.testing.assert_close(wide @ wide.T, torch.eye(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(tall.T @ tall, torch.eye(128), atol=1e-5, rtol=0)


def test_matrices_that_write_to_the_stream_are_zero(found: dict[str, Weight]) -> None:
    zero = {n for n, w in found.items() if isinstance(w.param, Matrix) and not w.tensor.any()}
    ends = ("mixer.body.out", "feed.body.down", "mixer.body.output_parts.0.gate")
    assert zero == {f"layers.{i}.{end}" for i in range(2) for end in ends}


def test_tables_and_normal_matrices_have_their_spread(found: dict[str, Weight]) -> None:
    assert found["table"].tensor.std().item() == pytest.approx(0.005, rel=0.02)
    normal = started(Scaling(matrix="normal", table=0.1))
    assert normal["table"].tensor.std().item() == pytest.approx(0.1, rel=0.02)
    for name in ("layers.0.mixer.body.query", "layers.1.feed.body.up", "head.matrix"):
        assert normal[name].tensor.std().item() == pytest.approx(1 / math.sqrt(128), rel=0.02)


def test_small_matrices_are_normal_under_either_scaling() -> None:
    recipe = SPEC | {"width": 48}
    model = build(expand(recipe))
    initialise(model, Scaling(), 1)
    key = {w.name: w.tensor for w in weights(model)}["layers.0.feed.body.up"]
    assert key.shape == (256, 48)
    assert key.std().item() == pytest.approx(1 / math.sqrt(48), rel=0.05)
    assert not torch.allclose(key.T @ key, torch.eye(48) * (key.T @ key)[0, 0], atol=0.1)


def test_vectors_start_at_their_constants(found: dict[str, Weight]) -> None:
    rows = torch.stack([torch.ones(128), torch.zeros(128)])
    wanted = {
        "layers.0.join.0.mix": rows,
        "layers.1.mixer.gain": torch.ones(128),
        "layers.1.feed.gain": torch.ones(128),
        "layers.0.mixer.body.query_key_parts.1.gain": torch.full((4, 1), 5.25),
        "layers.0.mixer.body.value_parts.0.mix": torch.tensor([1.0, 0.0]),
        "visits.2.0.scale": torch.ones(128),
        "visits.2.0.gate": torch.zeros(128),
    }
    for name, value in wanted.items():
        assert found[name].role is Role.VECTOR
        assert torch.equal(found[name].tensor, value), name


def test_a_fresh_model_only_normalises_its_embedding() -> None:
    """Branches write nothing yet, so without skips and mixing logits come from the token alone."""
    recipe = {k: v for k, v in SPEC.items() if k not in ("skips", "head")}
    spec: ModelSpec = expand(recipe)
    model: Model = build(spec)
    initialise(model, Scaling(), 1)
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        rows = model.table(tokens)
        unit = rows / rows.square().mean(-1, keepdim=True).sqrt()
        torch.testing.assert_close(model.hidden(tokens).x, unit, atol=2e-2, rtol=0)


OUTPUTS = ("mixer.body.out", "feed.body.down")


def test_matrices_that_write_to_the_stream_may_start_like_the_others() -> None:
    found = started(Scaling(outputs="random"))
    zero = {n for n, w in found.items() if isinstance(w.param, Matrix) and not w.tensor.any()}
    assert zero == {f"layers.{i}.mixer.body.output_parts.0.gate" for i in range(2)}
    down = found["layers.0.feed.body.down"].tensor
    torch.testing.assert_close(down @ down.T, torch.eye(128), atol=1e-5, rtol=0)


@pytest.mark.parametrize("outputs", ["zero", "random"])
def test_what_is_random_does_not_move_what_else_is_drawn(
    outputs: Literal["zero", "random"], found: dict[str, Weight]
) -> None:
    other = started(Scaling(outputs=outputs))
    assert torch.equal(found["head.matrix"].tensor, other["head.matrix"].tensor)


def test_normals_cut_at_three_deviations() -> None:
    """The distribution of a normal number known to lie within three deviations."""
    scaling = Scaling(matrix="normal", cut=3.0, table=1.0, table_by="width", outputs="random")
    found = started(scaling)
    inside = math.erf(3 / math.sqrt(2))
    spread = math.sqrt(1 - 6 * math.exp(-4.5) / math.sqrt(2 * math.pi) / inside)  # 0.9866
    for name in ("table", "head.matrix", "layers.1.feed.body.up", "layers.1.feed.body.down"):
        unit = found[name].tensor * math.sqrt(found[name].tensor.size(1))
        assert unit.abs().max() <= 3
        assert unit.std().item() == pytest.approx(spread, rel=0.015), name
        assert (unit.abs() > 2).float().mean().item() == pytest.approx(0.0429, rel=0.15), name
        wide = started(Scaling(matrix="normal", table=1.0, table_by="width", outputs="random"))
        assert (wide[name].tensor * math.sqrt(wide[name].tensor.size(1))).abs().max() > 3


def test_uniform_matrices_have_their_bounds() -> None:
    found = started(Scaling(matrix="uniform", gain=0.5))
    for name in ("layers.0.mixer.body.query", "layers.0.mixer.body.output_parts.0.gate"):
        tensor = found[name].tensor
        bound = math.sqrt(3) * 0.5 / math.sqrt(tensor.size(1))
        if tensor.any():
            assert 0.99 * bound < tensor.abs().max() <= bound
            assert tensor.std().item() == pytest.approx(0.5 / math.sqrt(128), rel=0.02)


def test_a_gain_scales_orthogonal_matrices(found: dict[str, Weight]) -> None:
    other = started(Scaling(gain=0.5))
    for name, weight in found.items():
        half = 0.5 if isinstance(weight.param, Matrix) else 1.0
        assert torch.equal(other[name].tensor, half * weight.tensor), name


def test_starts_go_with_the_width() -> None:
    mup = Mup(base_width=32, table_start=-1.0, head_start=-0.5)
    plain, wide = started(Scaling(matrix="normal")), started(Scaling(matrix="normal", mup=mup))
    for name, weight in plain.items():
        factor = {"table": 32 / 128, "head.matrix": 0.5}.get(name, 1.0)
        torch.testing.assert_close(wide[name].tensor, factor * weight.tensor)


def test_rates_go_with_role_and_fan_in() -> None:
    places = {w.name: w for w in layout(expand(SPEC))}
    scaling = Scaling(mup=Mup(base_width=32, table=3.0, head=0.5, table_power=0.5))
    wanted = {
        "table": 3 * (128 / 32) ** 0.5,
        "head.matrix": 0.5 * 32 / 128,
        "layers.0.mixer.body.query": 32 / 128,
        "layers.0.feed.body.down": 32 / 256,
        "layers.0.feed.gain": 1.0,
        "visits.2.0.scale": 1.0,
    }
    for name, factor in wanted.items():
        assert multiplier(places[name], scaling, Adam()) == pytest.approx(factor), name
        assert multiplier(places[name], Scaling(), Adam()) == 1
    for scale, factor in (("spectral", 1.0), ("ratio", 1.0), ("rms", (256 / 32) ** -0.5)):
        rule = Muon(scale=scale)  # type: ignore[arg-type]
        assert multiplier(places["layers.0.feed.body.up"], scaling, rule) == pytest.approx(factor)


def test_the_multipliers_of_a_model_follow_the_rule_of_each_weight() -> None:
    spec, scaling = expand(SPEC), Scaling(mup=Mup(base_width=64))
    muon, adam = Optimizer(), Optimizer(matrix=Adam())
    by_muon, by_adam = (multipliers(spec, scaling, rules) for rules in (muon, adam))
    assert by_muon.keys() == by_adam.keys() == {w.name for w in layout(spec)}
    changed = {name for name in by_adam if by_adam[name] != by_muon[name]}
    assert changed == {w.name for w in layout(spec) if w.role is Role.MATRIX and w.shape[1] != 64}
    assert by_muon["head.matrix"] == 0.5


def test_multipliers_as_published_for_one_system() -> None:
    """The table's rate by the root of the width, the head's by a half, others as they are."""
    mup = Mup(base_width=1, table_power=0.5, head=0.5, head_power=0, matrix_power=0, head_start=0)
    found = multipliers(expand(SPEC), Scaling(mup=mup), Optimizer(matrix=Adam()))
    assert found.pop("table") == pytest.approx(math.sqrt(128))
    assert found.pop("head.matrix") == 0.5
    assert set(found.values()) == {1.0}
