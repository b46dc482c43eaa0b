"""Cross-entropy in Triton: logits exist as tiles within a program, and never in memory.

Forward goes through the vocabulary tile by tile and keeps, for each row, the running log of the sum
of exponentials (as flash attention does) and the logit of the target. The gradient makes each tile
of logits once more and writes what the loss falls by with each product, ``slope``, for some rows at
a time; the two products with the head's weight and with the stream are the library's own::

    hidden, weight --normalise_kernel--> log Z, logit of the target     all rows at once
    hidden, weight --slope_kernel-----> slope (some rows, vocab)        in the type of the stream
                                        slope W -> gradient of the rows
                                        slope^T x -> gradient of the weight

A number of ``slope`` is written once and read twice; torch reads and writes each logit about ten
times, most of them in float32.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from segpt.kernels.launch import Argument, Constant, Launch
from segpt.kernels.registry import Backend
from segpt.kernels.tiles import ALL_REGISTERS, ANY, Tile, Tiles, tile_for

from .caps import AlgebraicCap, AsymmetricCap, SigmoidCap, TanhCap
from .reference import LinearHead, Loss, LossCall, NatsCall
from .triton_kernels import normalise_kernel, slope_kernel

SLOPES = 1 << 25  # numbers of ``slope`` that exist at once
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def _tile(rows: int, vocab: int, width: int, *, warps: int, stages: int) -> Tile:
    return Tile({"ROWS": rows, "VOCAB": vocab, "WIDTH": width}, warps, stages)


# Of those tried, the largest that spill on none of the generations they are for, whatever the
# width. Beside the sums of each row there is less room than beside a gradient; derivatives of caps
# take some, and gradients of learned ones more.
_LARGE, _TALL, _SQUARE = (
    _tile(rows, vocab, 64, warps=8, stages=2) for rows, vocab in ((128, 128), (128, 64), (64, 64))
)
_SHORT = _tile(64, 64, 32, warps=8, stages=2)
_NORMALISE: Tiles = {
    ANY: [_SQUARE, _SHORT],
    90: [_tile(128, 128, 32, warps=8, stages=2), _SQUARE],
}
_SLOPE: Tiles = {
    ANY: [_TALL, _SQUARE],
    90: [_LARGE, _TALL],
    100: [_LARGE, _TALL],
}
_SLOPE_OF_CAP: Tiles = {ANY: [_TALL, _SQUARE]}
_SLOPE_AND_CAPS: Tiles = {ANY: [_SQUARE, _SHORT]}
# Float32 is multiplied without tensor cores, as these would round its factors, and so in registers.
_EXACT: Tiles = {
    ANY: [
        _tile(32, vocab, width, warps=4, stages=1)._replace(registers=ALL_REGISTERS)
        for vocab, width in ((64, 16), (32, 32))
    ],
}


class TritonLoss(Backend[LossCall, Loss]):
    """Gradients are made in forward, as torch's back end has it."""

    name, priority = "triton", 30

    def refusal(self, call: LossCall) -> str | None:
        return _refusal(call.hidden, call.readout.linear)

    def run(self, call: LossCall) -> Loss:
        head = call.readout.linear
        assert head is not None
        sums = _TiledLoss.apply(call.hidden, head.weight, _learned(head), call, head)
        return Loss(*sums)


class TritonNats(Backend[NatsCall, Tensor]):
    """The nats of targets, where no gradient is wanted."""

    name, priority = "triton", 30

    def refusal(self, call: NatsCall) -> str | None:
        hidden, head = call.hidden, call.readout.linear
        learns = [hidden] if head is None else [hidden, head.weight, _learned(head)]
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in learns):
            return "it has no gradients"
        return _refusal(hidden, head)

    def run(self, call: NatsCall) -> Tensor:
        head = call.readout.linear
        assert head is not None
        rows = call.hidden.reshape(-1, call.hidden.size(-1)).contiguous()
        sums = _normalised(_operands(rows, head, call.targets.flatten()), smoothed=False)
        return (sums.log_z - sums.target_logit).view(call.targets.shape)


def _refusal(hidden: Tensor, head: LinearHead | None) -> str | None:
    if head is None:
        return "the head is no plain product, scaled and capped"
    if hidden.dtype not in _TYPES:
        return f"it takes float32, float16 and bfloat16, not {hidden.dtype}"
    return None


