"""The feed-forward body in Triton's interpreter, against its definition: values and gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from segpt.config.layer import Activation
from segpt.kernels.activation.reference import FeedCall, feed_reference
from segpt.kernels.launch import Launch
from segpt.kernels.tiles import ANY, Tile, compiled_for
from tests.kernels.near import CLOSE, noise

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.slow

ACTIVATIONS: tuple[Activation, ...] = ("relu2", "leaky_relu2", "silu", "swiglu")
# Rows that begin at multiples of 16 numbers, and others; parts of tiles.
SHAPES = [((3, 5), 7, 9), ((2, 33), 48, 80)]


def feed() -> Any:
    from segpt.kernels.activation import triton

    return triton


def inputs(
    rows: tuple[int, ...], width: int, hidden: int, act: Activation, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """x, the weight, and what comes from above, (..., hidden)."""
    out = 2 * hidden if act == "swiglu" else hidden
    weight = (noise(out, width, seed=1) / width**0.5).to(dtype)
    return noise(*rows, width, dtype=dtype), weight, noise(*rows, hidden, seed=2, dtype=dtype)


def descended(run: Any, x: Tensor, weight: Tensor, slope: Tensor, act: Any) -> list[Tensor]:
    """The result and both gradients."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = run(FeedCall(x, weight, act))
    torch.autograd.backward(y, slope)
    assert x.grad is not None
    assert weight.grad is not None
    return [y.detach(), x.grad, weight.grad]


def near(results: list[Tensor], wanted: list[Tensor], dtype: torch.dtype) -> None:
    for result, expected in zip(results, wanted, strict=True):
        assert result.shape == expected.shape
        assert result.dtype == dtype
        most = float(expected.abs().max())
        assert float((result.float() - expected).abs().max()) <= CLOSE[dtype] * most


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape: Any, dtype: torch.dtype, act: Activation) -> None:
    rows, width, hidden = shape
    x, weight, slope = inputs(rows, width, hidden, act, dtype)
    wanted = descended(feed_reference, x.float(), weight.float(), slope.float(), act)
    near(descended(feed().TritonGatedFeed().run, x, weight, slope, act), wanted, dtype)


@pytest.mark.parametrize("rows", [20, 130])
@pytest.mark.parametrize("act", ["relu2", "swiglu"])
def test_every_candidate_tile(act: Activation, rows: int) -> None:
    x, weight, slope = inputs((rows,), 80, 144, act, torch.float16)
    wanted = descended(feed_reference, x.float(), weight.float(), slope.float(), act)
    for architecture, candidate in ((80, 0), (80, 1), (80, 2), (90, 0), (90, 1), (90, 2)):
        if rows > 32 or (architecture == 80 and candidate < 2):
            with compiled_for(architecture, candidate):
                results = descended(feed().TritonGatedFeed().run, x, weight, slope, act)
            near(results, wanted, torch.float16)


def test_several_groups_of_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"ROWS": 16, "HIDDEN": 16, "WIDTH": 16, "GROUP": 3}
    monkeypatch.setattr(feed(), "_EXACT", ({ANY: [Tile(sizes, 4, 1)]},) * 2)
    x, weight, slope = inputs((100,), 20, 40, "leaky_relu2", torch.float32)
    wanted = descended(feed_reference, x, weight, slope, "leaky_relu2")
    results = descended(feed().TritonGatedFeed().run, x, weight, slope, "leaky_relu2")
    near(results, wanted, torch.float32)


