"""How likely a model finds continuations of a context: what tasks of several answers ask.

Sequences that begin alike, as the candidates of one example do, run together: what they share
runs once and the rest as a batch. Which ones run together changes no number.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt.errors import ScoreError
from segpt.kernels import onednn
from segpt.kernels.cross_entropy import nats_of_logits

from .subject import Shared, Subject

# Tokens that run at once; on a CPU what fits its caches, elsewhere what keeps it busy.
BATCH_CPU = 2048
BATCH = 32_768

STEP = 16  # prefixes whose lengths differ by less are batched by the length of what follows
SAVES = 4  # sequences run together if that saves this part of one of them
PADDED = 16  # and batches grow while padding costs less than this part of the largest batch
COPIES = 4  # times as many tokens as a batch may be held as copies of prefixes


class Request(NamedTuple):
    """A context, which begins with the start token, and the tokens after it that are scored."""

    context: Sequence[int]
    continuation: Sequence[int]


class ContinuationScore(NamedTuple):
    """Nats of the scored tokens, how many these are, and whether each was the likeliest."""

    nats: float
    tokens: int
    greedy: bool


class _Row(NamedTuple):
    """A sequence after the crop, and the first of its tokens that is scored."""

    number: int
    tokens: NDArray[np.uint32]
    first: int


class _Family(NamedTuple):
    """Rows whose first ``shared`` tokens are the same, and need no prediction."""

    shared: int
    rows: list[_Row]

    @property
    def longest(self) -> int:
        return max(len(row.tokens) for row in self.rows) - 1


def continuations(
    subject: Subject,
    requests: Sequence[Sequence[Request]],
    *,
    batch: int | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[ContinuationScore]]:
    """The nats of continuations, each given its context.

    A context and its continuation together are cropped from the left to the context of the
    subject. A token that has lost everything before it has no prediction and is not scored.

    Args:
        subject: the model and its tokenizer.
        requests: for each example its candidates.
        batch: tokens that run at once; by the device if None. It changes no result.
        report: told how many of how many requests are done.

    Returns:
        One :class:`ContinuationScore` per request, in the same order.

    Raises:
        ScoreError: if a request has nothing to score, a token is not of the vocabulary, or a
            probability is zero or not a number.
    """
    batch = batch or (BATCH_CPU if subject.device.type == "cpu" else BATCH)
    flat = [request for example in requests for request in example]
    rows = [_crop(i, request, subject) for i, request in enumerate(flat)]
    scores: dict[int, ContinuationScore] = {}
    for families in _batches(_families(rows, batch), batch):
        with torch.no_grad(), onednn.wanted():
            scores |= _run(subject, families)
        report(len(scores), len(flat))
    each = iter(scores[i] for i in range(len(flat)))
    return [[next(each) for _ in example] for example in requests]


def _crop(number: int, request: Request, subject: Subject) -> _Row:
    ids = np.array([*request.context, *request.continuation], np.int64)
    if ids.size and not 0 <= ids.min() <= ids.max() < subject.vocab:
        raise ScoreError(
            f"request {number} holds a token outside the vocabulary of {subject.vocab}; it was "
            "made with another tokenizer"
        )
    gone = max(0, len(ids) - (subject.context or len(ids)))
    first = max(1, len(request.context) - gone)
    if not len(request.continuation) or first >= len(ids) - gone:
        raise ScoreError(
            f"request {number} has no token to score; a continuation needs one, and a token before"
        )
    return _Row(number, ids[gone:].astype(np.uint32), first)


def _families(rows: Sequence[_Row], batch: int) -> Iterator[_Family]:
    """Put sequences that begin alike together wherever that saves work.

    In alphabetical order those that share most are neighbours.
    """
    order = sorted(rows, key=lambda row: row.tokens.astype(">u4").tobytes())
    members: list[_Row] = []
    shared = longest = 0
    for row in order:
        if members:
            alike = min(shared, row.first - 1, _alike(members[-1], row))
            saved = alike - (shared - alike) * (len(members) - 1)
            tails = (max(longest, len(row.tokens)) - alike) * (len(members) + 1)
            if saved * SAVES >= len(row.tokens) and tails <= batch:
                members.append(row)
                shared, longest = alike, max(longest, len(row.tokens))
                continue
            yield _Family(shared if len(members) > 1 else 0, members)
        members, shared, longest = [row], row.first - 1, len(row.tokens)
    if members:
        yield _Family(shared if len(members) > 1 else 0, members)


def _alike(a: _Row, b: _Row) -> int:
    """How many tokens two sequences begin with together."""
    n = min(len(a.tokens), len(b.tokens))
    differ = np.flatnonzero(a.tokens[:n] != b.tokens[:n])
    return int(differ[0]) if differ.size else n


def _batches(families: Iterator[_Family], batch: int) -> Iterator[list[_Family]]:
    """Families that run at once: few tokens too many, and all cut after as many shared ones."""
    order = sorted(families, key=lambda family: (family.shared // STEP, family.longest))
    chosen: list[_Family] = []
    for family in order:
        more = [*chosen, family]
        tokens, held = _cost(more)
        wasted = tokens - _cost(chosen)[0] - _cost([family])[0] if chosen else 0
        if chosen and (tokens > batch or held > COPIES * batch or wasted * PADDED > batch):
            yield chosen
            more = [family]
        chosen = more
    if chosen:
        yield chosen


def _cost(families: Sequence[_Family]) -> tuple[int, int]:
    """Tokens that run, padding included, and those whose keys and values are held."""
    if not families:
        return 0, 0
    shared, rows = min(f.shared for f in families), sum(len(f.rows) for f in families)
    longest = max(f.longest for f in families)
    return len(families) * shared + rows * (longest - shared), rows * longest


def _run(subject: Subject, families: Sequence[_Family]) -> dict[int, ContinuationScore]:
    """Score the rows of some families in one batch."""
    rows = [row for family in families for row in family.rows]
    cut = min(family.shared for family in families)
    longest = max(family.longest for family in families)
    tokens = np.zeros((len(rows), longest - cut), np.int64)
    for place, row in zip(tokens, rows, strict=True):
        place[: len(row.tokens) - 1 - cut] = row.tokens[cut:-1]
    scored = [len(row.tokens) - row.first for row in rows]
    columns = np.concatenate([np.arange(row.first - 1, len(row.tokens) - 1) for row in rows])
    targets = np.concatenate([row.tokens[row.first :] for row in rows])
    shared = None
    if cut:
        prefixes = np.stack([family.rows[0].tokens[:cut] for family in families])
        owner = np.repeat(np.arange(len(families)), [len(family.rows) for family in families])
        shared = Shared(_tensor(prefixes, subject), _tensor(owner, subject))
    logits = subject.logits(
        _tensor(tokens, subject),
        _tensor(np.repeat(np.arange(len(rows)), scored), subject),
        _tensor(columns - cut, subject),
        shared,
    )
    nats, greedy = _judge(logits, _tensor(targets, subject))
    borders = np.cumsum([0, *scored[:-1]])
    if not np.isfinite(nats).all():
        row = rows[
            int(np.searchsorted(borders, np.flatnonzero(~np.isfinite(nats))[0], "right")) - 1
        ]
        raise ScoreError(
            f"the model gives request {row.number} no finite number of nats; its weights are "
            "damaged or have diverged: take an earlier checkpoint"
        )
    sums, all_greedy = np.add.reduceat(nats, borders), np.logical_and.reduceat(greedy, borders)
    return {
        row.number: ContinuationScore(float(total), count, bool(best))
        for row, total, count, best in zip(rows, sums, scored, all_greedy, strict=True)
    }


def _judge(
    logits: Iterator[Tensor], targets: Tensor
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """-log p of each target, and whether it is the likeliest token."""
    nats, greedy = [], []
    done = 0
    for part in logits:
        wanted = targets[done : done + len(part)]
        nats.append(nats_of_logits(part, wanted))
        greedy.append(part.argmax(-1) == wanted)
        done += len(part)
    return torch.cat(nats).double().cpu().numpy(), torch.cat(greedy).cpu().numpy()


def _tensor(values: NDArray[np.integer], subject: Subject) -> Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(subject.device)
