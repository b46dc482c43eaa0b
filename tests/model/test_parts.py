"""What each part computes, against its definition."""

import math

import pytest
import torch
from torch import Tensor

from segpt.config import layer as layer_spec
from segpt.config import parts as spec
from segpt.kernels import activation, attention, rms_norm
from segpt.model import parts
from segpt.model.feed import Dense
from segpt.model.state import ForwardState
from tests.model.states import state_of


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stream(time: int, width: int = 4, start: int = 0, batch: int = 2) -> ForwardState:
    return state_of(noise(batch, time, width, seed=9), begin=start)


def rotated(x: Tensor, dims: int, base: float, sign: int, start: int = 0) -> Tensor:
    """Rope over complex numbers in float64: channels i and i + dims/2 times exp(sign i angle)."""
    half = dims // 2
    positions = torch.arange(start, start + x.size(1), dtype=torch.float64)
    rates = torch.tensor([base ** (-2 * j / dims) for j in range(half)], dtype=torch.float64)
    turn = torch.polar(torch.tensor(1.0).double(), sign * torch.outer(positions, rates))
    z = torch.complex(x[..., :half].double(), x[..., half:dims].double()) * turn[:, None]
    return torch.cat([z.real, z.imag, x[..., dims:].double()], -1)


@pytest.mark.parametrize(("turn", "sign"), [("left", 1), ("right", -1)])
@pytest.mark.parametrize("dims", [2, 6, 8])
@pytest.mark.parametrize("base", [10_000.0, 500.0])
def test_rope_is_a_complex_rotation(turn: str, sign: int, dims: int, base: float) -> None:
    assert turn in ("left", "right")
    rope = parts.Rope(spec.Rope(dims=dims, base=base, turn="left" if turn == "left" else "right"))
    q, k = noise(2, 50, 4, 8), noise(2, 50, 2, 8, seed=1)
    rq, rk = rope(q, k, stream(50, start=1000))
    # angles of about 1000 radians in float32 are off by up to 2^-14
    torch.testing.assert_close(rq.double(), rotated(q, dims, base, sign, 1000), atol=5e-4, rtol=0)
    torch.testing.assert_close(rk.double(), rotated(k, dims, base, sign, 1000), atol=5e-4, rtol=0)
    assert torch.equal(rq[..., dims:], q[..., dims:])
    assert torch.equal(rk[..., dims:], k[..., dims:])


def test_one_turn_undoes_the_other() -> None:
    left = parts.Rope(spec.Rope(dims=6, turn="left"))
    right = parts.Rope(spec.Rope(dims=6, turn="right"))
    q, k = noise(2, 50, 4, 8), noise(2, 50, 2, 8, seed=1)
    back = right(*left(q, k, stream(50)), stream(50))
    torch.testing.assert_close(back, (q, k), atol=1e-5, rtol=0)
    assert not torch.allclose(left(q, k, stream(50))[0], right(q, k, stream(50))[0], atol=0.1)


@pytest.mark.parametrize("turn", ["left", "right"])
def test_rope_depends_on_distance_only(turn: str) -> None:
    rope = parts.Rope(spec.Rope(dims=8, turn="left" if turn == "left" else "right"))
    q, k = noise(1, 20, 2, 8), noise(1, 20, 2, 8, seed=1)

    def logits(start: int) -> Tensor:
        rq, rk = rope(q, k, stream(20, start=start))
        return torch.einsum("bqhc,bkhc->bhqk", rq, rk)

    torch.testing.assert_close(logits(100), logits(0), atol=1e-3, rtol=0)
    plain = torch.einsum("bqhc,bkhc->bhqk", q, k)
    assert not torch.allclose(logits(0), plain, atol=0.1)
    diagonal = torch.diagonal(plain - logits(0), dim1=-2, dim2=-1)
    torch.testing.assert_close(diagonal, torch.zeros_like(diagonal), atol=1e-5, rtol=0)


def test_grouped_queries_equal_repeated_keys() -> None:
    q, k, v = noise(2, 9, 6, 8), noise(2, 9, 2, 8, seed=1), noise(2, 9, 2, 8, seed=2)
    y = attention(q, k, v)
    for head in range(6):
        group = head // 3  # heads 0 to 2 read the first kv head, 3 to 5 the second
        logits = q[:, :, head] @ k[:, :, group].mT / math.sqrt(8)
        future = torch.ones(9, 9).triu(1).bool()
        weights = logits.masked_fill(future, -torch.inf).softmax(-1)
        torch.testing.assert_close(y[:, :, head], weights @ v[:, :, group], atol=1e-5, rtol=0)


def test_norm_makes_every_head_unit_on_average() -> None:
    q, k = parts.Norm(spec.Norm(), 8, None)(
        5 * noise(2, 3, 4, 8), noise(2, 3, 2, 8, seed=1), stream(3)
    )
    for x in (q, k):
        torch.testing.assert_close(x.square().mean(-1), torch.ones(x.shape[:-1]), atol=1e-4, rtol=0)


