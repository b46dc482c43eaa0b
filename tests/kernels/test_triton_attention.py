"""Attention in Triton's interpreter, against the reference: values and gradients.

Shapes are such that no tile divides them.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from segpt.kernels.attention.cached import CachedCall, Ring
from segpt.kernels.attention.reference import AttentionCall, reference
from tests.kernels.near import CLOSE, noise

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.slow

Attend = Callable[[AttentionCall], Tensor]


def error(result: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest number or to 1."""
    assert result.shape == expected.shape
    result, expected = result.detach().double(), expected.detach().double()
    most = max(float(expected.abs().max()), 1.0)  # what should be zero may be a rounding error
    return float((result - expected).abs().max()) / most


CASES: dict[str, dict[str, Any]] = {
    "plain": {"queries": 37, "keys": 37},
    "grouped": {"queries": 40, "keys": 40, "heads": 4, "kv_heads": 2, "channels": 24},
    "cached": {"queries": 5, "keys": 77, "heads": 2, "kv_heads": 1},
    "windowed": {"queries": 100, "keys": 100, "window": 9},
    "windowed and cached": {"queries": 40, "keys": 130, "window": 33, "scale": 0.3},
    "documents": {"queries": 50, "keys": 50, "starts": (1, 30, 31, 40), "batch": 2},
    "documents, cached and windowed": {
        "queries": 40, "keys": 60, "starts": (25, 26, 45), "window": 12, "heads": 3, "kv_heads": 1
    },
    "a window of one": {"queries": 20, "keys": 20, "window": 1},
    "windowed and grouped": {"queries": 19, "keys": 37, "heads": 4, "window": 11, "scale": 0.4},
    "32 channels": {"queries": 45, "keys": 77, "channels": 32, "window": 40},
    "48 channels": {"queries": 45, "keys": 45, "channels": 48, "heads": 3, "kv_heads": 1},
    "64 channels": {"queries": 37, "keys": 70, "channels": 64, "starts": (5, 50)},
    "128 channels": {"queries": 35, "keys": 40, "channels": 128, "kv_heads": 1, "window": 30},
}  # fmt: skip


def inputs(name: str, dtype: torch.dtype) -> tuple[AttentionCall, Tensor]:
    """A call of a case, and the gradient by its result."""
    about = {"batch": 1, "heads": 2, "kv_heads": 2, "channels": 16, **CASES[name]}
    of_keys = about["batch"], about["keys"], about["kv_heads"], about["channels"]
    of_queries = about["batch"], about["queries"], about["heads"], about["channels"]
    documents = None
    if "starts" in about:
        documents = torch.zeros(*of_keys[:2], dtype=torch.int64)
        for row in range(about["batch"]):
            documents[row, [start + row for start in about["starts"]]] = 1
        documents = documents.cumsum(1)
    k, v = (noise(*of_keys, seed=seed, dtype=dtype) for seed in (1, 2))
    call = AttentionCall(
        noise(*of_queries, dtype=dtype), k, v, about.get("window"), documents, about.get("scale")
    )
    return call, noise(*of_queries, seed=3, dtype=dtype)


