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

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from segpt.kernels.launch import Launch
from segpt.kernels.registry import Backend

from .reference import LinearHead, Loss, LossCall, NatsCall

SLOPES = 1 << 25  # numbers of ``slope`` that exist at once
_WARPS = 8
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _products(
    hidden,
    weight,
    row,
    token,
    rows,
    vocab,
    width,
    ROWS: tl.constexpr,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile (ROWS, VOCAB) of hidden W^T in float32; 0 outside of both."""
    total = tl.zeros((ROWS, VOCAB), tl.float32)
    for start in range(0, width, WIDTH):
        channel = start + tl.arange(0, WIDTH)
        x = tl.load(
            hidden + row[:, None] * width + channel[None],
            (row < rows)[:, None] & (channel < width)[None],
            other=0.0,
        )
        w = tl.load(
            weight + token[:, None] * width + channel[None],
            (token < vocab)[:, None] & (channel < width)[None],
            other=0.0,
        )
        total = tl.dot(x, tl.trans(w), total, input_precision=PRECISION)
    return total


@triton.jit
def _capped(products, scale, cap, CAPPED: tl.constexpr):
    """Logits c tanh(y / c), y being the scaled product, with tanh(u) = 2 sigmoid(2 u) - 1."""
    logits = products * scale
    if CAPPED:
        logits = cap * (2.0 * _sigmoid(2.0 * logits / cap) - 1.0)
    return logits


@triton.jit
def normalise_kernel(
    hidden,
    weight,
    targets,
    log_z,
    target_logit,
    rows,
    vocab,
    width,
    scale,
    cap,
    CAPPED: tl.constexpr,
    ROWS: tl.constexpr,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Log Z and the logit of the target of ROWS rows, both (rows,) in float32."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    wanted = tl.load(targets + row, row < rows, other=0)
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    picked = tl.zeros((ROWS,), tl.float32)
    for first in range(0, vocab, VOCAB):
        token = first + tl.arange(0, VOCAB)
        products = _products(
            hidden, weight, row.to(tl.int64), token.to(tl.int64), rows, vocab, width,
            ROWS, VOCAB, WIDTH, PRECISION,
        )  # fmt: skip
        logits = _capped(products, scale, cap, CAPPED)
        picked += tl.sum(tl.where(token[None] == wanted[:, None], logits, 0.0), 1)
        logits = tl.where((token < vocab)[None], logits, float("-inf"))
        higher = tl.maximum(most, tl.max(logits, 1))
        total = total * tl.exp(most - higher) + tl.sum(tl.exp(logits - higher[:, None]), 1)
        most = higher
    tl.store(log_z + row, most + tl.log(total), row < rows)
    tl.store(target_logit + row, picked, row < rows)


@triton.jit
def slope_kernel(
    hidden,
    weight,
    targets,
    log_z,
    share,
    slope,
    rows,
    vocab,
    width,
    scale,
    cap,
    z_factor,
    CAPPED: tl.constexpr,
    ROWS: tl.constexpr,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of the gradient of the loss by the products, (rows, vocab).

    By a logit it is share (1 + 2 z log Z) p, less the share where the logit is the target's; by a
    product it is that times the derivative of the cap, 1 - (logit / c)^2, and the scale.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * VOCAB + tl.arange(0, VOCAB)
    far_row, far_token = row.to(tl.int64), token.to(tl.int64)
    products = _products(
        hidden, weight, far_row, far_token, rows, vocab, width, ROWS, VOCAB, WIDTH, PRECISION
    )
    logits = _capped(products, scale, cap, CAPPED)
    wanted = tl.load(targets + row, row < rows, other=0)
    counts = tl.load(share + row, row < rows, other=0.0)
    normaliser = tl.load(log_z + row, row < rows, other=0.0)
    gain = counts * (1.0 + z_factor * normaliser)
    by_logit = tl.exp(logits - normaliser[:, None]) * gain[:, None]
    by_logit -= tl.where(token[None] == wanted[:, None], counts[:, None], 0.0)
    if CAPPED:
        by_logit *= 1.0 - (logits / cap) * (logits / cap)
    by_logit *= scale
    inside = (row < rows)[:, None] & (token < vocab)[None]
    place = far_row[:, None] * vocab + far_token[None]
    tl.store(slope + place, by_logit.to(slope.dtype.element_ty), inside)


class TritonLoss(Backend[LossCall, Loss]):
    """Gradients are made in forward, as torch's back end has it."""

    name, priority = "triton", 30

    def refusal(self, call: LossCall) -> str | None:
        return _refusal(call.hidden, call.readout.linear)

    def run(self, call: LossCall) -> Loss:
        head = call.readout.linear
        assert head is not None
        sums = _TiledLoss.apply(
            call.hidden, head.weight, head, call.targets, call.share, call.z_loss
        )
        return Loss(*sums)


class TritonNats(Backend[NatsCall, Tensor]):
    """The nats of targets, where no gradient is wanted."""

    name, priority = "triton", 30

    def refusal(self, call: NatsCall) -> str | None:
        hidden, head = call.hidden, call.readout.linear
        descends = hidden.requires_grad or (head is not None and head.weight.requires_grad)
        if descends and torch.is_grad_enabled():
            return "it has no gradients"
        return _refusal(hidden, head)

    def run(self, call: NatsCall) -> Tensor:
        head = call.readout.linear
        assert head is not None
        rows = call.hidden.reshape(-1, call.hidden.size(-1)).contiguous()
        log_z, picked = _normalised(rows, _weight(head, rows), head, call.targets.flatten())
        return (log_z - picked).view(call.targets.shape)


def _refusal(hidden: Tensor, head: LinearHead | None) -> str | None:
    if head is None:
        return "the head is no plain product, scaled and capped by tanh"
    if hidden.dtype not in _TYPES:
        return f"it takes float32, float16 and bfloat16, not {hidden.dtype}"
    return None


def _weight(head: LinearHead, rows: Tensor) -> Tensor:
    return head.weight.detach().to(rows.dtype).contiguous()


def normalise(
    rows: Tensor, weight: Tensor, head: LinearHead, targets: Tensor, results: tuple[Tensor, Tensor]
) -> Launch:
    """What makes log Z and the target's logit, (rows,) each, of ``rows`` (rows, width)."""
    # Beside the sums of each row there is no room for more rows.
    constants = _constants(rows, head) | {"ROWS": 64}
    tensors = {"hidden": rows, "weight": weight, "targets": targets}
    made = dict(zip(("log_z", "target_logit"), results, strict=True))
    return Launch(
        normalise_kernel,
        (triton.cdiv(len(rows), constants["ROWS"]),),
        {**tensors, **made, **_numbers(rows, weight, head)},
        constants,
        warps=_WARPS,
        stages=_stages(rows),
    )


def slopes(
    rows: Tensor,
    weight: Tensor,
    head: LinearHead,
    targets: Tensor,
    log_z: Tensor,
    share: Tensor,
    z_loss: float,
    slope: Tensor,
) -> Launch:
    """What makes ``slope`` (rows, vocab), the gradient of the loss by the products."""
    constants = _constants(rows, head)
    tensors = {"hidden": rows, "weight": weight, "targets": targets}
    tensors |= {"log_z": log_z, "share": share, "slope": slope}
    numbers = _numbers(rows, weight, head) | {"z_factor": 2.0 * z_loss}
    return Launch(
        slope_kernel,
        (triton.cdiv(len(rows), constants["ROWS"]), triton.cdiv(len(weight), constants["VOCAB"])),
        {**tensors, **numbers},
        constants,
        warps=_WARPS,
        stages=_stages(rows),
    )


def _numbers(rows: Tensor, weight: Tensor, head: LinearHead) -> dict[str, float]:
    sizes = {"rows": len(rows), "vocab": len(weight), "width": rows.size(1)}
    return sizes | {"scale": float(head.scale), "cap": float(head.softcap or 1.0)}


def _constants(rows: Tensor, head: LinearHead) -> dict[str, int | bool | str]:
    """The sizes of a tile, and what else a kernel is compiled for.

    Float32 is multiplied without tensor cores, as these would round its factors.
    """
    exact = rows.dtype == torch.float32
    constants = {"ROWS": 64, "VOCAB": 64, "WIDTH": 16} if exact else {
        "ROWS": 128, "VOCAB": 128, "WIDTH": 64
    }  # fmt: skip
    fixed = {"CAPPED": head.softcap is not None, "PRECISION": "ieee" if exact else "tf32"}
    return constants | fixed


def _stages(rows: Tensor) -> int:
    return 1 if rows.dtype == torch.float32 else 2


def _normalised(
    rows: Tensor, weight: Tensor, head: LinearHead, targets: Tensor
) -> tuple[Tensor, Tensor]:
    log_z, picked = (torch.empty(len(rows), device=rows.device) for _ in range(2))
    normalise(rows, weight, head, targets.contiguous(), (log_z, picked)).run()
    return log_z, picked


class _TiledLoss(torch.autograd.Function):
    """The three numbers of :class:`Loss`; what backward multiplies is ready before it is called."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        head: LinearHead,
        targets: Tensor,
        share: Tensor,
        z_loss: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`LossCall`: ``hidden`` (rows, width), ``weight`` (vocab, width)."""
        rows, used = hidden.contiguous(), _weight(head, hidden)
        log_z, picked = _normalised(rows, used, head, targets)
        nats, z = ((log_z - picked) * share).sum(), z_loss * (log_z.square() * share).sum()
        for_rows, for_weight = ctx.needs_input_grad[:2]
        ctx.from_rows = torch.empty_like(rows) if for_rows else None
        ctx.from_weight = torch.zeros_like(used, dtype=torch.float32) if for_weight else None
        if for_rows or for_weight:
            _add_gradients(ctx, rows, used, head, targets, log_z, share, z_loss)
        if for_weight:
            ctx.from_weight = ctx.from_weight.to(weight.dtype)
        ctx.mark_non_differentiable(nats, z)
        return nats + z, nats, z

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if g is None else g * grad for g in (ctx.from_rows, ctx.from_weight))
        return (*scaled, None, None, None, None)


def _add_gradients(
    ctx: Any,
    rows: Tensor,
    weight: Tensor,
    head: LinearHead,
    targets: Tensor,
    log_z: Tensor,
    share: Tensor,
    z_loss: float,
) -> None:
    """Fill the gradients that ``ctx`` holds, some rows at a time."""
    count = max(1, SLOPES // len(weight))
    slope = rows.new_empty(min(count, len(rows)), len(weight))
    for first in range(0, len(rows), count):
        chunk = slice(first, first + count)
        x, part = rows[chunk], slope[: len(rows[chunk])]
        slopes(x, weight, head, targets[chunk], log_z[chunk], share[chunk], z_loss, part).run()
        if ctx.from_rows is not None:
            torch.mm(part, weight, out=ctx.from_rows[chunk])
        if ctx.from_weight is not None:
            ctx.from_weight += part.T @ x
