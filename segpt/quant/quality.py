"""What a model loses by quantization, measured on text."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt.config.quant_report import Quality
from segpt.errors import CheckpointError, DataError
from segpt.model.model import Model

POSITIONS = 1024  # whose logits are held at once, for both models


@torch.no_grad()
def compare(
    before: Model, after: Model, blocks: Iterable[NDArray[np.int64]], sizes: NDArray[np.integer]
) -> Quality:
    """Run both models over the same blocks, few positions at a time.

    Args:
        before: the model as it was trained.
        after: the model of the decoded weights.
        blocks: (batch, time + 1) token ids; every token but the first of a row is a target.
        sizes: (vocab,) bytes that each token spells, 0 for the one that starts a document.

    Raises:
        DataError: if no target spells a byte, or the text has another vocabulary.
        CheckpointError: if a model's logits are not finite.
    """
    if len(sizes) != before.spec.vocab:
        raise DataError(
            f"the held-out text has {len(sizes)} token ids, the model {before.spec.vocab}; "
            "prepare it with the tokenizer of the checkpoint"
        )
    measured: list[Tensor] = []
    size = 0
    for block in blocks:
        tokens = torch.from_numpy(block).to(before.table.weight.device)
        targets = tokens[:, 1:].flatten()
        size += int(sizes[block[:, 1:]].sum())
        first, second = (m.hidden(tokens[:, :-1]).x.flatten(0, 1) for m in (before, after))
        for start in range(0, len(targets), POSITIONS):
            at = slice(start, start + POSITIONS)
            p, q = (
                model.logits(x[at]).double().log_softmax(-1)
                for model, x in ((before, first), (after, second))
            )
            measured.append(_measure(p, q, targets[at]).cpu())
    if size == 0:
        raise DataError("the held-out text has no bytes to measure on; give a longer one")
    loss_before, loss_after, divergence, agreement = torch.cat(measured, 1).numpy()
    if not np.isfinite(loss_before + loss_after).all():
        raise CheckpointError("the logits are not finite; quantize an earlier checkpoint")
    bits = len(loss_before) / (math.log(2) * size)
    return Quality(
        bpb_before=float(loss_before.mean()) * bits,
        bpb_after=float(loss_after.mean()) * bits,
        loss_before=float(loss_before.mean()),
        loss_after=float(loss_after.mean()),
        kl_mean=float(divergence.mean()),
        kl_p99=float(np.quantile(divergence, 0.99)),
        top1_agreement=float(agreement.mean()),
        tokens=len(loss_before),
        bytes=size,
    )


def _measure(p: Tensor, q: Tensor, targets: Tensor) -> Tensor:
    """Losses of both, KL and agreement, (4, positions), from log-probabilities."""
    losses = [-x.gather(1, targets[:, None])[:, 0] for x in (p, q)]
    divergence = (p.exp() * (p - q)).sum(1)
    return torch.stack([*losses, divergence, (p.argmax(1) == q.argmax(1)).double()])
