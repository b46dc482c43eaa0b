"""Queries and keys go to one kernel where one takes what the parts do, else from part to part."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from segpt.config import layer as layer_spec
from segpt.config import parts as spec
from segpt.errors import SegptError
from segpt.kernels import Backend, use
from segpt.kernels.query_key import QUERY_KEY, QueryKeyCall
from segpt.kernels.query_key.reference import reference
from segpt.model import parts
from segpt.model.attention import Attention
from tests.model.states import state_of

HEADS, KV_HEADS, CHANNELS, WIDTH = 4, 2, 8, 12


class Fused(Backend[QueryKeyCall, tuple[Tensor, Tensor]]):
    """A back end for steps that end with a gain; it counts its calls."""

    name, priority = "fused", 99

    def __init__(self) -> None:
        self.calls = 0

    def refusal(self, call: QueryKeyCall) -> str | None:
        return None if hasattr(call.steps[-1], "gain") else "the last step is no gain"

    def run(self, call: QueryKeyCall) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return reference(call)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Fused:
    backend = Fused()
    monkeypatch.setattr(QUERY_KEY, "backends", [backend])
    return backend


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attention_of(*kinds: str) -> Attention:
    made: dict[str, Callable[[], nn.Module]] = {
        "norm": lambda: parts.Norm(spec.Norm(), CHANNELS, None),
        "rope": lambda: parts.Rope(spec.Rope(dims=4, turn="left")),
        "neighbours": lambda: parts.Rope(spec.Rope(dims=8, pairs="neighbours", rates="half")),
        "gain": lambda: parts.Gain(spec.Gain(per="head"), HEADS),
        "layer gain": lambda: parts.Gain(spec.Gain(per="layer"), HEADS),
    }
    form = layer_spec.Attention(heads=HEADS, kv_heads=KV_HEADS, head_dim=CHANNELS)
    mixer = Attention(form, WIDTH, [made[kind]() for kind in kinds], [], [])
    for seed, weight in enumerate(mixer.parameters()):
        weight.data = noise(*weight.shape, seed=seed)
    return mixer


def run(mixer: Attention) -> list[Tensor]:
    """What a mixer makes of noise, and the gradients of its weights."""
    x = noise(2, 9, WIDTH, seed=99)
    y = mixer(x, state_of(x, begin=3))
    return [y, *torch.autograd.grad(y.square().sum(), list(mixer.parameters()))]


ORDERS = [
    ("norm", "rope", "gain"),
    ("rope", "norm", "layer gain"),
    ("neighbours", "gain"),
    ("norm", "gain"),
]


@pytest.mark.parametrize("kinds", ORDERS)
def test_one_kernel_or_the_parts_one_by_one(kinds: tuple[str, ...], fused: Fused) -> None:
    mixer = attention_of(*kinds)
    whole = run(mixer)
    assert fused.calls == 1
    with use(query_key="reference"):
        by_part = run(mixer)
    assert fused.calls == 1
    assert all(map(torch.equal, whole, by_part))  # the reference does what the parts do, bit by bit


def test_what_it_does_not_take_goes_from_part_to_part(fused: Fused) -> None:
    mixer = attention_of("gain", "norm")
    run(mixer)
    assert fused.calls == 0
    with use(query_key="fused"), pytest.raises(SegptError, match="the last step is no gain"):
        run(mixer)


def test_a_part_that_a_hook_waits_for_is_called(fused: Fused) -> None:
    mixer = attention_of("norm", "rope", "gain")
    seen: list[str] = []
    handle = mixer.query_key_parts[1].register_forward_hook(lambda *_: seen.append("called"))
    run(mixer)
    assert (seen, fused.calls) == (["called"], 0)
    handle.remove()
    run(mixer)
    assert (seen, fused.calls) == (["called"], 1)


def test_on_a_cpu_no_step_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: object) -> None:
        raise AssertionError("a step was made")

    monkeypatch.setattr(parts.Norm, "step", step)
    run(attention_of("norm", "rope"))