def test_gain_scales_queries_by_head() -> None:
    gain = parts.Gain(spec.Gain(init=2.0), heads=4)
    with torch.no_grad():
        gain.gain.weight.copy_(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    q, k = noise(2, 3, 4, 8), noise(2, 3, 2, 8, seed=1)
    scaled, same = gain(q, k, stream(3))
    assert torch.equal(scaled, torch.stack([(h + 1) * q[:, :, h] for h in range(4)], 2))
    assert torch.equal(same, k)


def test_value_residual_starts_as_identity_and_then_blends_in_the_first() -> None:
    first, second = (parts.ValueResidual(spec.ValueResidual()) for _ in range(2))
    v1, v2, x = noise(2, 3, 2, 8), noise(2, 3, 2, 8, seed=1), noise(2, 3, 4)
    with torch.no_grad():
        for part in (first, second):
            part.mix.weight.copy_(torch.tensor([1.0, 0.0]))
        s = stream(3)
        torch.testing.assert_close(first(v1, x, s), v1)
        torch.testing.assert_close(second(v2, x, s), v2)
        second.mix.weight.copy_(torch.tensor([3.0, 4.0]))
        s = stream(3)
        first(v1, x, s)
        torch.testing.assert_close(second(v2, x, s), (3 * v2 + 4 * v1) / 5)


def test_head_gate_starts_open_and_reads_the_first_channels() -> None:
    gate = parts.HeadGate(spec.HeadGate(inputs=3), heads=4, head_dim=8, width=5)
    y, v, x = noise(2, 3, 4, 8), noise(2, 3, 2, 8, seed=1), noise(2, 3, 5, seed=2)
    with torch.no_grad():
        gate.gate.weight.zero_()
        assert torch.equal(gate(y, v, x, stream(3)), y)
        gate.gate.weight.copy_(noise(4, 3, seed=3))
        wanted = y * 2 / (1 + torch.exp(-(x[..., :3] @ noise(4, 3, seed=3).T)))[..., None]
        torch.testing.assert_close(gate(y, v, x, stream(3)), wanted)


def test_exclude_self_leaves_nothing_along_the_own_value() -> None:
    y, v = noise(2, 5, 6, 8), noise(2, 5, 2, 8, seed=1)
    out = parts.ExcludeSelf(spec.ExcludeSelf(), 6)(y, v, noise(2, 5, 4), stream(5))
    for head in range(6):
        mine = v[:, :, head // 3]
        assert (out[:, :, head] * mine).sum(-1).abs().max() < 1e-5
        unit = mine / mine.norm(dim=-1, keepdim=True)
        kept = y[:, :, head] - (y[:, :, head] * unit).sum(-1, keepdim=True) * unit
        torch.testing.assert_close(out[:, :, head], kept, atol=1e-6, rtol=0)
    assert out.norm() > 0.5 * y.norm()


def test_exclude_self_survives_a_zero_value() -> None:
    y = noise(1, 2, 2, 4)
    part = parts.ExcludeSelf(spec.ExcludeSelf(), 2)
    assert torch.equal(part(y, torch.zeros(1, 2, 1, 4), y, stream(2)), y)


def test_mix_input_blends_by_channel() -> None:
    mix = parts.MixInput(spec.MixInput(), width=4)
    with torch.no_grad():
        mix.mix.weight.copy_(noise(2, 4, seed=3))
    s, x = stream(3), noise(2, 3, 4)
    keep, blend = noise(2, 4, seed=3)
    torch.testing.assert_close(mix(x, s), keep * x + blend * s.memory.x0)


def test_skip_is_a_gated_lerp() -> None:
    skip = parts.Skip(spec.Skip(source=1), width=4)
    assert skip.gate is not None
    scale, gate = noise(4, seed=3), noise(4, seed=4)
    with torch.no_grad():
        skip.scale.weight.copy_(scale)
        skip.gate.weight.copy_(gate)
    s, x = stream(3), noise(2, 3, 4)
    assert torch.equal(skip(x, s), x)  # visit 1 has not run
    s.memory.visits[1] = source = noise(2, 3, 4, seed=5)
    weight = torch.sigmoid(gate)
    torch.testing.assert_close(skip(x, s), (1 - weight) * scale * source + weight * x)


@pytest.mark.parametrize(
    ("act", "points"),
    [
        ("relu2", {-2.0: 0.0, 0.0: 0.0, 3.0: 9.0}),
        ("leaky_relu2", {-2.0: 1.0, 0.0: 0.0, 3.0: 9.0}),
        ("silu", {-2.0: -2 / (1 + math.e**2), 0.0: 0.0, 3.0: 3 / (1 + math.e**-3)}),
    ],
)
def test_activations(act: layer_spec.Activation, points: dict[float, float]) -> None:
    found = activation(torch.tensor(list(points)), act)
    torch.testing.assert_close(found, torch.tensor(list(points.values())))


def test_swiglu_gates_its_second_half_by_its_first() -> None:
    x = torch.tensor([-2.0, 3.0, 5.0, 7.0])
    gated = [5 * -2 / (1 + math.e**2), 7 * 3 / (1 + math.e**-3)]
    torch.testing.assert_close(activation(x, "swiglu"), torch.tensor(gated))
    feed = Dense(layer_spec.Dense(hidden=3, act="swiglu"), width=4)
    assert (feed.up.weight.shape, feed.down.weight.shape) == ((6, 4), (4, 3))


def test_rms_has_no_gain_and_works_in_float32() -> None:
    x = 300 * noise(3, 64)
    wanted = x / x.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(rms_norm(x), wanted)
    half = rms_norm((20 * x).half())  # squares of these overflow float16
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), wanted, atol=2e-3, rtol=2e-3)


def test_a_transform_replaces_the_weight_that_is_used() -> None:
    feed = Dense(layer_spec.Dense(hidden=3, act="relu2"), width=4)
    with torch.no_grad():
        feed.up.weight.copy_(noise(3, 4))
    x = noise(2, 4, seed=1)
    feed.up.weight_transform = lambda weight: 2 * weight
    torch.testing.assert_close(feed.up(x), 2 * x @ feed.up.weight.T)
