"""Cross-entropy of a head's logits, defined in plain torch from all logits at once.

Three operations share it: the loss of a batch with its gradients, the nats of targets, and those
together with whole rows of log-probabilities. They differ in what they give back, and in how they
round: stored scores fix, which of the last two is used where.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .caps import Cap


class LinearHead(NamedTuple):
    """Logits that are scale x W^T, or what the ``cap`` makes of that.

    ``weight`` is (vocab, width).
    """

    weight: Tensor
    scale: float = 1.0
    cap: Cap | None = None


class Readout(NamedTuple):
    """How a head makes logits of the final normalised stream.

    ``logits`` maps (..., width) to float32 (..., vocab). ``linear`` is the same as numbers, which
    a fused kernel needs, or None of a head that is no such product.
    """

    logits: Callable[[Tensor], Tensor]
    vocab: int
    linear: LinearHead | None = None


class LossCall(NamedTuple):
    """Rows of the final stream, and what each of them should predict.

    Attributes:
        hidden: (rows, width).
        readout: what makes their logits.
        targets: (rows,) token ids.
        share: (rows,) in float32, how much each row counts; they add up to 1.
        z_loss: the coefficient of the squared log Z.
        smoothing: how much of the target is spread evenly over the vocabulary.
    """

    hidden: Tensor
    readout: Readout
    targets: Tensor
    share: Tensor
    z_loss: float
    smoothing: float = 0.0


class Loss(NamedTuple):
    """Means in nats over the targets that count, each a scalar in float32.

    ``total`` is what to descend. ``nats`` is -log p(target), and ``z`` what is added to that: the
    coefficient times the square of log Z, Z being the sum of exp(logit) (PaLM, arXiv 2204.02311).
    These two carry no gradient. With smoothing, ``total`` has (1 - smoothing) -log p(target) plus
    smoothing times the mean of -log p over the vocabulary in the place of ``nats``.
    """

    total: Tensor
    nats: Tensor
    z: Tensor


class NatsCall(NamedTuple):
    """``hidden`` (..., width), the ``readout`` of it, and ``targets`` (...,) token ids."""

    hidden: Tensor
    readout: Readout
    targets: Tensor


class LogProbsCall(NamedTuple):
    """Some positions of the final stream, and what is asked about them.

    Attributes:
        hidden: (batch, time, width).
        readout: what makes their logits.
        picked: (picked,) which of the batch * time positions are scored, or None where all are.
        targets: (picked,) token ids.
        probed: (probed,) of which of these the whole row is wanted, or None where it is of none.
            Places and no masks: how many a mask holds, a GPU would have to be waited for.
    """

    hidden: Tensor
    readout: Readout
    picked: Tensor | None
    targets: Tensor
    probed: Tensor | None


class LogProbs(NamedTuple):
    """``nats`` (picked,) are -log p of targets, ``rows`` (probed, vocab) log p of every token."""

    nats: Tensor
    rows: Tensor | None


def loss_reference(call: LossCall) -> Loss:
    """The loss of a batch, with gradients for the stream and for the head."""
    nats, z, smoothed = loss_parts(
        call.readout.logits(call.hidden), call.targets, call.share, call.z_loss, call.smoothing
    )
    return Loss(smoothed + z, nats.detach(), z.detach())


def loss_parts(
    logits: Tensor, targets: Tensor, share: Tensor, z_loss: float, smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """What rows add to ``nats`` and ``z`` of :class:`Loss`, from their logits (rows, vocab).

    The third is what is descended in the place of ``nats``.
    """
    logits = logits.float()
    log_z = logits.logsumexp(-1)
    each = log_z - logits.gather(1, targets[:, None])[:, 0]
    nats, z = (each * share).sum(), z_loss * (log_z.square() * share).sum()
    if not smoothing:
        return nats, z, nats
    return nats, z, (torch.lerp(each, log_z - logits.mean(-1), smoothing) * share).sum()


def nats_reference(call: NatsCall) -> Tensor:
    """-log p(target), (...,) in float32, with gradients."""
    logits = call.readout.logits(call.hidden)
    return nats_of_logits(logits.flatten(0, -2), call.targets.flatten()).view(call.targets.shape)


def nats_of_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target), (rows,), of logits (rows, vocab) and targets (rows,)."""
    return F.cross_entropy(logits, targets, reduction="none")


def log_probs_reference(call: LogProbsCall) -> LogProbs:
    """Log p as logit - log Z, in float32."""
    logits = call.readout.logits(call.hidden).flatten(0, 1)
    if call.picked is not None:
        logits = logits[call.picked]
    log_z = logits.logsumexp(-1, keepdim=True)
    nats = (log_z - logits.gather(-1, call.targets[:, None]))[:, 0]
    return LogProbs(nats, None if call.probed is None else (logits - log_z)[call.probed])