class Operands(NamedTuple):
    """What the logits of some rows are made of, and what the rows should predict.

    Attributes:
        hidden: (rows, width), contiguous.
        weight: (vocab, width), contiguous and in the type of those.
        targets: (rows,) token ids.
        head: the scale and the cap.
    """

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    head: LinearHead

    def chunk(self, rows: slice) -> "Operands":
        """Some of the rows."""
        return self._replace(hidden=self.hidden[rows], targets=self.targets[rows])


class RowSums(NamedTuple):
    """Sums over the vocabulary, each (rows,) in float32; that of the logits where it is wanted."""

    log_z: Tensor
    target_logit: Tensor
    logit_sum: Tensor | None = None


def normalise(operands: Operands, results: RowSums) -> Launch:
    """What makes the sums of rows."""
    log_z, target_logit, logit_sum = results
    exact = operands.hidden.dtype == torch.float32
    tile = tile_for(_EXACT if exact else _NORMALISE, operands.hidden)
    smoothed = logit_sum is not None
    made: dict[str, Argument] = {"log_z": log_z, "target_logit": target_logit}
    made["logit_sum"] = log_z if logit_sum is None else logit_sum
    programs = (triton.cdiv(len(operands.hidden), tile.sizes["ROWS"]),)
    return _launch(normalise_kernel, programs, operands, made, {"SMOOTHED": smoothed}, tile)


class Weights(NamedTuple):
    """How rows count in the loss: each by its ``share`` (rows,), and as :class:`LossCall` says."""

    share: Tensor
    z_loss: float = 0.0
    smoothing: float = 0.0


class Slopes(NamedTuple):
    """Gradients of the loss: by products (rows, vocab), and what adds up to that by two caps.

    ``by_caps`` is (2, tiles of tokens, rows) in float32, see :func:`tiles_of_tokens`; None where no
    cap is learned.
    """

    by_products: Tensor
    by_caps: Tensor | None = None


def slopes(operands: Operands, log_z: Tensor, weights: Weights, results: Slopes) -> Launch:
    """What makes the gradients, from log Z (rows,)."""
    share, z_loss, smoothing = weights
    tile = _slope_tile(operands)
    made: dict[str, Argument] = {"log_z": log_z, "share": share, "slope": results.by_products}
    made["by_caps"] = log_z if results.by_caps is None else results.by_caps
    made |= {"z_factor": 2.0 * z_loss, "kept": 1.0 - smoothing}
    made["spread"] = smoothing / len(operands.weight)
    programs = triton.cdiv(len(log_z), tile.sizes["ROWS"]), tiles_of_tokens(operands)
    return _launch(slope_kernel, programs, operands, made, {}, tile)