def test_views_and_nothing() -> None:
    x = noise(6, 4, 40)[::2, :, 3:20].transpose(0, 1)
    weight = noise(17, 30, seed=1).T
    slope = noise(1, 1, 30, seed=2).expand(4, 3, 30)
    wanted = descended(feed_reference, x, weight, slope, "silu")
    near(descended(feed().TritonGatedFeed().run, x, weight, slope, "silu"), wanted, torch.float32)
    results = descended(feed().TritonGatedFeed().run, x[:0], weight, slope[:0], "silu")
    assert [tuple(t.shape) for t in results] == [(0, 3, 30), (0, 3, 17), (30, 17)]
    assert not results[2].any()


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_what_is_not_a_number_stays_so(act: Activation) -> None:
    x, weight, slope = inputs((3,), 16, 8, act, torch.float32)
    x[1, 2] = float("nan")
    for result in descended(feed().TritonGatedFeed().run, x, weight, slope, act)[:2]:
        assert result[1].isnan().all()
        assert not result[[0, 2]].isnan().any()


def test_only_what_is_wanted_is_made() -> None:
    x, weight, slope = inputs((40,), 16, 24, "relu2", torch.float32)
    for wanted in range(2):
        leaves = [t.clone().requires_grad_(i == wanted) for i, t in enumerate((x, weight))]
        y = feed().TritonGatedFeed().run(FeedCall(leaves[0], leaves[1], "relu2"))
        torch.autograd.backward(y, slope)
        assert [leaf.grad is not None for leaf in leaves] == [wanted == 0, wanted == 1]


def test_refusals() -> None:
    x, weight, _ = inputs((4,), 16, 8, "relu2", torch.float16)
    backend = feed().TritonGatedFeed()
    assert backend.refusal(FeedCall(x, weight, "relu2")) is None
    for act in ("gelu", "gelu_tanh", "geglu_tanh"):
        assert f"not {act}" in str(backend.refusal(FeedCall(x, weight, act)))
    assert "type of the stream" in str(backend.refusal(FeedCall(x, weight.float(), "relu2")))
    assert "float64" in str(backend.refusal(FeedCall(x.double(), weight.double(), "relu2")))
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in str(backend.refusal(FeedCall(x, weight, "relu2")))
        assert backend.refusal(FeedCall(x.bfloat16(), weight.bfloat16(), "relu2")) is None


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The bytes that operations read and write, if no cache keeps any between two of them."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in str(func):
            self.add(*args, *(result if isinstance(result, tuple | list) else (result,)))
        return result

    def add(self, *tensors: Any) -> None:
        self.total += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traffic]:
    """Traffic within a block, with launches that are counted and not run."""
    traffic = Traffic()  # type: ignore[no-untyped-call]
    monkeypatch.setattr(Launch, "run", lambda launch: traffic.add(*launch.arguments.values()))
    with traffic:
        yield traffic


# What is left of the traffic, forward and with backward.
@pytest.mark.parametrize(
    ("act", "forward", "both"),
    [
        ("relu2", 0.3, 0.5),
        ("leaky_relu2", 0.3, 0.5),
        ("silu", 0.4, 0.7),
        ("swiglu", 0.2, 0.4),
    ],
)
def test_traffic(
    act: Activation, forward: float, both: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, slope = inputs((4096,), 32, 128, act, torch.bfloat16)
    totals = []
    for run in (feed_reference, feed().TritonGatedFeed().run):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        with counted(monkeypatch) as traffic:
            y = run(FeedCall(leaves[0], leaves[1], act))
            before = traffic.total
            torch.autograd.grad(y, leaves, slope)
        totals.append((before, traffic.total))
    (plain, plain_both), (fused, fused_both) = totals
    assert fused < forward * plain
    assert fused_both < both * plain_both


@pytest.mark.parametrize(("act", "rows"), [("relu2", 1), ("swiglu", 2)])
def test_one_hidden_channel_is_refused(act: Activation, rows: int) -> None:
    from segpt.kernels.activation.triton import TritonGatedFeed

    refused = TritonGatedFeed().refusal(FeedCall(torch.ones(3, 4), torch.ones(rows, 4), act))
    assert refused is not None
    more = FeedCall(torch.ones(3, 4), torch.ones(2 * rows, 4), act)
    assert TritonGatedFeed().refusal(more) is None
