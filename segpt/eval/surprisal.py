"""Score first, then learn: the order is the structure, not a promise."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segpt.errors import ScoreError
from segpt.model.model import Model

from .frontier import Frontier
from .windows import Spans

POSITIONS = 1024  # whose logits are held at once

# Gets the tokens of a chunk and how far through the stream it lies, from 0 to 1.
Learn = Callable[[NDArray[np.uint32], float], None]


def nothing(tokens: NDArray[np.uint32], progress: float) -> None:
    """The policy that never adapts."""


def surprisal(
    frontier: Frontier, chunks: Sequence[Sequence[Spans]], learn: Learn = nothing
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield the nats of every target; only when a chunk is through may ``learn`` see its tokens.

    The last chunk is not learnt from, as nothing is left to score.

    Args:
        frontier: the stream and the model, whose weights ``learn`` may change.
        chunks: batches of windows from :func:`segpt.eval.windows.schedule`, in order.
        learn: what to do between chunks.

    Yields:
        The first target of a batch and the nats of it and those after it.

    Raises:
        ScoreError: if a probability is zero or not a number, or the order is violated.
    """
    for index, chunk in enumerate(chunks):
        for windows in chunk:
            frontier.score(windows)
            with torch.no_grad():
                nats = window_nats(frontier.model, frontier.ids, windows).cpu().numpy()
            if not np.isfinite(nats).all():
                where = windows.first + int(np.flatnonzero(~np.isfinite(nats))[0])
                raise ScoreError(
                    f"the model gives target {where} no finite number of nats; its weights are "
                    "damaged or have diverged: score an earlier checkpoint, or adapt.rate is too "
                    "high"
                )
            yield windows.first, nats.ravel().astype(np.float64)
        if index + 1 < len(chunks):
            tokens = frontier.tokens(chunk[0].first, chunk[-1].stop)
            learn(tokens, index / (len(chunks) - 1))
            frontier.learnt()


def window_nats(model: Model, ids: NDArray[np.uint32], windows: Spans) -> Tensor:
    """The nats of each scored target, (windows, targets) in float32, for windows of one shape.

    The softmax runs over the whole vocabulary, and only where a target is scored.
    """
    length, scored = windows.shapes[0].tolist()
    tokens = gather(ids, windows.begin, length + 1).to(model.table.weight.device)
    hidden = model.hidden(tokens[:, :-1], last=scored)
    return position_nats(model, hidden, tokens[:, -scored:])


def position_nats(model: Model, hidden: Tensor, targets: Tensor) -> Tensor:
    """-log p(target), (batch, time), from the final stream, with few logits at a time."""
    flat = (torch.split(t, POSITIONS) for t in (hidden.flatten(0, 1), targets.flatten()))
    parts = zip(*flat, strict=True)
    nats = [F.cross_entropy(model.logits(x), target, reduction="none") for x, target in parts]
    return torch.cat(nats).view(targets.shape)


def gather(ids: NDArray[np.uint32], begin: NDArray[np.int64], length: int) -> Tensor:
    """The tokens from each of ``begin`` on, (begins, length) in int64."""
    return torch.from_numpy(ids[begin[:, None] + np.arange(length)].astype(np.int64))
