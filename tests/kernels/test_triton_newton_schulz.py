"""Newton-Schulz in Triton's interpreter: plain steps, and those by the Gram matrix."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from segpt.kernels.launch import Launch
from segpt.kernels.newton_schulz import Coefficients, gram
from segpt.kernels.newton_schulz.reference import NewtonSchulzCall, reference
from segpt.kernels.tiles import compiled_for
from segpt.train.optim.muon import CLASSIC, FIVE, POLAR, SEVEN

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.slow

STEPS: dict[str, Coefficients] = {
    "classic": (CLASSIC,) * 5,
    "five": FIVE,
    "seven": SEVEN,
    "polar": POLAR,
}
CUTS = {"classic": (3, 2), "five": (2, 3), "seven": (2, 2, 3), "polar": (2, 3)}
HALF = torch.float16


def kernels() -> Any:
    from segpt.kernels.newton_schulz import triton

    return triton


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrices(*shape: int) -> Tensor:
    x = noise(*shape)
    return x / (1.02 * torch.linalg.matrix_norm(x, keepdim=True))


def spread(rows: int, columns: int, decades: float) -> Tensor:
    """(1, rows, columns) rounded to bfloat16, of singular values from 1 down to 10^-decades."""
    u, _, v = torch.linalg.svd(noise(rows, columns).double(), full_matrices=False)
    x = u * torch.logspace(0, -decades, rows, dtype=torch.float64) @ v
    return (x / (1.02 * x.norm())).bfloat16()[None]


def off(result: Tensor, wanted: Tensor) -> float:
    """The spectral norm of the difference, relative to what is wanted."""
    difference, size = (
        float(torch.linalg.matrix_norm(t.double(), 2).max())
        for t in (result.double() - wanted.double(), wanted)
    )
    return difference / size


@pytest.mark.parametrize(
    ("shape", "name"),
    [((2, 10, 33), name) for name in STEPS]
    + [((1, 70, 70), "polar"), ((1, 64, 130), "classic"), ((1, 1, 5), "seven")],
)
def test_plain_steps(shape: tuple[int, ...], name: str) -> None:
    call = NewtonSchulzCall(matrices(*shape), STEPS[name][:2])
    result = kernels().TritonNewtonSchulz().run(call)
    assert off(result, reference(call)) < 1e-5


def test_plain_steps_of_half_precision() -> None:
    x = matrices(2, 70, 90)
    wanted = reference(NewtonSchulzCall(x, (CLASSIC,) * 2))
    call = NewtonSchulzCall(x.to(HALF), (CLASSIC,) * 2)
    for candidate in range(2):
        with compiled_for(90, candidate):
            result = kernels().TritonNewtonSchulz().run(call)
        assert result.dtype == HALF
        assert off(result, wanted) < 3e-3


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_a_symmetric_product_of_two(dtype: torch.dtype) -> None:
    x = matrices(2, 70, 90)
    one = x @ x.mT
    other, added = one @ one - 0.3 * one, noise(2, 70, 70)
    added += added.mT.clone()
    one, other, added = (t.to(dtype) for t in (one, other, added))
    result = torch.empty_like(one)
    kernels().symmetric_product(one, result, 2.5, added, -0.5, other).run()
    wanted = 2.5 * one.float() @ other.float() - 0.5 * added.float()
    assert off(result, wanted) < (1e-5 if dtype == torch.float32 else 3e-3)
    assert torch.equal(result, result.mT)  # to the last bit


@pytest.mark.parametrize(
    ("shape", "name"), [((2, 10, 33), name) for name in STEPS] + [((1, 70, 100), "polar")]
)
def test_the_gram_form_is_the_iteration(shape: tuple[int, ...], name: str) -> None:
    x, steps = matrices(*shape).double(), STEPS[name]
    wanted = reference(NewtonSchulzCall(x, steps))
    lengths = gram.cuts(steps)
    assert lengths == CUTS[name]
    result = kernels().by_gram(x.float(), steps, lengths, torch.float32)
    assert off(result, wanted) < 1e-4  # the smallest singular values grow by up to 5,000
    (*most, last) = lengths
    alone = kernels().by_gram(x.float(), steps, (*most, last - 1, 1), torch.float32)
    assert off(alone, wanted) < 1e-4


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("decades", [1, 3, 6])
def test_the_gram_form_is_no_worse_than_plain_steps(
    name: str, decades: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram, "_LEAST_SAVED", 0)
    x, steps = spread(32, 128, decades), STEPS[name]
    wanted = reference(NewtonSchulzCall(x.double(), steps))
    plain = x.float()
    for a, b, c in steps:  # what a kernel writes is rounded, and no more
        outer = rounded(plain @ plain.mT)
        plain = rounded(a * plain + rounded(b * outer + c * outer @ outer) @ plain)
    result = kernels().TritonNewtonSchulz().run(NewtonSchulzCall(x, steps))
    assert result.dtype == torch.bfloat16
    assert off(result, wanted) < off(plain, wanted)


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def test_small_numbers_keep_their_bits() -> None:
    x = 1e-4 * spread(32, 128, 1)  # of which float16 has no more than a few
    call = NewtonSchulzCall(x.double(), POLAR)
    result = kernels().by_gram(x, POLAR, (2, 3), HALF)
    assert off(result, reference(call)) < 1e-2


@pytest.mark.parametrize(
    ("shape", "steps", "lengths"),
    [
        ((12, 768, 3072), POLAR, (2, 3)),
        ((12, 768, 3072), SEVEN, (2, 2, 3)),
        ((12, 768, 1024), POLAR, (1,) * 5),  # little is saved
        ((12, 2048, 2048), POLAR, (1,) * 5),
        ((8, 64, 4096), POLAR, (1,) * 5),  # the launches take longer
        ((4, 2048, 8192), (CLASSIC,), (1,)),
        ((4, 2048, 8192), (), ()),
    ],
)
def test_the_form_is_chosen_by_shape(
    shape: tuple[int, ...], steps: Coefficients, lengths: tuple[int, ...]
) -> None:
    assert gram.segments(shape, steps) == lengths


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts those of products, half of them where a kernel makes half of the tiles."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "bmm" in str(func):
            left, right = args[-2:]
            self.total += 2 * left.numel() * right.size(-1)
        return func(*args, **(kwargs or {}))

    def launched(self, launch: Launch) -> None:
        x = launch.arguments["x"]
        assert isinstance(x, Tensor)
        self.total += x.numel() * x.size(1)


@pytest.mark.parametrize("lengths", [(2, 3), (1, 1, 1, 1, 1), (5,), (3, 1, 1)])
def test_operations_are_those_counted(
    lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.empty(3, 96, 256, dtype=torch.bfloat16, device="meta")
    with Operations() as operations:  # type: ignore[no-untyped-call]
        monkeypatch.setattr(Launch, "run", lambda launch: operations.launched(launch))  # noqa: PLW0108 - it is bound
        kernels().by_gram(x, POLAR, lengths, HALF)
    assert operations.total == 3 * gram.work(96, 256, lengths)


@pytest.mark.parametrize("dtype", [HALF, torch.float32])
def test_other_types_take_plain_steps(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float16 has no room for the errors of the Gram form; float32 no GPU takes at all."""
    monkeypatch.setattr(gram, "_LEAST_SAVED", 0)
    monkeypatch.setattr(kernels(), "by_gram", None)
    call = NewtonSchulzCall(matrices(1, 16, 64).to(dtype), POLAR)
    assert kernels().TritonNewtonSchulz().run(call).dtype == dtype
    refused = kernels().TritonNewtonSchulz().refusal(call)
    assert (refused is None) == (dtype == HALF)
