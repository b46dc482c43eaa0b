"""The loss of a batch, without ever holding the logits of all of it."""

import torch
from torch import Tensor

from segpt import kernels
from segpt.kernels.cross_entropy import Loss
from segpt.model.model import Model


def token_loss(
    model: Model,
    hidden: Tensor,
    targets: Tensor,
    z_loss: float = 0.0,
    counted: Tensor | None = None,
    smoothing: float = 0.0,
) -> Loss:
    """The loss of predicting ``targets`` from the final stream.

    Args:
        model: its head makes logits, soft-capped ones as they are used.
        hidden: (batch, time, width), of :meth:`segpt.model.model.Model.hidden`.
        targets: (batch, time) token ids.
        z_loss: the coefficient of the squared log Z.
        counted: (batch, time), true where a target counts; all do without. At least one must.
        smoothing: how much of each target is spread evenly over the vocabulary.
    """
    rows, wanted = hidden.flatten(0, -2), targets.flatten()
    if counted is None:
        share = torch.full(wanted.shape, 1.0 / wanted.numel(), device=rows.device)
    else:
        share = counted.flatten().float() / counted.sum()
    return kernels.token_loss(rows, model.readout(), wanted, share, z_loss, smoothing)
