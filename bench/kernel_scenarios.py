"""Fused paths against the plain ones that they replace: bytes moved, forward and backward.

At sizes that can be interpreted every load and store is counted. There each kernel turns out to
read and write whole tensors, each number once if caches hold what programs share; so at the sizes
of a real batch the bytes are those of the tensors of its launches, which are made of tensors
without memory. The bytes of torch's own operations are counted at every size.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from segpt.kernels.activation.reference import FeedCall, feed_reference
from segpt.kernels.cross_entropy import LinearHead, LossCall, Readout
from segpt.kernels.cross_entropy.reference import loss_reference
from segpt.kernels.launch import Launch
from segpt.kernels.rms_norm.reference import AddNormCall, RmsNormCall, add_norm_reference
from segpt.kernels.rms_norm.reference import reference as rms_norm_reference

from .kernel_traffic import Traffic, counted, interpreted, kernel_name, uncounted

Sizes = Mapping[str, int]
Work = Callable[[Sizes, str, torch.dtype], None]

SCALED = 16  # the scaled size of a scenario stands for caches and chips of one 16th


class Scenario(NamedTuple):
    """Two ways to one result with its gradients, and what share of the bytes the first may take.

    Attributes:
        fused: the way with kernels, on a device in a type.
        unfused: the plain way.
        bound: of fused over unfused bytes at the full size.
        small: sizes to count at, which no tile divides.
        scaled: a size whose matrices are a 16th of those of the full one.
        full: the size of a real batch.
    """

    fused: Work
    unfused: Work
    bound: float
    small: tuple[Sizes, ...]
    scaled: Sizes
    full: Sizes


class Ratio(NamedTuple):
    """Bytes of both ways at one size, and those of the launches among the fused."""

    fused: int
    unfused: int
    launches: int

    @property
    def ratio(self) -> float:
        return self.fused / self.unfused


# By kernel, the tensors that it reads and those that it writes, all of each.
Whole = Mapping[str, tuple[frozenset[str], frozenset[str]]]


def token_loss(run: Callable[[LossCall], Any]) -> Work:
    """The loss of rows, with the gradients by the stream and the head.

    Without a cap and a z-loss, which cost a kernel nothing and plain torch several passes.
    """

    def work(sizes: Sizes, device: str, dtype: torch.dtype) -> None:
        rows, vocab = sizes["rows"], sizes["vocab"]
        hidden = _leaf(device, dtype, rows, sizes["width"])
        weight = _leaf(device, dtype, vocab, sizes["width"])
        with uncounted():
            targets = torch.zeros(rows, dtype=torch.int64, device=device)
            share = torch.full((rows,), 1 / rows, device=device)

        def logits(x: Tensor) -> Tensor:
            return (x @ weight.T).float()

        readout = Readout(logits, vocab, LinearHead(weight))
        run(LossCall(hidden, readout, targets, share, 0.0)).total.backward()

    return work


def with_gradients(shapes: Mapping[str, Sequence[str]], run: Callable[..., Any]) -> Work:
    """A calculation from tensors in ``shapes`` (...,) to one or several, and all gradients.

    ``shapes`` says for each argument of ``run`` the names of its sizes.
    """

    def work(sizes: Sizes, device: str, dtype: torch.dtype) -> None:
        leaves = {
            name: _leaf(device, dtype, *(sizes[size] for size in shape))
            for name, shape in shapes.items()
        }
        results = run(**leaves)
        results = [results] if isinstance(results, Tensor) else list(results)
        torch.autograd.backward(results, [_leaf(device, y.dtype, *y.shape) for y in results])

    return work


def _leaf(device: str, dtype: torch.dtype, *shape: int) -> Tensor:
    """Ones in a shape (...,), that want a gradient."""
    with uncounted():
        return torch.ones(shape, dtype=dtype, device=device).requires_grad_()


def scenarios() -> dict[str, Scenario]:
    """All of them by name; the back ends are imported as the interpreter's kernels, if it is on."""
    from segpt.kernels.activation.triton import TritonGatedFeed
    from segpt.kernels.cross_entropy.triton import TritonLoss
    from segpt.kernels.rms_norm.triton import TritonAddNorm, TritonRmsNorm

    rows = {"x": ("rows", "width")}
    both = {"x": ("rows", "width"), "residual": ("rows", "width")}
    fed = {"x": ("rows", "width"), "weight": ("hidden", "width")}
    return {
        "token_loss": Scenario(
            token_loss(TritonLoss().run),
            token_loss(loss_reference),
            1 / 4,
            (
                {"rows": 70, "vocab": 131, "width": 40},
                {"rows": 33, "vocab": 300, "width": 72},
                {"rows": 130, "vocab": 65, "width": 100},
            ),
            {"rows": 1024, "vocab": 512, "width": 512},
            {"rows": 1 << 16, "vocab": 8192, "width": 512},
        ),
        "rms_norm": Scenario(
            with_gradients(rows, lambda x: TritonRmsNorm().run(RmsNormCall(x))),
            with_gradients(rows, lambda x: rms_norm_reference(RmsNormCall(x))),
            0.55,
            ({"rows": 70, "width": 40}, {"rows": 3, "width": 513}, {"rows": 33, "width": 64}),
            {"rows": 1 << 12, "width": 512},
            {"rows": 1 << 16, "width": 512},
        ),
        "add_norm": Scenario(
            with_gradients(both, lambda x, residual: TritonAddNorm().run(AddNormCall(x, residual))),
            with_gradients(both, lambda x, residual: add_norm_reference(AddNormCall(x, residual))),
            0.55,
            ({"rows": 70, "width": 40}, {"rows": 3, "width": 513}, {"rows": 33, "width": 64}),
            {"rows": 1 << 12, "width": 512},
            {"rows": 1 << 16, "width": 512},
        ),
        "gated_feed": Scenario(
            with_gradients(fed, lambda x, weight: TritonGatedFeed().run(_squared(x, weight))),
            with_gradients(fed, lambda x, weight: feed_reference(_squared(x, weight))),
            0.6,
            ({"rows": 70, "width": 40, "hidden": 90}, {"rows": 33, "width": 72, "hidden": 130}),
            {"rows": 1 << 12, "width": 128, "hidden": 512},
            {"rows": 1 << 16, "width": 512, "hidden": 2048},
        ),
    }


