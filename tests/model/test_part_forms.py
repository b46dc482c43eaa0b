"""The forms that the parts of attention come in, each against its formula in float64."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segpt.config import layer as layer_spec
from segpt.config import parts as spec
from segpt.config.base import decode, encode
from segpt.config.expand import expand
from segpt.config.head import Head
from segpt.config.model import ModelSpec
from segpt.config.route import Visit
from segpt.config.train import Scaling
from segpt.errors import SpecError
from segpt.model import parts
from segpt.model.attention import Attention
from segpt.model.build import build
from segpt.model.cache import KVCache
from segpt.model.model import Model
from segpt.model.params import Matrix, weights
from segpt.model.scaling import initialise
from segpt.model.state import ForwardState
from tests.model.states import state_of

Make = Callable[..., Model]
Draw = Callable[..., Tensor]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stream(time: int, start: int = 0) -> ForwardState:
    return state_of(noise(2, time, 4, seed=9), begin=start)


@pytest.mark.parametrize("per", ["head", "element"])
@pytest.mark.parametrize("inputs", [None, 3])
@pytest.mark.parametrize(("scale", "sharpness"), [(2.0, 1.0), (1.0, 1.0), (1.0, 0.5)])
def test_a_head_gate_is_a_sigmoid_of_what_attention_reads(
    per: Literal["head", "element"], inputs: int | None, scale: float, sharpness: float
) -> None:
    s = spec.HeadGate(inputs=inputs, per=per, scale=scale, sharpness=sharpness)
    gate = parts.HeadGate(s, heads=4, head_dim=8, width=5).double()
    rows = 4 if per == "head" else 32
    matrix = noise(rows, inputs or 5, seed=3)
    y, v, x = noise(2, 3, 4, 8), noise(2, 3, 2, 8, seed=1), noise(2, 3, 5, seed=2)
    with torch.no_grad():
        assert gate.gate.weight.shape == matrix.shape
        gate.gate.weight.copy_(matrix)
        found = gate(y, v, x, stream(3))
    for head in range(4):
        for channel in range(8):
            row = head if per == "head" else 8 * head + channel
            z = sharpness * (x[..., : inputs or 5] @ matrix[row])
            wanted = scale * y[:, :, head, channel] / (1 + torch.exp(-z))
            torch.testing.assert_close(found[:, :, head, channel], wanted)


@pytest.mark.parametrize("per", ["head", "element"])
def test_a_gate_of_scale_two_that_starts_at_zero_does_nothing(
    per: Literal["head", "element"],
) -> None:
    gate = parts.HeadGate(spec.HeadGate(inputs=None, per=per), heads=4, head_dim=8, width=5)
    assert gate.gate.zero
    y = noise(2, 3, 4, 8).float()
    with torch.no_grad():
        gate.gate.weight.zero_()
        assert torch.equal(gate(y, y, noise(2, 3, 5).float(), stream(3)), y)


def gated(**fields: Any) -> ModelSpec:
    return expand(
        {
            "vocab": 40,
            "width": 96,
            "context": 16,
            "depth": 2,
            "layer": {
                "mixer": {
                    "heads": 12,
                    "kv_heads": 4,
                    "head_dim": 8,
                    "output": [{"kind": "head_gate"} | fields],
                },
                "feed": None,
            },
        }
    )


@pytest.mark.parametrize(
    ("fields", "std"),
    [
        ({}, 0.0),
        ({"inputs": None, "per": "element", "std": None}, 96**-0.5),
        ({"inputs": 24, "per": "element", "std": None}, 24**-0.5),
        ({"inputs": None, "per": "element", "std": 0.005}, 0.005),
    ],
)
@pytest.mark.parametrize("matrix", ["orthogonal", "normal"])
def test_gates_start_with_their_deviation(
    fields: dict[str, Any], std: float, matrix: Literal["orthogonal", "normal"]
) -> None:
    model = build(gated(**fields))
    initialise(model, Scaling(matrix=matrix), 1)
    found = {w.name: w.tensor for w in weights(model)}["layers.1.mixer.body.output_parts.0.gate"]
    assert found.std().item() == pytest.approx(std, rel=0.05)


def test_gates_refuse_what_cannot_be() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"inputs": 0}, "at least one channel, got 0"),
        ({"scale": 0.0}, "scale and sharpness of a head gate are positive"),
        ({"std": -1.0}, "the std of a head gate is not negative"),
        ({"inputs": 97}, "a head gate reads 97 of 96 channels"),
    ]
    for fields, message in cases:
        with pytest.raises(SpecError, match=message):
            gated(**fields)


def test_a_residual_normalises_and_scales_what_it_mixes() -> None:
    s = spec.ValueResidual(scaled=True, first="mixed")
    first, second = (parts.ValueResidual(s).double() for _ in range(2))
    v1, v2, x = noise(2, 3, 2, 8), noise(2, 3, 2, 8, seed=1), noise(2, 3, 4)
    a, b, scale = torch.tensor([0.7, -0.4]), torch.tensor([1.2, 0.3]), (1.5, 0.8)
    with torch.no_grad():
        for part, mix, factor in ((first, a, scale[0]), (second, b, scale[1])):
            part.mix.weight.copy_(mix)
            assert part.scale is not None
            part.scale.weight.fill_(factor)
        run = stream(3)
        one, two = first(v1, x, run), second(v2, x, run)
    wanted = 1.5 * (0.7 - 0.4) * v1 / math.sqrt(0.7**2 + 0.4**2)
    torch.testing.assert_close(one, wanted, rtol=1e-6, atol=0)
    # the first visit hands on what it has made of its values
    wanted = 0.8 * (1.2 * v2 + 0.3 * wanted) / math.sqrt(1.2**2 + 0.3**2)
    torch.testing.assert_close(two, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("hands", ["raw", "mixed"])
def test_a_residual_by_lerp(hands: Literal["raw", "mixed"]) -> None:
    s = spec.ValueResidual(mode="lerp", init=0.5, first=hands)
    first, second = (parts.ValueResidual(s).double() for _ in range(2))
    assert first.mix.init == 0.5
    v1, v2, x = noise(2, 3, 2, 8), noise(2, 3, 2, 8, seed=1), noise(2, 3, 4)
    with torch.no_grad():
        first.mix.weight.fill_(0.3)
        second.mix.weight.fill_(0.3)
        run = stream(3)
        torch.testing.assert_close(first(v1, x, run), v1)
        torch.testing.assert_close(second(v2, x, run), 0.7 * v2 + 0.3 * v1)


def test_the_first_visit_decides_what_it_hands_on() -> None:
    v1, v2, x = noise(2, 3, 2, 8), noise(2, 3, 2, 8, seed=1), noise(2, 3, 4)
    found = {}
    hands: Literal["raw", "mixed"]
    for hands in ("raw", "mixed"):
        part = parts.ValueResidual(spec.ValueResidual(scaled=True, first=hands)).double()
        with torch.no_grad():
            part.mix.weight.copy_(torch.tensor([3.0, 4.0]))
            assert part.scale is not None
            part.scale.weight.fill_(2.0)
            run = stream(3)
            part(v1, x, run)
            found[hands] = part(v2, x, run)
    torch.testing.assert_close(found["raw"], 2 * (3 * v2 + 4 * v1) / 5)
    torch.testing.assert_close(found["mixed"], 2 * (3 * v2 + 4 * (2 * 7 * v1 / 5)) / 5)


def test_a_visit_may_blend_in_more() -> None:
    v1, v2, x = noise(2, 3, 2, 8), noise(2, 3, 2, 8, seed=1), noise(2, 3, 4)
    more = parts.LoopBlend().double()
    assert more.shift.init == 0
    mode: Literal["normalised", "lerp"]
    for mode, wanted in (
        ("normalised", (3 * v2 + (4 + 0.25) * v1) / math.hypot(3, 4.25)),
        ("lerp", 0.15 * v2 + 0.85 * v1),
    ):
        part = parts.ValueResidual(spec.ValueResidual(mode=mode)).double()
        with torch.no_grad():
            part.mix.weight.copy_(torch.tensor([3.0, 4.0] if mode == "normalised" else [0.6]))
            more.shift.weight.fill_(0.25)
            run = stream(3)
            run.memory.values = v1
            assert more(x, run) is x
            torch.testing.assert_close(part(v2, x, run), wanted, rtol=1e-6, atol=1e-7)


def test_blending_belongs_to_one_visit(variants: ModelSpec, make: Make, tokens: Draw) -> None:
    """A visit without it goes by the layer alone, whatever came before."""
    visits = [dataclasses.replace(v, since=0.0, join=()) for v in variants.visits]
    visits[1] = dataclasses.replace(visits[1], join=(spec.LoopBlend(),))
    blended = dataclasses.replace(variants, visits=tuple(visits))
    model = make(blended)
    ids = tokens(blended)
    with torch.no_grad():
        before = model(ids)
        shift = {w.name: w.tensor for w in weights(model)}["visits.1.0.shift"]
        assert [visit.layer for visit in visits] == [0, 1, 2, 3, 1, 2, 3, 4]
        seen = []
        hook = model.layers[1].register_forward_pre_hook(lambda m, i: seen.append(i[1].visit.blend))
        shift.fill_(5.0)
        after = model(ids)
        hook.remove()
    assert [None if blend is None else blend.item() for blend in seen] == [5.0, None]
    assert not torch.equal(before, after)
    visits[3] = dataclasses.replace(visits[3], join=(spec.LoopBlend(),))
    with pytest.raises(SpecError, match=r"visits\[3\] has a loop_blend, but no value residual"):
        dataclasses.replace(variants, visits=tuple(visits))


def test_a_lerp_has_no_scale() -> None:
    with pytest.raises(SpecError, match="a lerp has no scale; leave scaled out"):
        spec.ValueResidual(mode="lerp", scaled=True)


def test_one_gain_for_all_heads_of_a_layer() -> None:
    gain = parts.Gain(spec.Gain(init=5.0, per="layer"), heads=4).double()
    assert gain.gain.weight.shape == (1, 1)
    with torch.no_grad():
        gain.gain.weight.fill_(5.0)
    q, k = noise(2, 3, 4, 8), noise(2, 3, 2, 8, seed=1)
    scaled, same = gain(q, k, stream(3))
    assert torch.equal(scaled, 5 * q)
    assert torch.equal(same, k)


@pytest.mark.parametrize("start", [0, 1000])
def test_half_truncated_rope_turns_only_half_of_its_pairs(start: int) -> None:
    rope = parts.Rope(spec.Rope(dims=16, base=1024.0, rates="half"))
    q, k = noise(2, 40, 4, 16), noise(2, 40, 2, 16, seed=1)
    found, keys = rope(q, k, stream(40, start))
    rates = [1024.0 ** (-i / 3) for i in range(4)] + [0.0] * 4
    assert rates[0] == 1
    assert rates[3] == pytest.approx(1 / 1024)
    for given, turned in ((q, found), (k, keys)):
        for i, rate in enumerate(rates):  # channels i and i + 8, over the whole head
            angle = torch.arange(start, start + 40).double()[:, None] * rate
            a, b = given[..., i], given[..., i + 8]
            wanted = a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin()
            # the rates are kept in float32
            torch.testing.assert_close(turned[..., i], wanted[0], atol=2e-4, rtol=0)
            torch.testing.assert_close(turned[..., i + 8], wanted[1], atol=2e-4, rtol=0)
        assert torch.equal(turned[..., 4:8], given[..., 4:8])
        assert torch.equal(turned[..., 12:], given[..., 12:])


@pytest.mark.parametrize("turn", ["left", "right"])
@pytest.mark.parametrize("dims", [4, 8])
def test_neighbours_turn_as_halves_do(turn: Literal["left", "right"], dims: int) -> None:
    """Pairing is a permutation of channels: even ones first, then odd ones."""
    halves = parts.Rope(spec.Rope(dims=dims, turn=turn))
    neighbours = parts.Rope(spec.Rope(dims=dims, turn=turn, pairs="neighbours"))
    order = torch.tensor([*range(0, dims, 2), *range(1, dims, 2), *range(dims, 8)])
    q, k = noise(2, 9, 4, 8), noise(2, 9, 2, 8, seed=1)
    wanted = halves(q[..., order], k[..., order], stream(9, 5))
    found = neighbours(q, k, stream(9, 5))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine[..., order], theirs)


def test_half_a_rope_needs_an_even_number_of_pairs() -> None:
    with pytest.raises(SpecError, match="so dims is a multiple of 4; got 6"):
        spec.Rope(dims=6, rates="half")


@pytest.mark.parametrize("alpha", [0.0, 0.3, 20.0])
def test_exclude_self_takes_away_as_much_as_it_has_learned(alpha: float) -> None:
    part = parts.ExcludeSelf(spec.ExcludeSelf(gated=True), 6).double()
    assert part.alpha is not None
    assert part.alpha.init == 0
    learned = alpha * torch.tensor([1.0, 2, 3, -1, -2, -3]).double()
    with torch.no_grad():
        part.alpha.weight.copy_(learned[:, None])
    y, v = noise(2, 5, 6, 8), noise(2, 5, 2, 8, seed=1)
    found = part(y, v, noise(2, 5, 4), stream(5))
    for head in range(6):
        unit = v[:, :, head // 3] / v[:, :, head // 3].norm(dim=-1, keepdim=True)
        own = (y[:, :, head] * unit).sum(-1, keepdim=True) * unit
        wanted = y[:, :, head] - torch.tanh(learned[head]) * own
        torch.testing.assert_close(found[:, :, head], wanted)
    if alpha == 0:
        assert torch.equal(found, y)


@pytest.mark.parametrize(("scale", "factor"), [(None, 8**-0.5), (0.12, 0.12)])
def test_attention_scales_its_logits(scale: float | None, factor: float) -> None:
    """Six query heads share two of keys and values, three each."""
    s = layer_spec.Attention(heads=6, kv_heads=2, head_dim=8, scale=scale)
    mixer = Attention(s, 16, [], [], []).double()
    with torch.no_grad():
        for i, matrix in enumerate(m for m in mixer.modules() if isinstance(m, Matrix)):
            matrix.weight.copy_(noise(*matrix.weight.shape, seed=i) / 4)
        x = noise(2, 7, 16, seed=9)
        found = mixer(x, stream(7))
        q, k, v = (F.linear(x, m.weight) for m in (mixer.query, mixer.key, mixer.value))
        heads = []
        for head in range(6):
            mine, theirs = slice(8 * head, 8 * head + 8), slice(head // 3 * 8, head // 3 * 8 + 8)
            logits = factor * q[..., mine] @ k[..., theirs].mT
            hidden = torch.ones(7, 7).triu(1).bool()
            heads.append(logits.masked_fill(hidden, -torch.inf).softmax(-1) @ v[..., theirs])
        wanted = F.linear(torch.cat(heads, -1), mixer.out.weight)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_the_scale_of_attention_is_positive() -> None:
    with pytest.raises(SpecError, match="the scale of attention is positive or null, got 0"):
        layer_spec.Attention(heads=1, kv_heads=1, head_dim=2, scale=0.0)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("start", [0, 5, 1000])
def test_a_cache_knows_its_positions_with_and_without_norms(
    normed: bool, start: int, make: Make, tokens: Draw
) -> None:
    rope = {"kind": "rope", "dims": 8, "turn": "left"}
    model = make(
        expand(
            {
                "vocab": 40,
                "width": 32,
                "context": 32,
                "depth": 2,
                "layer": {
                    "mixer": {
                        "heads": 4,
                        "kv_heads": 2,
                        "head_dim": 8,
                        "query_key": [rope, "norm"] if normed else [rope],
                    },
                    "feed": {"hidden": 40},
                },
            }
        )
    )
    ids = tokens(model.spec, time=20)
    cache: KVCache = {}
    with torch.no_grad():
        whole = model(ids, start=start)
        pieces = [model(ids[:, :11], cache, start)]
        pieces += [model(ids[:, i : i + 1], cache, start + i) for i in range(11, 20)]
        lost = model(ids[:, 11:12], {**cache}, start)  # as if the cache held nothing
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-5)
    assert (lost - whole[:, 11:12]).abs().max() > 1e-3


def test_rope_and_norm_commute(make: Make, tokens: Draw) -> None:
    """A rotation keeps norms, so the order of the two in a slot is free."""
    recipe: dict[str, Any] = {"vocab": 40, "width": 32, "context": 32, "depth": 1}
    found = []
    for order in (["norm", "rope"], ["rope", "norm"]):
        query_key = [{"kind": k} | ({"dims": 8} if k == "rope" else {}) for k in order]
        mixer = {"heads": 4, "kv_heads": 4, "head_dim": 8, "query_key": query_key}
        model = make(expand(recipe | {"layer": {"mixer": mixer, "feed": None}}))
        with torch.no_grad():
            found.append(model(tokens(model.spec)))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_what_is_new_is_not_spelled_out_while_it_is_not_used() -> None:
    for part in (
        spec.HeadGate(),
        spec.ValueResidual(),
        spec.ExcludeSelf(),
        spec.Gain(),
        spec.Rope(dims=8),
        layer_spec.Attention(heads=1, kv_heads=1, head_dim=2),
        Head(),
        Visit(layer=0),
    ):
        known = {
            "head_gate": {"inputs"},
            "value_residual": set(),
            "exclude_self": set(),
            "gain": {"init"},
            "rope": {"dims", "base", "turn"},
            "attention": {"heads", "kv_heads", "head_dim", "query_key", "value", "output"},
            "head": {"tied", "softcap"},
            "visit": {"layer", "join", "since"},
        }
        stored = encode(part)
        assert stored.keys() - {"kind"} == known[stored["kind"]]
        assert decode(type(part), stored) == part
        assert dataclasses.is_dataclass(part)


@pytest.mark.slow
def test_compiling_variants_changes_no_bit(variants: ModelSpec, make: Make, tokens: Draw) -> None:
    model = make(variants)
    ids = tokens(variants)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(ids), model(ids))
    torch.compiler.reset()
