"""Triton's updates of weights in its interpreter, against the references.

Tensors are of shapes that no tile divides, some of them nowhere near an aligned address.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from segpt.kernels.updates.reference import (
    AdamUpdateCall,
    MuonMomentumCall,
    MuonUpdateCall,
    adam_reference,
    momentum_reference,
    muon_reference,
)
from tests.kernels.near import CLOSE, noise

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.slow

TYPES = [torch.float32, torch.float16]


def unaligned(x: Tensor) -> Tensor:
    """The same numbers, a few bytes after where a tensor usually begins."""
    memory = torch.empty(x.numel() + 1, dtype=x.dtype)
    return memory[1:].view(x.shape).copy_(x)


def near(result: Tensor, expected: Tensor, within: float) -> None:
    assert result.shape == expected.shape
    result, expected = result.float(), expected.float()
    most = max(float(expected.abs().max()), 1e-3)
    assert float((result - expected).abs().max()) <= within * most


def float32(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.float().clone() for tensor in tensors]


def copies(tensors: list[Tensor]) -> list[Tensor]:
    """Where each tensor lies stays as it is: aligned or not."""
    return [unaligned(x) if x.data_ptr() % 16 else x.clone() for x in tensors]


def adam_call(parts: list[list[Tensor]], *about: Any) -> AdamUpdateCall:
    return AdamUpdateCall(*parts, *about)  # type: ignore[arg-type]


SHAPES = [(3, 5), (1,), (1300,), (1024,), (7, 3, 90), (), (64, 32)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("cautious", [False, True])
def test_adam(dtype: torch.dtype, cautious: bool) -> None:
    from segpt.kernels.updates.triton import TritonAdamUpdate

    tensors = [
        [noise(*shape, seed=10 * part + i, dtype=dtype) for i, shape in enumerate(SHAPES)]
        for part in range(4)
    ]
    tensors[3] = [square.abs() for square in tensors[3]]
    tensors[0][2] = unaligned(tensors[0][2])
    expected, result = [float32(part) for part in tensors], [copies(part) for part in tensors]
    counts = [1.0, 7.0, 7.0, 1.0, 7.0, 500.0, 7.0]
    about = (counts, 0.02, 0.1, 0.9, 0.95, 1e-8, cautious)
    adam_reference(adam_call(expected, *about))
    call = adam_call(result, *about)
    assert TritonAdamUpdate().refusal(call) is None
    TritonAdamUpdate().run(call)
    for mine, theirs, before in zip(result, expected, tensors, strict=True):
        for one, other, old in zip(mine, theirs, before, strict=True):
            near(one, other, CLOSE[dtype])
            assert (before is tensors[1]) == torch.equal(one, old)  # all but gradients change


def test_adam_goes_on_when_gradients_move() -> None:
    from segpt.kernels.updates.triton import TritonAdamUpdate

    states = [[noise(300, seed=i), noise(40, 7, seed=i).abs()] for i in range(3)]
    states[2] = [x.abs() for x in states[2]]
    mine, theirs = ([copies(part) for part in states] for _ in range(2))
    for step in range(1, 4):
        grads = [noise(300, seed=20 + step), noise(40, 7, seed=30 + step)]
        for update, (weights, means, squares) in (
            (TritonAdamUpdate().run, mine),
            (adam_reference, theirs),
        ):
            about = ([float(step)] * 2, 0.01, 0.1, 0.9, 0.99, 1e-3)
            update(AdamUpdateCall(weights, copies(grads), means, squares, *about))
    for part, expected in zip(mine, theirs, strict=True):
        for one, other in zip(part, expected, strict=True):
            near(one, other, 1e-5)


def test_what_adam_does_not_take() -> None:
    from segpt.kernels.updates.triton import TritonAdamUpdate

    x = noise(6, 4)
    about = ([1.0], 0.01, 0.1, 0.9, 0.99, 1e-3)
    refusal = TritonAdamUpdate().refusal
    assert "not contiguous" in str(refusal(AdamUpdateCall([x], [noise(4, 6).T], [x], [x], *about)))
    assert "float64" in str(refusal(AdamUpdateCall([x.double()], [x], [x], [x], *about)))


# By name: stacked dimensions, the rows of the parts of a matrix, columns, how many matrices.
MATRICES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, int]] = {
    "one": ((), (70,), 33, 1),
    "several": ((), (9,), 70, 2),
    "joint": ((), (16, 5, 17), 34, 2),
    "stacked and joint": ((2,), (5, 8), 40, 2),
    "aligned": ((), (64,), 32, 1),
}


def parts(name: str, seed: int, dtype: torch.dtype) -> list[Tensor]:
    stacked, rows, columns, matrices = MATRICES[name]
    shapes = [(*stacked, height, columns) for _ in range(matrices) for height in rows]
    return [noise(*shape, seed=seed + i, dtype=dtype) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize(
    ("nesterov", "dtype"), [(False, torch.float32), (True, torch.float32), (True, torch.float16)]
)
@pytest.mark.parametrize("name", MATRICES)
def test_momentum(name: str, nesterov: bool, dtype: torch.dtype) -> None:
    from segpt.kernels.updates.triton import TritonMuonMomentum

    momenta, grads = parts(name, 0, dtype), [*parts(name, 50, dtype)]
    about = len(MATRICES[name][1]), 0.95, nesterov
    gone = len(grads) - 1
    known = [None if i == gone and gone else grad for i, grad in enumerate(grads)]
    wide = [None if grad is None else grad.float() for grad in known]
    expected_momenta = float32(momenta)
    expected = momentum_reference(MuonMomentumCall(expected_momenta, wide, *about))
    call = MuonMomentumCall(momenta, known, *about)
    assert TritonMuonMomentum().refusal(call) is None
    stack = TritonMuonMomentum().run(call)
    assert stack.dtype == dtype
    near(stack, expected, CLOSE[dtype])
    for one, other in zip(momenta, expected_momenta, strict=True):
        near(one, other, CLOSE[dtype])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("neurons", [None, "row", "column"])
@pytest.mark.parametrize("name", MATRICES)
def test_muon(name: str, neurons: str | None, dtype: torch.dtype) -> None:
    from segpt.kernels.updates.triton import TritonMuonUpdate

    stacked, rows, columns, matrices = MATRICES[name]
    out = sum(rows)
    lines = (*stacked, out, 1) if neurons == "row" else (*stacked, 1, columns)
    seconds = [noise(*lines, seed=90 + i).square() for i in range(matrices)] if neurons else []
    ways = ((False, True), (True, False)) if dtype == torch.float32 else ((True, True),)
    for transposed, cautious in ways:
        update = noise(matrices, *stacked, out, columns, seed=7, dtype=dtype)
        if transposed:  # as that of a tall matrix is
            update = update.mT.contiguous().mT
        weights = parts(name, 0, dtype)
        expected, moments = float32(weights), copies(seconds)
        about = 0.95, 0.02, 0.1, cautious
        muon_reference(MuonUpdateCall(expected, update.float(), moments, *about))
        call = MuonUpdateCall(weights, update, copies(seconds), *about)
        assert TritonMuonUpdate().refusal(call) is None
        TritonMuonUpdate().run(call)
        results, wanted = [*weights, *call.seconds], [*expected, *moments]
        for one, other in zip(results, wanted, strict=True):
            near(one, other, CLOSE[dtype] if one.dtype == dtype else 1e-5)