def _squared(x: Tensor, weight: Tensor) -> FeedCall:
    return FeedCall(x, weight, "relu2")


def at_small_size(scenario: Scenario, sizes: Sizes) -> tuple[Ratio, list[Traffic]]:
    """Bytes counted load by load, and what each launch did."""
    traffic: list[Traffic] = []

    def launched(launch: Launch) -> int:
        traffic.append(interpreted(launch))
        return traffic[-1].distinct

    fused = counted(lambda: scenario.fused(sizes, "cpu", torch.float16), launched)
    plain = _plain(scenario, sizes, "cpu", torch.float16)
    launches = sum(moved for _, moved in fused.launches)
    return Ratio(fused.total, plain, launches), traffic


def at_full_size(scenario: Scenario, sizes: Sizes, whole: Whole) -> Ratio:
    """Bytes by the tensors of the launches, none of which runs; needs no memory."""

    def launched(launch: Launch) -> int:
        return whole_bytes(launch, whole)

    fused = counted(lambda: scenario.fused(sizes, "meta", torch.bfloat16), launched)
    plain = _plain(scenario, sizes, "meta", torch.bfloat16)
    return Ratio(fused.total, plain, sum(moved for _, moved in fused.launches))


def _plain(scenario: Scenario, sizes: Sizes, device: str, dtype: torch.dtype) -> int:
    """Bytes of the plain way on a GPU, which has one operation where a CPU has ten.

    A layer norm moves what a root-mean-square norm does, and the mean of each row.
    """

    def layer_norm(x: Tensor, shape: tuple[int, ...], *, eps: float | None) -> Tensor:
        return F.layer_norm(x, shape, eps=1e-5 if eps is None else eps)

    with patch.object(F, "rms_norm", layer_norm):
        return counted(lambda: scenario.unfused(sizes, device, dtype), lambda _: 0).total


def whole_tensors(scenario: Scenario) -> Whole:
    """What the kernels of a scenario read and write, found at its small sizes.

    Raises:
        ValueError: if one touches only a part of a tensor, or other tensors at another size.
    """
    whole: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
    for sizes in scenario.small:

        def launched(launch: Launch) -> int:
            traffic = interpreted(launch)
            touched = frozenset(traffic.read), frozenset(traffic.written)
            if whole.setdefault(traffic.kernel, touched) != touched:
                raise ValueError(f"{traffic.kernel} touches other tensors at another size")
            if traffic.distinct != whole_bytes(launch, whole):
                raise ValueError(f"{traffic.kernel} touches only a part of a tensor")
            return traffic.distinct

        counted(lambda sizes=sizes: scenario.fused(sizes, "cpu", torch.float16), launched)  # type: ignore[misc]
    return whole


def whole_bytes(launch: Launch, whole: Whole) -> int:
    """Bytes of the tensors that a launch reads and of those that it writes."""
    sizes = {n: v.nbytes for n, v in launch.arguments.items() if isinstance(v, Tensor)}
    return sum(sizes[name] for names in whole[kernel_name(launch)] for name in names)


def main() -> None:
    """Count every scenario and print it, as lines or as JSON; exit 1 if a bound does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") != "1":
        sys.exit("the interpreter counts: set TRITON_INTERPRET=1")
    rows = [row(name, scenario) for name, scenario in scenarios().items()]
    if asked.json:
        sys.stdout.write(json.dumps(rows))
    else:
        for each in rows:
            sys.stdout.write(
                f"{each['name']} {each['sizes']}: {each['fused'] / 1e9:.2f} GB fused, "
                f"{each['unfused'] / 1e9:.2f} GB plain, {each['ratio']:.3f} "
                f"of at most {each['bound']:g}; through a cache {each['through_cache']:.3f} "
                "of what is different\n"
            )
    sys.exit(any(each["ratio"] > each["bound"] for each in rows))


def row(name: str, scenario: Scenario) -> dict[str, Any]:
    """The bytes of a scenario at its full size, and how well the smallest cache would do."""
    from .kernel_roofline import DEVICES

    ratio = at_full_size(scenario, scenario.full, whole_tensors(scenario))
    _, traffic = at_small_size(scenario, scenario.scaled)
    crossed = {
        device: sum(
            each.through_cache(about.cache // SCALED, about.multiprocessors // SCALED)
            for each in traffic
        )
        / sum(each.distinct for each in traffic)
        for device, about in DEVICES.items()
    }
    return {
        "name": name,
        "sizes": dict(scenario.full),
        **ratio._asdict(),
        "ratio": round(ratio.ratio, 4),
        "bound": scenario.bound,
        "through_cache": round(max(crossed.values()), 4),
    }


if __name__ == "__main__":
    main()