def tiles_of_tokens(operands: Operands) -> int:
    """How many tiles the vocabulary has where the gradients are made."""
    return -(-len(operands.weight) // _slope_tile(operands).sizes["VOCAB"])


def _slope_tile(operands: Operands) -> Tile:
    hidden, cap = operands.hidden, operands.head.cap
    if hidden.dtype == torch.float32:
        return tile_for(_EXACT, hidden)
    if isinstance(cap, AsymmetricCap):
        return tile_for(_SLOPE_AND_CAPS, hidden)
    return tile_for(_SLOPE if isinstance(cap, TanhCap | None) else _SLOPE_OF_CAP, hidden)


def _launch(
    kernel: Any,
    programs: tuple[int, ...],
    operands: Operands,
    arguments: dict[str, Argument],
    constants: dict[str, Constant],
    tile: Tile,
) -> Launch:
    hidden, weight, targets, head = operands
    caps = _learned(head)
    tensors: dict[str, Argument] = {"hidden": hidden, "weight": weight, "targets": targets}
    tensors["caps"] = arguments["log_z"] if caps is None else caps.detach().float()
    form, cap, divisor = _cap(head)
    numbers: dict[str, Argument] = {"rows": len(hidden), "vocab": len(weight)}
    numbers |= {"width": hidden.size(1), "scale": float(head.scale)}
    numbers |= {"cap": cap, "divisor": divisor}
    exact = hidden.dtype == torch.float32
    fixed: dict[str, Constant] = {"CAP": form, "PRECISION": "ieee" if exact else "tf32"}
    return Launch(
        kernel,
        programs,
        {**tensors, **arguments, **numbers},
        {**tile.sizes, **constants, **fixed},
        warps=tile.warps,
        stages=tile.stages,
        registers=tile.registers,
    )


def _cap(head: LinearHead) -> tuple[str, float, float]:
    """The form of a cap, and its numbers as far as they are not learned."""
    match head.cap:
        case TanhCap(cap):
            return "tanh", float(cap), 1.0
        case SigmoidCap(cap, divisor):
            return "sigmoid", float(cap), float(divisor)
        case AlgebraicCap(cap):
            return "algebraic", float(cap), 1.0
        case AsymmetricCap():
            return "asymmetric", 1.0, 1.0
        case None:
            return "none", 1.0, 1.0


def _learned(head: LinearHead) -> Tensor | None:
    return head.cap.caps if isinstance(head.cap, AsymmetricCap) else None


def _operands(rows: Tensor, head: LinearHead, targets: Tensor) -> Operands:
    weight = head.weight.detach().to(rows.dtype).contiguous()
    return Operands(rows.detach(), weight, targets.contiguous(), head)


def _normalised(operands: Operands, *, smoothed: bool) -> RowSums:
    rows = operands.hidden
    sums = RowSums(*(torch.empty(len(rows), device=rows.device) for _ in range(2 + smoothed)))
    normalise(operands, sums).run()
    return sums


class _TiledLoss(torch.autograd.Function):
    """The three numbers of :class:`Loss`; what backward multiplies is ready before it is called."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        caps: Tensor | None,
        call: LossCall,
        head: LinearHead,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`LossCall`: ``hidden`` (rows, width), ``weight`` (vocab, width), caps (2,)."""
        operands = _operands(hidden.contiguous(), head, call.targets)
        share, smoothing = call.share, call.smoothing
        sums = _normalised(operands, smoothed=smoothing > 0)
        log_z, each = sums.log_z, sums.log_z - sums.target_logit
        nats, z = (each * share).sum(), call.z_loss * (log_z.square() * share).sum()
        smoothed = nats
        if sums.logit_sum is not None:
            even = log_z - sums.logit_sum / len(weight)
            smoothed = (torch.lerp(each, even, smoothing) * share).sum()
        weights = Weights(share.contiguous(), call.z_loss, smoothing)
        by_rows, by_weight, by_caps = _gradients(operands, log_z, weights, ctx.needs_input_grad[:3])
        by_weight = None if by_weight is None else by_weight.to(weight.dtype)
        if by_caps is not None and caps is not None:
            by_caps = by_caps.to(caps.dtype)
        ctx.gradients = by_rows, by_weight, by_caps
        ctx.mark_non_differentiable(nats, z)
        return smoothed + z, nats, z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if g is None else g * grad for g in ctx.gradients)
        return (*scaled, None, None)


def _gradients(
    operands: Operands, log_z: Tensor, weights: Weights, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What is ``wanted`` of the gradients by rows (rows, width), weight and caps, some at a time.

    Log Z is (rows,).
    """
    rows, weight = operands.hidden, operands.weight
    by_rows = torch.empty_like(rows) if wanted[0] else None
    by_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
    learned = _learned(operands.head)
    by_caps = torch.zeros(2, device=rows.device) if learned is not None else None
    if not any(wanted):
        return None, None, None
    count = max(1, SLOPES // len(weight))
    slope = rows.new_empty(min(count, len(rows)), len(weight))
    for first in range(0, len(rows), count):
        chunk = slice(first, first + count)
        part = operands.chunk(chunk)
        made = slope[: len(part.hidden)]
        of_caps = None
        if by_caps is not None:
            of_caps = torch.empty(2, tiles_of_tokens(part), len(made), device=rows.device)
        counts = weights._replace(share=weights.share[chunk])
        slopes(part, log_z[chunk], counts, Slopes(made, of_caps)).run()
        if by_rows is not None:
            torch.mm(made, weight, out=by_rows[chunk])
        if by_weight is not None:
            by_weight += made.T @ part.hidden
        if by_caps is not None and of_caps is not None:
            by_caps += of_caps.sum((1, 2))
    return by_rows, by_weight, by_caps
