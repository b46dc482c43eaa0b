"""Norm, rotation and gain of queries and keys: one kernel does what the parts of a model do."""

from typing import Any

import pytest
import torch
from torch import Tensor

from segpt.kernels import query_key, rms_norm, rotary
from segpt.kernels.query_key import GainStep, NormStep, QueryKeyCall, RotationStep, Step
from segpt.kernels.query_key.reference import reference
from tests.kernels.near import CLOSE, noise


def rotation(time: int, dims: int, *, neighbours: bool, dtype: torch.dtype) -> RotationStep:
    angle = noise(time, 1, dims // 2, seed=1)
    return RotationStep(angle.cos().to(dtype), angle.sin().to(dtype), neighbours)


# batch, time, heads, kv_heads, channels; then what turns, and how many gains there are
CASES: dict[str, tuple[tuple[int, ...], str, dict[str, Any]]] = {
    "all": ((2, 37, 2, 1, 16), "norm rotation gain", {"dims": 16}),
    "part of the channels": ((1, 21, 3, 1, 48), "norm rotation gain", {"dims": 16}),
    "neighbours": ((2, 9, 3, 1, 24), "norm rotation gain", {"dims": 12, "neighbours": True}),
    "a norm after the rotation": ((1, 33, 2, 2, 32), "rotation norm gain", {"dims": 32}),
    "a gain between": ((1, 19, 2, 1, 64), "norm gain rotation", {"dims": 32}),
    "one gain for all": ((3, 5, 5, 1, 20), "norm rotation gain", {"dims": 8, "gains": 1}),
    "a norm alone": ((2, 17, 2, 1, 40), "norm", {}),
    "a rotation alone": ((2, 9, 2, 1, 128), "rotation", {"dims": 64}),
    "a gain, then a rotation": ((1, 19, 3, 3, 8), "gain rotation", {"dims": 8}),
    "a norm and a gain": ((1, 19, 3, 3, 7), "norm gain", {}),
    "another epsilon": ((1, 19, 3, 1, 8), "norm rotation gain", {"dims": 8, "eps": 0.3}),
    "one position": ((1, 1, 1, 1, 2), "norm rotation gain", {"dims": 2}),
}


def call_of(name: str, dtype: torch.dtype) -> QueryKeyCall:
    (batch, time, heads, kv_heads, channels), order, about = CASES[name]
    steps: dict[str, Step] = {"norm": NormStep(about.get("eps"))}
    steps["gain"] = GainStep(1.5 + noise(about.get("gains", heads), 1, seed=2).to(dtype))
    if "dims" in about:
        steps["rotation"] = rotation(
            time, about["dims"], neighbours=about.get("neighbours", False), dtype=dtype
        )
    q = noise(batch, time, heads, channels, seed=3, dtype=dtype)
    k = noise(batch, time, kv_heads, channels, seed=4, dtype=dtype)
    return QueryKeyCall(q, k, tuple(steps[word] for word in order.split()))


def descended(run: Any, call: QueryKeyCall, dtype: torch.dtype) -> list[Tensor]:
    """Both results, and the gradients by queries, keys and the gain, if there is one."""
    q, k = (t.to(dtype).requires_grad_() for t in call[:2])
    leaves, steps = [q, k], []
    for step in call.steps:
        if isinstance(step, GainStep):
            leaves.append(step.gain.to(dtype).requires_grad_())
            step = GainStep(leaves[-1])
        elif isinstance(step, RotationStep):
            step = RotationStep(step.cos.to(dtype), step.sin.to(dtype), step.neighbours)
        steps.append(step)
    results = run(QueryKeyCall(q, k, tuple(steps)))
    slopes = [noise(*t.shape, seed=5 + j).to(call.q.dtype).to(dtype) for j, t in enumerate(results)]
    return [*results, *torch.autograd.grad(results, leaves, slopes)]


def error(result: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest number or to 1."""
    assert result.shape == expected.shape
    result, expected = result.detach().double(), expected.detach().double()
    return float((result - expected).abs().max()) / max(float(expected.abs().max()), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_parity_in_the_interpreter(name: str, dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from segpt.kernels.query_key.triton import TritonQueryKey

    call = call_of(name, dtype)
    assert TritonQueryKey().refusal(call) is None
    mine = descended(TritonQueryKey().run, call, dtype)
    theirs = descended(reference, call, torch.float32)  # of the same rounded inputs
    for result, expected in zip(mine, theirs, strict=True):
        assert result.dtype == dtype
        assert error(result, expected) <= CLOSE[dtype]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_is_the_operations_one_by_one(name: str, dtype: torch.dtype) -> None:
    call = call_of(name, dtype)
    q, k = call.q, call.k
    for step in call.steps:
        if isinstance(step, NormStep):
            q, k = rms_norm(q, step.eps), rms_norm(k, step.eps)
        elif isinstance(step, RotationStep):
            cos, sin, neighbours = step
            q, k = (rotary(t, cos, sin, neighbours=neighbours) for t in (q, k))
        else:
            q = q * step.gain
    for result, expected in zip(query_key(call.q, call.k, *call.steps), (q, k), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ("gain norm", "a gain comes before the norm"),
        ("norm norm", "it does no step twice"),
        ("gain", "there is neither a norm nor a rotation"),
        ("", "there is neither a norm nor a rotation"),
    ],
)
def test_what_the_kernel_does_not_express_is_refused(steps: str, why: str) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from segpt.kernels.query_key.triton import TritonQueryKey

    known: dict[str, Step] = {"norm": NormStep(), "gain": GainStep(torch.ones(2, 1))}
    q = noise(1, 3, 2, 8)
    call = QueryKeyCall(q, q, tuple(known[word] for word in steps.split()))
    assert TritonQueryKey().refusal(call) == why
    gains = NormStep(None, torch.ones(8), torch.ones(8))
    assert "for each channel" in str(TritonQueryKey().refusal(QueryKeyCall(q, q, (gains,))))
    double = QueryKeyCall(q.double(), q.double(), (NormStep(),))
    assert "not torch.float64" in str(TritonQueryKey().refusal(double))
