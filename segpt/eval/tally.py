"""The nats of a whole text: score first, then learn, by one process or shared among several."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from segpt.config.precision import of_measuring
from segpt.config.score import ScoreSpec
from segpt.errors import CheckpointError, ScoreError
from segpt.kernels import onednn
from segpt.kernels.precision import computing
from segpt.model.model import Model
from segpt.restoring import same_kind, taking_over
from segpt.values import Arrays

from .learners import Chunk, Learner
from .ledger import EncodedText
from .ngram import Mixture
from .policies import learner, reach
from .predictor import Predictor
from .schedule import Round, progress, schedule
from .score_order import ScoreEvent, ScoreOrderGuard
from .windows import Indices, Spans

NONE: Indices = np.zeros(0, np.int64)


class ScoreProgress(NamedTuple):
    """Targets that this process has scored, of how many, and bits per byte so far."""

    done: int
    total: int
    bpb: float


@dataclass(frozen=True)
class Tally:
    """What scoring every target found.

    Attributes:
        nats: -log p of each target, (targets,).
        counts: how often each was scored, which is once, (targets,).
        rows: log p of the whole alphabet for the targets that were asked for, (probes, vocab).
        updates: how often the state changed between rounds.
        ledger: what was scored and learnt from, in this process.
        processes: how many shared the work.
    """

    nats: NDArray[np.float64]
    counts: NDArray[np.uint8]
    rows: NDArray[np.float64]
    updates: int
    ledger: Sequence[ScoreEvent]
    processes: int


# Gets, between rounds, how to take the state that a later call can resume from.
Pause = Callable[[Callable[[], dict[str, NDArray[Any]]]], None]


def score_stream(
    model: Model,
    ledger: EncodedText,
    spec: ScoreSpec,
    context: int,
    report: Callable[[ScoreProgress], None] = lambda _: None,
    *,
    probes: Indices = NONE,
    pause: Pause = lambda _: None,
    resume: Arrays | None = None,
) -> Tally:
    """Score every target of a stream once; all processes return the same, to the last bit.

    Where no group of rounds depends on another, processes share the groups. Otherwise every
    process goes through all of them and the first one's numbers count.

    Args:
        model: the model; it is left as it is.
        ledger: the stream.
        spec: windows and policy.
        context: tokens per window.
        report: called after each batch; a ScoreError that it raises ends the score everywhere.
        probes: targets whose whole distribution is wanted, (probes,), in order.
        pause: called after each round; what it raises ends the score.
        resume: the state that ``pause`` took, of the same model, stream and spec.

    Raises:
        ScoreError: if any process cannot prove its part of the score.
    """
    scorer = _StreamScorer(model, ledger, spec, context, probes)
    failure: ScoreError | CheckpointError | None = None
    try:
        with onednn.wanted(), computing(of_measuring(spec.precision), str(scorer.place)):
            scorer.run(report, pause, resume)
    except (ScoreError, CheckpointError) as error:
        failure = error
        scorer.nats[:], scorer.counting = np.nan, True  # which tells the other processes
    scorer.share()
    if failure is not None:
        raise failure
    if np.isnan(scorer.nats).any():
        raise ScoreError("another process could not score its part; see its message")
    scorer.guard.finish(scorer.counts)
    nats, rows = scorer.mixed()
    return Tally(
        nats, scorer.counts, rows, scorer.guard.version, scorer.guard.ledger, scorer.processes
    )


_BEGUN = "the score that was begun"


class _StreamScorer:
    """One process's way through the groups of a score."""

    def __init__(
        self, model: Model, ledger: EncodedText, spec: ScoreSpec, context: int, probes: Indices
    ) -> None:
        self.ledger, self.spec, self.probes = ledger, spec, probes
        self.processes = dist.get_world_size() if _shared() else 1
        rank = dist.get_rank() if _shared() else 0
        targets = ledger.targets
        self.learner: Learner = learner(model, spec, context)
        self.guard = ScoreOrderGuard(ledger.ids, self.learner.tensors())
        groups = schedule(
            ledger.starts, targets, context, spec, reach(model, context, spec), self.processes
        )
        if spec.policy.resets:
            # In turns, as documents come longest first.
            groups = groups[rank :: self.processes]
        self.counting = spec.policy.resets or rank == 0
        self.rounds = [round_ for group in groups for round_ in group]
        probed = np.zeros(targets, np.bool_)
        probed[probes] = True
        self.reader = Predictor(ledger.ids, context if spec.mode == "rolling" else None, probed)
        self.nats = np.zeros(targets)
        self.counts = np.zeros(targets, np.uint8)
        self.rows = np.zeros((len(probes), model.spec.vocab))
        self.place = model.table.weight.device
        self.done, self.scored, self.size, self.sum = 0, 0, 0, 0.0

    def run(
        self, report: Callable[[ScoreProgress], None], pause: Pause, resume: Arrays | None
    ) -> None:
        if resume is not None:
            self.restore(resume)
        total = sum(int(b.shapes[:, 1].sum()) for r in self.rounds for b in r.batches)
        for round_ in self.rounds[self.done :]:
            self.play(round_, report, total)
            self.done += 1
            if self.done < len(self.rounds):
                pause(self.state)

    def play(self, round_: Round, report: Callable[[ScoreProgress], None], total: int) -> None:
        """Score the batches of a round, and only then learn from what they scored."""
        if round_.segments:
            self.learner.open(len(round_.segments))
            self.reader.open()
            self.guard.open(self.learner.tensors(), persists=not self.spec.policy.per_document)
        for spans in round_.batches:
            self.guard.score(spans)
            reading = self.reader.read(self.learner, spans)
            if not np.isfinite(reading.nats).all():
                target = int(reading.targets[~np.isfinite(reading.nats)][0])
                raise ScoreError(
                    f"the model gives target {target} no finite number of nats; its weights are "
                    "damaged or have diverged: score an earlier checkpoint, or adapt.rate is too "
                    "high"
                )
            self.nats[reading.targets] = reading.nats
            asked = reading.targets[self.reader.probed[reading.targets]]
            self.rows[np.searchsorted(self.probes, asked)] = reading.rows
            self.count(spans, reading.nats)
            report(ScoreProgress(self.scored, total, self.sum / (math.log(2) * max(1, self.size))))
        if round_.updates:
            size, policy = self.ledger.targets, self.spec.policy
            self.learner.learn(
                [
                    Chunk(
                        update.segment,
                        self.guard.update(update),
                        progress(update.first, size, policy),
                    )
                    for update in round_.updates
                ]
            )
            self.guard.learnt()

    def count(self, spans: Spans, nats: NDArray[np.float32]) -> None:
        """Count what a batch adds to the figures of progress."""
        self.scored += len(nats)
        self.sum += float(nats.astype(np.float64).sum())
        self.size += int(self.ledger.sizes[spans.targets].sum())

    def share(self) -> None:
        """Add up what the processes found; exact, as all but one of them hold zero."""
        self.counts = self.guard.counts
        if not _shared():
            return
        for name in ("nats", "rows", "counts"):
            own = getattr(self, name)
            setattr(self, name, _sum(own if self.counting else np.zeros_like(own), self.place))

    def mixed(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Nats of all targets and rows of the probed ones, with n-grams if the spec has them.

        Their counts go through the stream in order, whatever order the model took.
        """
        if self.spec.ngram is None:
            return self.nats, self.rows
        ids = self.ledger.ids
        mixture = Mixture(self.spec.ngram, self.rows.shape[1], int(ids[0]))
        mixture.read(ids[:1])
        nats, rows, done = np.empty_like(self.nats), np.empty_like(self.rows), 0
        for index, stop in enumerate([*self.probes.tolist(), len(self.nats)]):
            part = slice(done, stop)
            nats[part] = mixture.adjust(ids[1:][part], -self.nats[part])
            if index < len(rows):
                rows[index] = mixture.row(self.rows[index])
            done = stop
        return nats, rows

    def state(self) -> dict[str, NDArray[Any]]:
        """All that :meth:`restore` needs, between two rounds."""
        return {
            "done": np.array(self.done),
            "nats": self.nats.copy(),
            "rows": self.rows.copy(),
            **{f"frontier|{name}": a for name, a in self.guard.state().items()},
            **{f"learner|{name}": a for name, a in self.learner.state().items()},
            **{f"reader|{name}": a for name, a in self.reader.state().items()},
        }

    def restore(self, state: Arrays) -> None:
        """Go back to between two rounds.

        Raises:
            CheckpointError: if ``state`` is of another score, or damaged.
        """
        fresh = self.state()
        fixed = ("done", "nats", "rows", "frontier|counts", "frontier|version")
        same_kind(_BEGUN, state, {name: fresh[name] for name in fixed})
        with taking_over(_BEGUN, state, self.state):
            self._restore(state)

    def _restore(self, state: Arrays) -> None:
        parts: dict[str, dict[str, NDArray[Any]]] = {"frontier": {}, "learner": {}, "reader": {}}
        for key, array in state.items():
            part, bar, name = key.partition("|")
            if bar:
                parts[part][name] = array
        self.done = int(state["done"])
        self.nats, self.rows = (np.array(state[name], np.float64) for name in ("nats", "rows"))
        self.learner.restore(parts["learner"])
        self.reader.restore(parts["reader"], self.place)
        self.guard.restore(parts["frontier"], self.learner.tensors())
        scored = self.guard.counts.view(np.bool_)
        self.scored, self.sum = int(scored.sum()), float(self.nats[scored].sum())
        self.size = int(self.ledger.sizes[scored].sum())


def _shared() -> bool:
    return dist.is_available() and dist.is_initialized()


def _sum(table: NDArray[Any], place: torch.device) -> NDArray[Any]:
    """The sum over processes."""
    shared = torch.from_numpy(table).to(place if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(shared)
    return shared.cpu().numpy()
