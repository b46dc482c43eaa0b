"""The nats of a whole text, by one process or shared among several."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from segpt.errors import ScoreError
from segpt.model.model import Model
from segpt.spec.score import Frozen, ScoreSpec, Sgd

from .frontier import Frontier
from .learners import Descend
from .ledger import Ledger
from .surprisal import Learn, nothing, surprisal
from .windows import Spans, schedule


class Progress(NamedTuple):
    """Targets that this process has scored, of how many, and bits per byte so far."""

    done: int
    total: int
    bpb: float


class Tally(NamedTuple):
    """Nats of all targets, updates of the weights between chunks, and processes that shared."""

    nats: float
    updates: int
    processes: int


class Share(NamedTuple):
    """What one process scores: chunks of batches, the first of which is number ``row`` of all.

    ``counts`` tells whether this process's numbers are the ones that count.
    """

    chunks: Sequence[Sequence[Spans]]
    row: int
    counts: bool


def tally(
    model: Model,
    ledger: Ledger,
    spec: ScoreSpec,
    context: int,
    report: Callable[[Progress], None] = lambda _: None,
) -> Tally:
    """Score every target of a stream once; all processes return the same, to the last bit.

    Frozen weights let each process take a run of batches. A policy that learns has only one
    order, so every process goes through it and the first one's numbers count.

    Args:
        model: the model; it is left as it is.
        ledger: the stream.
        spec: windows and policy.
        context: tokens per window.
        report: called after each batch; a ScoreError that it raises ends the score everywhere.

    Raises:
        ScoreError: if any process cannot prove its part of the score.
    """
    learn: Learn = nothing
    if isinstance(spec.policy, Sgd):
        learn = Descend(model, spec.policy, context)
        model = learn.model
    chunks = schedule(ledger.targets, context, spec)
    processes = dist.get_world_size() if _shared() else 1
    share = _share(chunks, spec.policy, dist.get_rank() if _shared() else 0, processes)
    frontier = Frontier(ledger.ids, model, share.chunks[0][0].first if share.chunks else 0)
    table = np.zeros((sum(map(len, chunks)), 2))
    failure: ScoreError | None = None
    try:
        _fill(table[share.row :], frontier, ledger, share, learn, report)
    except ScoreError as error:
        failure = error
        table[:] = np.nan  # which tells the other processes
    table = _sum(table * share.counts, model.table.weight.device)
    if failure is not None:
        raise failure
    if np.isnan(table).any():
        raise ScoreError("another process could not score its part; see its message")
    if (scored := int(table[:, 1].sum())) != ledger.targets:
        raise ScoreError(f"{scored:,} of {ledger.targets:,} targets were scored")
    return Tally(math.fsum(table[:, 0]), frontier.version, processes)


def _fill(
    rows: NDArray[np.float64],
    frontier: Frontier,
    ledger: Ledger,
    share: Share,
    learn: Learn,
    report: Callable[[Progress], None],
) -> None:
    """Put the nats and the number of targets of each batch into its row."""
    total = sum(batch.stop - batch.first for chunk in share.chunks for batch in chunk)
    done, size, sum_of_nats = 0, 0, 0.0
    for row, (first, nats) in zip(rows, surprisal(frontier, share.chunks, learn), strict=False):
        row[:] = nats.sum(), len(nats)
        done += len(nats)
        size += ledger.bytes_of(first, first + len(nats))
        sum_of_nats += float(row[0])
        report(Progress(done, total, sum_of_nats / (math.log(2) * max(1, size))))


def _share(
    chunks: Sequence[Sequence[Spans]], policy: Frozen | Sgd, rank: int, processes: int
) -> Share:
    match policy:
        case Frozen():
            (batches,) = chunks
            begin, end = (len(batches) * r // processes for r in (rank, rank + 1))
            return Share([batches[begin:end]] if begin < end else [], begin, True)
        case Sgd():
            return Share(chunks, 0, rank == 0)


def _shared() -> bool:
    return dist.is_available() and dist.is_initialized()


def _sum(table: NDArray[np.float64], device: torch.device) -> NDArray[np.float64]:
    """The sum over processes; exact, as all but one of them hold zero in each row."""
    if not _shared():
        return table
    place = device if dist.get_backend() == "nccl" else torch.device("cpu")
    shared = torch.from_numpy(table).to(place)
    dist.all_reduce(shared)
    return shared.cpu().numpy()
