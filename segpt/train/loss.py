"""The loss of a batch, without ever holding the logits of all of it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segpt.config.base import encode
from segpt.kernels import onednn
from segpt.model.head import Head
from segpt.model.leaves import Adapted, Matrix, Table
from segpt.model.model import Model

# Logits that are held at once: on a CPU few enough to stay in its cache.
_LOGITS = {"cpu": 1 << 19, "other": 1 << 26}
# What a spec may say of a head that is one weight, a scale and a cap. A field that is added later
# is not spelled out while it holds its default.
_KNOWN = {"kind", "tied", "softcap", "scale", "gain", "multiple", "zero"}
_NARROW = 40.0  # a cap up to which no probability is lost in float32


class Loss(NamedTuple):
    """Means over the targets that count, float32 scalars whatever the dtype of the stream.

    ``total`` is what to descend. ``nats`` is -log p(target), and ``z`` what is added to that: the
    coefficient times the square of log Z, Z being the sum of exp(logit) (PaLM, arXiv 2204.02311).
    These two carry no gradient.
    """

    total: Tensor
    nats: Tensor
    z: Tensor


def token_loss(
    model: Model,
    hidden: Tensor,
    targets: Tensor,
    z_loss: float = 0.0,
    counted: Tensor | None = None,
) -> Loss:
    """The loss of predicting ``targets`` from the final stream.

    Args:
        model: its head makes logits, soft-capped ones as they are used.
        hidden: (batch, time, width), of :meth:`segpt.model.model.Model.hidden`.
        targets: (batch, time) token ids.
        z_loss: the coefficient of the squared log Z.
        counted: (batch, time), true where a target counts; all do without. At least one must.
    """
    rows, wanted = hidden.flatten(0, -2), targets.flatten()
    if counted is None:
        share = torch.full(wanted.shape, 1.0 / wanted.numel(), device=rows.device)
    else:
        share = counted.flatten().float() / counted.sum()
    weight = head_weight(model)
    size = max(1, _LOGITS.get(rows.device.type, _LOGITS["other"]) // model.spec.vocab)
    if weight is None:
        return _general(model, rows, wanted, share, z_loss, size)
    found = _Fused.apply(  # type: ignore[no-untyped-call]
        rows, weight, wanted, share, model.head.scale, model.head.softcap, z_loss, size
    )
    return Loss(*found)


def head_weight(model: Model) -> Tensor | None:
    """The (vocab, width) weight, where logits are its product with the stream, scaled and capped.

    None is where that is not known to be so, or the cap is unusually wide. The weight is the one
    that is used: where it is a view of a parameter, gradients go on to that.
    """
    head = model.head
    if (
        type(head) is not Head
        or type(model).logits is not Model.logits
        or encode(model.spec.head).keys() - _KNOWN
        or {name for name, _ in head.named_parameters()} - {"matrix.weight", "gain.weight"}
        or head.cap is not None
        or (head.softcap is not None and head.softcap > _NARROW)
        or _hooked(head, head.matrix)
    ):
        return None
    leaf: Matrix | Table = model.table if head.matrix is None else head.matrix
    if type(leaf) not in (Matrix, Table):
        return None
    used = leaf.weight if leaf.view is None else leaf.view(leaf.weight)
    return None if isinstance(used, Adapted) else used[: model.spec.vocab]


def _hooked(*modules: nn.Module | None) -> bool:
    return any(m is not None and (m._forward_hooks or m._forward_pre_hooks) for m in modules)


class _Fused(torch.autograd.Function):
    """Forward leaves the gradients behind, so that logits are made once and then forgotten."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        targets: Tensor,
        share: Tensor,
        scale: float,
        softcap: float | None,
        z_loss: float,
        size: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        for_rows, for_weight = ctx.needs_input_grad[:2]
        used = weight.to(rows.dtype)
        from_rows = torch.empty_like(rows) if for_rows else None
        from_weight = None  # (width, vocab), so that no product copies the larger factor
        if for_weight:
            from_weight = torch.zeros(*weight.T.shape, device=weight.device)
        nats, z = (torch.zeros((), device=rows.device) for _ in range(2))
        multiply = onednn.multiply if onednn.supports(rows, used) else _multiply
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            x, wanted, counts = rows[part], targets[part, None], share[part, None]
            logits = multiply(x, used).float()
            found, factor, probable = _score(logits, wanted, counts, scale, softcap, z_loss)
            nats += found[0]
            z += found[1]
            if not (for_rows or for_weight):
                continue
            times = scale if softcap is None else 4 * scale
            grad = probable.mul_(factor * times).scatter_add_(1, wanted, -counts * times)
            if softcap is not None:
                grad.mul_(logits)  # by now a quarter of the slope of the cap
            grad = grad.to(rows.dtype)
            if from_rows is not None:
                from_rows[part] = multiply(grad, used.T)
            if from_weight is not None:
                from_weight += multiply(x.T, grad.T)
        ctx.from_rows = from_rows
        ctx.from_weight = None if from_weight is None else from_weight.T.to(weight.dtype)
        ctx.mark_non_differentiable(nats, z)
        return nats + z, nats, z

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        found = (None if g is None else g * grad for g in (ctx.from_rows, ctx.from_weight))
        return (*found, None, None, None, None, None, None)


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    return a @ b.T


def _score(
    logits: Tensor,
    targets: Tensor,
    share: Tensor,
    scale: float,
    softcap: float | None,
    z_loss: float,
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """The loss of one chunk, from products that have no scale yet.

    If there is a cap, ``logits`` become a quarter of its slope.

    Returns:
        Both parts of the loss; the factor of each row's probabilities in its gradient, that is,
        its share times (1 + 2 z_loss log Z); the probabilities.
    """
    if softcap is None:
        logits = logits if scale == 1 else logits.mul_(scale)
        probable, log_z = logits.softmax(-1), logits.logsumexp(-1, keepdim=True)
        nats = log_z - logits.gather(1, targets)
    else:
        # tanh(x) = 2 sigmoid(2 x) - 1, and the sigmoid is several times faster on a CPU
        half = logits.mul_(2 * scale / softcap).sigmoid_()
        capped = half * (2 * softcap)
        chosen = capped.gather(1, targets) - softcap
        probable = torch.softmax(capped, -1, out=capped)
        nats = -probable.gather(1, targets).log()
        log_z = nats + chosen
        half.addcmul_(half, half, value=-1)  # a quarter of the slope of the cap
    scored = (nats * share).sum(), z_loss * (log_z.square() * share).sum()
    return scored, share * (1 + 2 * z_loss * log_z), probable


def _general(
    model: Model, rows: Tensor, targets: Tensor, share: Tensor, z_loss: float, size: int
) -> Loss:
    """The same for any head: backward makes the logits of each chunk once more."""

    def score(x: Tensor, wanted: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        logits = model.logits(x).float()
        log_z = logits.logsumexp(-1)
        nats = log_z - logits.gather(1, wanted[:, None])[:, 0]
        return (nats * counts).sum(), z_loss * (log_z.square() * counts).sum()

    nats, z = (torch.zeros((), device=rows.device) for _ in range(2))
    for part in zip(*(torch.split(t, size) for t in (rows, targets, share)), strict=True):
        found = checkpoint(score, *part, use_reentrant=False)
        nats, z = nats + found[0], z + found[1]
    return Loss(nats + z, nats.detach(), z.detach())
