"""How weights start."""

import math

import pytest
import torch

from segpt.model.build import build
from segpt.model.leaves import Matrix, Weight, weights
from segpt.model.model import Model
from segpt.model.scaling import initialise
from segpt.spec.expand import expand
from segpt.spec.layout import Role
from segpt.spec.model import ModelSpec
from segpt.spec.train import Scaling

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
        drawn = weight.role is not Role.VECTOR and not getattr(weight.leaf, "zero", False)
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
    zero = {n for n, w in found.items() if isinstance(w.leaf, Matrix) and not w.tensor.any()}
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
        torch.testing.assert_close(model.hidden(tokens), unit, atol=2e-2, rtol=0)