def descended(attend: Attend, call: AttentionCall, slope: Tensor) -> list[Tensor]:
    """The result, and the gradients by queries, keys and values."""
    q, k, v = (t.clone().requires_grad_() for t in (call.q, call.k, call.v))
    y = attend(call._replace(q=q, k=k, v=v))
    return [y, *torch.autograd.grad(y, (q, k, v), slope)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_parity(name: str, dtype: torch.dtype) -> None:
    from segpt.kernels.attention.triton import TritonAttention

    call, slope = inputs(name, dtype)
    expected = descended(reference, call, slope)
    for mine, theirs in zip(descended(TritonAttention().run, call, slope), expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert error(mine, theirs) <= CLOSE[dtype]


RINGS: dict[str, dict[str, Any]] = {
    "in order": {"queries": 5, "slots": 40, "length": 33, "begin": 0},
    "full, and turned": {"queries": 9, "slots": 37, "length": 37, "begin": 30, "window": 20},
    "the last slot is the newest": {"queries": 3, "slots": 20, "length": 8, "begin": 12},
    "half full": {"queries": 40, "slots": 90, "length": 70, "begin": 55, "window": 31},
    "documents": {"queries": 7, "slots": 50, "length": 49, "begin": 49, "starts": (3, 40, 44)},
}


@pytest.mark.parametrize("name", RINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_ring_of_keys(name: str, dtype: torch.dtype) -> None:
    from segpt.kernels.attention.triton import TritonCachedAttention

    about = {"window": None, "starts": None, **RINGS[name]}
    keys, values = (noise(2, about["slots"], 2, 24, seed=seed, dtype=dtype) for seed in (1, 2))
    ring = Ring(keys, values, about["begin"], about["length"])
    documents = None
    if about["starts"] is not None:
        documents = torch.zeros(2, about["length"], dtype=torch.int64)
        documents[:, list(about["starts"])] = 1
        documents = documents.cumsum(1)
    q = noise(2, about["queries"], 4, 24, dtype=dtype)
    call = CachedCall(q, ring, about["window"], documents, 0.3)
    in_order = AttentionCall(q, *ring.in_order(), about["window"], documents, 0.3)
    result = TritonCachedAttention().run(call)
    assert result.dtype == dtype
    assert error(result, reference(in_order)) <= CLOSE[dtype]


def test_a_ring_makes_no_gradients() -> None:
    from segpt.kernels.attention.triton import TritonCachedAttention

    q = noise(1, 2, 2, 16).requires_grad_()
    call = CachedCall(q, Ring(noise(1, 4, 2, 16), noise(1, 4, 2, 16), 0, 4))
    assert TritonCachedAttention().refusal(call) == "it makes no gradients"
    with torch.no_grad():
        assert TritonCachedAttention().refusal(call) is None


@pytest.mark.parametrize("fault", ["visible_without_window", "visible_without_documents"])
def test_a_mask_that_is_dropped_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from segpt.kernels.attention import triton_kernels
    from segpt.kernels.attention.triton import TritonAttention
    from tests.kernels import planted

    call, slope = inputs("documents, cached and windowed", torch.float32)
    expected = descended(reference, call, slope)
    monkeypatch.setattr(triton_kernels, "_visible", getattr(planted, fault))
    faulty = descended(TritonAttention().run, call, slope)
    for mine, theirs in zip(faulty, expected, strict=True):
        assert error(mine, theirs) > 10 * CLOSE[torch.float16]


def test_gradients_are_those_of_float64_and_of_finite_differences() -> None:
    from segpt.kernels.attention.triton import TritonAttention

    call, slope = inputs("windowed and grouped", torch.float32)
    mine = descended(TritonAttention().run, call, slope)
    exact = call._replace(q=call.q.double(), k=call.k.double(), v=call.v.double())
    theirs = descended(in_double, exact, slope.double())
    for result, expected in zip(mine, theirs, strict=True):
        assert error(result, expected) <= 2e-6
    for name, x, gradient in zip("qkv", call[:3], mine[1:], strict=True):
        assert isinstance(x, Tensor)
        step = 0.01 * noise(*x.shape, seed=7)
        after, before = (
            TritonAttention().run(AttentionCall(**{**call._asdict(), name: x + by}))
            for by in (step, -step)
        )  # fmt: skip
        rise = float(((after - before).double() * slope).sum()) / 2
        foreseen = float((gradient.double() * step).sum())
        assert rise == pytest.approx(foreseen, rel=2e-3, abs=1e-4)


def in_double(call: AttentionCall) -> Tensor:
    """The reference without float32: softmax of masked logits, one head of queries at a time."""
    q, k, v, window, _, scale = call
    groups, past = q.size(2) // k.size(2), k.size(1) - q.size(1)
    visible = torch.ones(q.size(1), k.size(1), dtype=torch.bool).tril(past)
    visible = visible if window is None else visible.triu(past + 1 - window)
    heads = []
    for head in range(q.size(2)):
        logits = q[:, :, head] @ k[:, :, head // groups].mT * (scale or q.size(3) ** -0.5)
        weights = logits.masked_fill(~visible, float("-inf")).softmax(-1)
        heads.append(weights @ v[:, :, head // groups])
    return torch.stack(heads, 2)


def test_a_grid_has_only_so_many_programs() -> None:
    from segpt.kernels.attention.triton import TritonAttention

    for batch, refusal in (
        (8191, None),
        (8192, "sequences times heads are up to 65,535, and these 65,536"),
    ):
        q = torch.empty(batch, 1, 8, 16, device="meta")
        assert TritonAttention().refusal(AttentionCall(q, q, q)) == refusal
