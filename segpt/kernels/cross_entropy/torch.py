"""Losses in chunks of rows, so that the logits of a batch never exist at once."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from segpt.kernels import onednn
from segpt.kernels.registry import Backend

from .caps import TanhCap
from .reference import LinearHead, Loss, LossCall, NatsCall, loss_parts, nats_reference

# Logits that are held at once: on a CPU few enough to stay in its cache.
LOGITS = {"cpu": 1 << 19, "other": 1 << 26}
POSITIONS = 1024  # rows whose logits are held at once where no gradient is wanted
_WIDEST_CAP = 40.0  # up to which no probability is lost in float32


class TorchLoss(Backend[LossCall, Loss]):
    """Forward computes the gradients, so that logits are made once and then forgotten."""

    name, priority = "torch", 10

    def refusal(self, call: LossCall) -> str | None:
        linear = call.readout.linear
        if linear is None:
            return "the head is no plain product, scaled and capped by tanh"
        if not isinstance(linear.cap, TanhCap | None):
            return "the head is capped by another function than tanh"
        if linear.cap is not None and linear.cap.cap > _WIDEST_CAP:
            return f"a soft cap above {_WIDEST_CAP:g} loses probabilities"
        return None

    def run(self, call: LossCall) -> Loss:
        head = call.readout.linear
        assert head is not None
        size = _rows_at_once(call.hidden, call.readout.vocab)
        sums = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
            call.hidden, head.weight, call, head, size
        )
        return Loss(*sums)


class CheckpointLoss(Backend[LossCall, Loss]):
    """The same for any head: backward makes the logits of each chunk once more."""

    name, priority = "checkpoint", 5

    def refusal(self, call: LossCall) -> str | None:
        return None

    def run(self, call: LossCall) -> Loss:
        hidden, readout, targets, share, z_loss, smoothing = call

        def parts(x: Tensor, wanted: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return loss_parts(readout.logits(x), wanted, counts, z_loss, smoothing)

        size = _rows_at_once(hidden, readout.vocab)
        chunks = (torch.split(t, size) for t in (hidden, targets, share))
        nats, z, smoothed = (torch.zeros((), device=hidden.device) for _ in range(3))
        for chunk in zip(*chunks, strict=True):
            more_nats, more_z, more = checkpoint(parts, *chunk, use_reentrant=False)
            nats, z, smoothed = nats + more_nats.detach(), z + more_z, smoothed + more
        return Loss(smoothed + z, nats, z.detach())


class TorchNats(Backend[NatsCall, Tensor]):
    """The nats of few rows at a time."""

    name, priority = "torch", 10

    def refusal(self, call: NatsCall) -> str | None:
        return None if call.hidden.dim() == 2 else "it cuts rows, and these have more dimensions"

    def run(self, call: NatsCall) -> Tensor:
        parts = (torch.split(t, POSITIONS) for t in (call.hidden, call.targets))
        return torch.cat(
            [
                nats_reference(NatsCall(x, call.readout, targets))
                for x, targets in zip(*parts, strict=True)
            ]
        )


def _rows_at_once(hidden: Tensor, vocab: int) -> int:
    return max(1, LOGITS.get(hidden.device.type, LOGITS["other"]) // vocab)


class _ChunkedLoss(torch.autograd.Function):
    """Sums over chunks of rows; what backward multiplies is ready before it is called."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        call: LossCall,
        head: LinearHead,
        size: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The three numbers of :class:`Loss`, from ``rows`` (rows, width), ``size`` at a time."""
        for_rows, for_weight = ctx.needs_input_grad[:2]
        used = weight.to(rows.dtype)
        from_rows = torch.empty_like(rows) if for_rows else None
        from_weight = None  # (width, vocab), so that no product copies the larger factor
        if for_weight:
            from_weight = torch.zeros(*weight.T.shape, device=weight.device)
        nats, z, smoothed = (torch.zeros((), device=rows.device) for _ in range(3))
        multiply = _product if onednn.refusal(rows, used) else onednn.multiply
        for start in range(0, len(rows), size):
            chunk = slice(start, start + size)
            x, wanted, counts = rows[chunk], call.targets[chunk, None], call.share[chunk, None]
            scored = _score(multiply(x, used).float(), wanted, counts, head, call)
            nats += scored.nats
            z += scored.z
            smoothed += scored.smoothed
            if not (for_rows or for_weight):
                continue
            slope = _slope(scored, wanted, counts, head, call.smoothing).to(rows.dtype)
            if from_rows is not None:
                from_rows[chunk] = multiply(slope, used.T)
            if from_weight is not None:
                from_weight += multiply(x.T, slope.T)
        ctx.from_rows = from_rows
        ctx.from_weight = None if from_weight is None else from_weight.T.to(weight.dtype)
        ctx.mark_non_differentiable(nats, z)
        return smoothed + z, nats, z

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if g is None else g * grad for g in (ctx.from_rows, ctx.from_weight))
        return (*scaled, None, None, None)


def _product(a: Tensor, b: Tensor) -> Tensor:
    return a @ b.T


class _Scored(NamedTuple):
    """The loss of one chunk, and what its gradient is made of.

    ``nats``, ``z`` and ``smoothed`` are scalars as :func:`loss_parts` has them, ``probabilities``
    (rows, vocab). ``gain`` (rows, 1) is what a
    row's probabilities are multiplied by in its gradient: its share times (1 + 2 z_loss log Z).
    ``cap_slope`` (rows, vocab) is a quarter of the derivative of the cap, or None without a cap.
    """

    nats: Tensor
    z: Tensor
    smoothed: Tensor
    probabilities: Tensor
    gain: Tensor
    cap_slope: Tensor | None


def _score(
    products: Tensor, targets: Tensor, share: Tensor, head: LinearHead, call: LossCall
) -> _Scored:
    """The loss of rows from ``products`` x W^T (rows, vocab), whose memory is used again.

    With a cap c the logits are c tanh(y / c), y being the scaled product. As tanh(u) is
    2 sigmoid(2 u) - 1, and a sigmoid is several times faster on a CPU, they are computed as
    2 c s - c with s = sigmoid(2 y / c). The constant c changes no probability, so it is taken off
    only where a logit itself is wanted. The derivative of a logit by y is 1 - tanh^2 = 4 (s - s^2).
    """
    z_loss, smoothing, mean_logit = call.z_loss, call.smoothing, None
    if head.cap is None:
        logits = products if head.scale == 1 else products.mul_(head.scale)
        probabilities, log_z = logits.softmax(-1), logits.logsumexp(-1, keepdim=True)
        nats = log_z - logits.gather(1, targets)
        cap_slope = None
        if smoothing:
            mean_logit = logits.mean(-1, keepdim=True)
    else:
        assert isinstance(head.cap, TanhCap)  # refusal() has said so
        (cap,) = head.cap
        sigmoid = products.mul_(2 * head.scale / cap).sigmoid_()
        raised = sigmoid * (2 * cap)  # the logits plus the cap
        target_logits = raised.gather(1, targets) - cap
        if smoothing:
            mean_logit = raised.mean(-1, keepdim=True) - cap
        probabilities = torch.softmax(raised, -1, out=raised)
        nats = -probabilities.gather(1, targets).log()
        log_z = nats + target_logits
        cap_slope = sigmoid.addcmul_(sigmoid, sigmoid, value=-1)
    sums = (nats * share).sum(), z_loss * (log_z.square() * share).sum()
    smoothed = sums[0]
    if mean_logit is not None:
        smoothed = (torch.lerp(nats, log_z - mean_logit, smoothing) * share).sum()
    gain = share * (1 + 2 * z_loss * log_z)
    return _Scored(*sums, smoothed, probabilities, gain, cap_slope)


def _slope(
    scored: _Scored, targets: Tensor, share: Tensor, head: LinearHead, smoothing: float
) -> Tensor:
    """The gradient of the loss by the products (rows, vocab), in the memory of probabilities.

    By a logit it is gain p, less the share of the row where the logit is the target's; of that
    share, smoothing takes its part from every logit alike.
    """
    inner = head.scale if scored.cap_slope is None else 4 * head.scale
    slope = scored.probabilities.mul_(scored.gain * inner)
    slope.scatter_add_(1, targets, -share * inner * (1 - smoothing))
    if smoothing:
        slope -= share * (inner * smoothing / slope.size(1))
    return slope if scored.cap_slope is None else slope.mul_(scored.cap_slope)
