"""The loss on held-out text during training: cheap, because its windows do not overlap."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from segpt.errors import ScoreError
from segpt.model.model import Model

from .surprisal import position_nats


@torch.no_grad()
def validate(
    model: Model, blocks: Iterable[NDArray[np.int64]], sizes: NDArray[np.int64]
) -> tuple[float, float]:
    """Nats per token and bits per byte over blocks that are scored independently.

    A score by sliding window is lower, as it gives each token more context.

    Args:
        model: the model, on any device.
        blocks: (batch, time + 1) token ids; every token but the first of a row is a target.
        sizes: (vocab,) bytes that each token spells, 0 for the one that starts a document.

    Raises:
        ScoreError: if the blocks hold no byte to score.
    """
    nats, tokens, size = 0.0, 0, 0
    for block in blocks:
        ids = torch.from_numpy(block).to(model.table.weight.device)
        token_nats = position_nats(model, model.hidden(ids[:, :-1]).x, ids[:, 1:])
        nats += float(token_nats.cpu().double().sum())
        tokens += token_nats.numel()
        size += int(sizes[block[:, 1:]].sum())
    if not size:
        raise ScoreError("no bytes to validate on; hold out more text")
    return nats / tokens, nats / (math.log(2) * size)
