"""The loss of tokens in Triton's interpreter, against the reference: values and gradients.

Every cap, with and without smoothing and z-loss, in shapes that no tile divides.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from segpt.kernels.cross_entropy import (
    AlgebraicCap,
    AsymmetricCap,
    Cap,
    LinearHead,
    Loss,
    LossCall,
    NatsCall,
    Readout,
    SigmoidCap,
    TanhCap,
    capped,
)
from segpt.kernels.cross_entropy.reference import loss_reference, nats_reference
from tests.kernels.near import noise

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.slow

CAPS: dict[str, Cap | None] = {
    "none": None,
    "tanh": TanhCap(7.0),
    "sigmoid": SigmoidCap(12.0, 2.5),
    "algebraic": AlgebraicCap(5.0),
    "asymmetric": AsymmetricCap(torch.tensor([6.0, 3.0])),
}


def near(result: Tensor, expected: Tensor, within: float) -> None:
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    result, expected = result.detach().float(), expected.detach().float()
    most = float(expected.abs().max())
    assert float((result - expected).abs().max()) <= within * most + 1e-12


def readout(weight: Tensor, scale: float, cap: Cap | None) -> Readout:
    def logits(x: Tensor) -> Tensor:
        y = scale * (x @ weight.to(x.dtype).T).float()
        return y if cap is None else capped(y, cap)

    return Readout(logits, len(weight), LinearHead(weight, scale, cap))


def call_of(
    rows: int = 70, vocab: int = 131, width: int = 20, **changes: Any
) -> tuple[LossCall, list[Tensor]]:
    """A call, and the leaves that learn: the stream, the weight, and what the cap learns."""
    cap, dtype = changes.pop("cap", None), changes.pop("dtype", torch.float32)
    leaves = [noise(rows, width, dtype=dtype), 0.5 * noise(vocab, width, seed=1)]
    if isinstance(cap, AsymmetricCap):
        leaves.append(cap.caps.clone())
    leaves = [leaf.requires_grad_() for leaf in leaves]
    if isinstance(cap, AsymmetricCap):
        cap = AsymmetricCap(leaves[2])
    share = torch.rand(rows, generator=torch.Generator().manual_seed(3))
    share[: rows // 3] = 0  # what does not count
    targets = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(2))
    head = readout(leaves[1], changes.pop("scale", 0.7), cap)
    about = {"z_loss": 0.0, "smoothing": 0.0, **changes}
    return LossCall(leaves[0], head, targets, share / share.sum(), **about), leaves


def descended(loss: Callable[[LossCall], Loss], **about: Any) -> list[Tensor]:
    """The three numbers of a loss, and its gradients."""
    call, leaves = call_of(**about)
    result = loss(call)
    return [*result, *torch.autograd.grad(2.5 * result.total, leaves)]


def same(within: float, **about: Any) -> None:
    from segpt.kernels.cross_entropy.triton import TritonLoss

    pairs = descended(TritonLoss().run, **about), descended(loss_reference, **about)
    for mine, theirs in zip(*pairs, strict=True):
        near(mine, theirs, within)


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_values_and_gradients(
    cap: str, smoothing: float, z_loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segpt.kernels.cross_entropy import triton

    monkeypatch.setattr(triton, "SLOPES", 50 * 131)  # so that there are several chunks of rows
    same(2e-5, cap=CAPS[cap], smoothing=smoothing, z_loss=z_loss)


@pytest.mark.parametrize("cap", CAPS)
def test_half_precision(cap: str) -> None:
    same(6e-3, cap=CAPS[cap], smoothing=0.1, z_loss=0.01, dtype=torch.float16)


@pytest.mark.parametrize(
    ("rows", "vocab", "width", "scale"), [(33, 200, 40, 0.5), (65, 64, 64, 2.0), (1, 7, 3, 1.0)]
)
def test_shapes_that_no_tile_divides(rows: int, vocab: int, width: int, scale: float) -> None:
    same(2e-5, rows=rows, vocab=vocab, width=width, scale=scale, cap=TanhCap(30.0), z_loss=0.01)


def test_what_only_some_leaves_learn() -> None:
    from segpt.kernels.cross_entropy.triton import TritonLoss

    call, leaves = call_of(cap=AsymmetricCap(torch.tensor([6.0, 3.0])))
    wanted = torch.autograd.grad(loss_reference(call).total, leaves)
    for i, leaf in enumerate(leaves):
        for other in leaves:
            other.requires_grad_(other is leaf)
        (result,) = torch.autograd.grad(TritonLoss().run(call).total, [leaf])
        near(result, wanted[i], 2e-5)
    for leaf in leaves:
        leaf.requires_grad_(False)
    assert not TritonLoss().run(call).total.requires_grad


@pytest.mark.parametrize("cap", ["none", "asymmetric"])
def test_rows_that_do_not_count_multiply_nothing(cap: str) -> None:
    from segpt.kernels.cross_entropy.triton import TritonLoss

    call, leaves = call_of(rows=130, width=8, cap=CAPS[cap])
    share = torch.zeros(130)
    share[70:90] = 1 / 20  # there is a tile in which no row counts
    with torch.no_grad():
        leaves[0][5] *= 200  # as its log Z overflows what is exponentiated
    result = TritonLoss().run(call._replace(share=share, smoothing=0.1))
    gradients = torch.autograd.grad(result.total, leaves)
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert not bool(gradients[0][:70].any())
    expected = loss_reference(call._replace(share=share, smoothing=0.1))
    for mine, theirs in zip(gradients, torch.autograd.grad(expected.total, leaves), strict=True):
        near(mine, theirs, 2e-5)


@pytest.mark.parametrize("cap", [None, TanhCap(30.0), AsymmetricCap(torch.tensor([30.0, 20.0]))])
def test_saturated_logits(cap: Cap | None) -> None:
    same(5e-5, cap=cap, scale=40.0, smoothing=0.1)


@pytest.mark.parametrize("cap", CAPS)
def test_nats(cap: str) -> None:
    from segpt.kernels.cross_entropy.triton import TritonNats

    hidden, weight = noise(3, 50, 24), noise(200, 24, seed=1)
    targets = torch.randint(200, (3, 50), generator=torch.Generator().manual_seed(2))
    call = NatsCall(hidden, readout(weight, 1.0, CAPS[cap]), targets)
    near(TritonNats().run(call), nats_reference(call), 1e-5)


def test_nats_have_no_gradients_also_for_learned_caps() -> None:
    from segpt.kernels.cross_entropy.triton import TritonNats

    caps = torch.tensor([6.0, 3.0], requires_grad=True)
    head = readout(noise(9, 4, seed=1), 1.0, AsymmetricCap(caps))
    call = NatsCall(noise(5, 4), head, torch.arange(5))
    assert TritonNats().refusal(call) == "it has no gradients"
    with torch.no_grad():
        assert TritonNats().refusal(call) is None


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """How many numbers were allocated, the same memory counted once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers: dict[int, int] = {}
        self._kept: list[Tensor] = []  # so that no memory is given out twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in (result,) if isinstance(result, Tensor) else ():
            storage = tensor.untyped_storage()
            self.numbers[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
            self._kept.append(tensor)
        return result


@pytest.mark.parametrize("cap", ["tanh", "asymmetric"])
def test_memory_is_less_than_one_number_of_each_logit(
    cap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segpt.kernels.cross_entropy import triton

    rows, vocab, width = 128, 400, 4
    monkeypatch.setattr(triton, "SLOPES", 32 * vocab)
    call, _ = call_of(rows, vocab, width, cap=CAPS[cap], smoothing=0.1, z_loss=0.01)
    with Allocations() as watched:
        loss = triton.TritonLoss().run(call)
        loss.total.backward()  # type: ignore[no-untyped-call]
    everything = sum(watched.numbers.values())  # also what was freed on the way
    assert 32 * vocab <= everything < rows * vocab
