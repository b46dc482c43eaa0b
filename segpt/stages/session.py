"""The parts of a training run on a text: what it reads, when rules end it, what it writes."""

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpt.atomic import remove_directory, write_file
from segpt.config.base import encode, fingerprint
from segpt.config.recipe import Recipe
from segpt.config.rules import Finding, Rules
from segpt.config.run_about import BestStep, RulesAbout, RunAbout
from segpt.data.ledger import CoverageLog
from segpt.data.mix import MixedBlocks, MixLog, TrainingText, blocks_of, record_of
from segpt.data.validation import ValidationSets
from segpt.errors import TrainError
from segpt.restoring import taking_over
from segpt.train.loop import StepMetrics
from segpt.train.trainer import Trainer
from segpt.values import Arrays, Checkpoint, documents_digest

from . import rules as referee
from .checkpoint_io import save_checkpoint
from .commit import commit
from .environment import environment, versions
from .run_directory import METRICS, checkpoint_name, checkpoints, clean_run
from .start import From, Resume, Start
from .text_about import text_about

_REPLAYED = 1 << 16  # blocks that are recorded at once, of a run that was saved without a record


class _Ahead(NamedTuple):
    """Blocks number ``first`` and on: their ``places``, a row each, and the ``batch`` of them."""

    first: int
    size: int
    places: NDArray[np.int64]
    batch: NDArray[np.int64]


class DataCursor:
    """Where a run is in its text, and a record of every block that it has read."""

    def __init__(self, recipe: Recipe, tokens: TrainingText) -> None:
        self.recipe, self.tokens, train = recipe, tokens, recipe.train
        self.blocks = blocks_of(tokens, recipe.model.context, train.seed, train.order)
        self.ledger = record_of(self.blocks)
        self._ahead: _Ahead | None = None

    def restore(self, state: Arrays, count: int) -> None:
        """Go back to where ``count`` blocks were read.

        Raises:
            CheckpointError: if the record does not fit the text.
            TrainError: if the record is of another number of blocks.
        """
        mixed = isinstance(self.ledger, MixLog)
        if mixed or "ledger|now" in state:
            with taking_over("the record of what was read", state, self.ledger.state):
                self.ledger.restore(state)
        else:  # saved before there was a record
            for first in range(0, count, _REPLAYED):
                self.ledger.record(self.blocks.places(first, min(_REPLAYED, count - first)))
        self._check_count(count)
        if isinstance(self.ledger, MixLog) and isinstance(self.blocks, MixedBlocks):
            self.blocks.restore(self.ledger.counts)

    def check(self, trainer: Trainer) -> None:
        """Refuse to save a run whose record does not tell what it was trained on.

        Raises:
            TrainError: if blocks were read that no step was taken with.
        """
        self._check_count(trainer.blocks)

    def _check_count(self, trained: int) -> None:
        if self.ledger.blocks != trained:
            raise TrainError(
                f"{self.ledger.blocks:,} blocks were read and {trained:,} trained on; "
                "the run would report tokens that it did not learn from"
            )

    def check_enough(self, trainer: Trainer) -> None:
        """Refuse a text that is too short to take no target twice, where the recipe wants that.

        Raises:
            DataError: saying how much is missing.
        """
        if self.recipe.train.unique:
            left = trainer.size if trainer.left is None else trainer.left
            self.blocks.check_enough(trainer.blocks + left)

    def probe(self, trainer: Trainer) -> NDArray[np.int64]:
        """The batch of the coming step, (sequences, context + 1), which stays unread."""
        return self.blocks.take(trainer.blocks, trainer.size)

    def read(self, trainer: Trainer) -> NDArray[np.int64]:
        """The batch of the coming step, (sequences, context + 1), on record from now on."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or (ahead.first, ahead.size) != (trainer.blocks, trainer.size):
            ahead = self._take(trainer)
        self.ledger.record(ahead.places)
        return ahead.batch

    def prepare(self, trainer: Trainer) -> None:
        """Read the batch of the coming step, if there is one, and send it to the device.

        It is on record only when :meth:`read` gives it out. Where a run is as long as its time,
        the size of that step may come out otherwise; then it is read again. On a CPU, which would
        gain nothing, nothing is read ahead.
        """
        if trainer.transfer.copier is not None and trainer.fraction < 1.0:
            self._ahead = self._take(trainer)
            trainer.transfer.send(self._ahead.batch, trainer.parts(self._ahead.size))

    def _take(self, trainer: Trainer) -> "_Ahead":
        places = self.blocks.places(trainer.blocks, trainer.size)
        return _Ahead(trainer.blocks, trainer.size, places, self.blocks.read(places))

    def is_exhausted(self, trainer: Trainer) -> bool:
        """Whether no further step finds targets that are new, where none may be taken twice."""
        if not self.recipe.train.unique or trainer.left is not None:
            return False
        return not self.blocks.has_enough(trainer.blocks + trainer.size)

    def lines(self, trainer: Trainer) -> list[str]:
        """What an epoch is, and of a mix what the run takes of each source, for people."""
        blocks = self.blocks
        if isinstance(blocks, MixedBlocks):
            left = trainer.left
            return blocks.lines(None if left is None else trainer.blocks + left)
        left_out = blocks.targets - blocks.epoch_blocks * blocks.context
        return [
            f"an epoch is {blocks.epoch_blocks:,} blocks of {blocks.context}, "
            f"{blocks.order}; it leaves out {left_out:,} of {blocks.targets:,} targets"
        ]


class Referee:
    """The rules of a contest over one run, if there are any, and whether the run is over."""

    def __init__(self, rules: Rules | None, recipe: Recipe, facts: referee.RunFacts) -> None:
        """Look at what is known before the run.

        Raises:
            TrainError: if rules are broken already.
        """
        self.rules, self.recipe, self.facts = rules, recipe, facts
        self.over = False
        self.findings: Sequence[Finding] = ()
        if rules is not None:
            self.findings = referee.before(rules, recipe, facts)

    def begin(self, trainer: Trainer) -> None:
        """Find out whether a run that goes on has come to its end before."""
        self.over = trainer.fraction >= 1.0
        if self.rules is not None:
            self._ends = referee.ending(self.rules, trainer, self.facts)
            self.over = self.over or self._ends(trainer, trainer.validations.nats)

    def ends(self, trainer: Trainer, nats: float | None, cursor: DataCursor) -> bool:
        """Whether rules end the run, or a text that gives no other batch without repeating."""
        if self.rules is not None and self._ends(trainer, nats):
            self.over = True
        self.over |= cursor.is_exhausted(trainer)
        return self.over

    def about(self, trainer: Trainer, ledger: CoverageLog | MixLog) -> RulesAbout | None:
        """What a checkpoint says about the rules; None without any."""
        if self.rules is None:
            return None
        now = (self.rules, self.recipe, self.facts, trainer, ledger)
        self.findings = referee.after(*now, finished=self.over)
        return RulesAbout(name=self.rules.name, finished=self.over, findings=tuple(self.findings))

    def lines(self) -> list[str]:
        """The findings so far, for people."""
        return referee.lines(self.findings) if self.findings else []


class RunWriter:
    """The directory of a run: its metrics and its last checkpoints."""

    def __init__(
        self,
        recipe: Recipe,
        tokens: TrainingText,
        held_out: ValidationSets | None,
        out: Path,
        start: Start,
    ) -> None:
        self.recipe, self.tokens, self.held_out, self.out = recipe, tokens, held_out, out
        self.metrics = out / METRICS
        earlier: list[NDArray[np.uint64] | None] = []
        if isinstance(start, From) or (
            isinstance(start, Resume) and "init" in start.checkpoint.origin
        ):
            earlier = [start.checkpoint.documents]
        lists = [tokens.documents, *(had for had in earlier if had is not None)]
        known = len(lists) == 1 + len(earlier) and tokens.comparable
        self.documents = np.unique(np.concatenate(lists)) if known else None
        self.origin = {
            "tokens": tokens.fingerprint,
            "recipe": fingerprint(recipe),
        }
        if self.documents is not None:
            self.origin["documents"] = documents_digest(self.documents)
        self.origin["seed"] = str(recipe.train.seed)
        if isinstance(start, From):
            self.origin["init"] = start.checkpoint.fingerprint
        if isinstance(start, Resume) and "init" in start.checkpoint.origin:
            self.origin["init"] = start.checkpoint.origin["init"]

    def open(self, step: int) -> None:
        """Make the directory, and take back what it says of steps after ``step``."""
        self.out.mkdir(parents=True, exist_ok=True)
        clean_run(self.out)
        rewind(self.metrics, step)

    def log(self, metrics: StepMetrics, by_set: Mapping[str, float] | None = None) -> None:
        """Write a logged step, with the bits per byte of each set where there are several."""
        line = dataclasses.asdict(metrics)
        if by_set and metrics.validation_bpb is not None:
            line["validation_bpb_by_set"] = dict(by_set)
        self.append(line)

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line of the metrics."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def save(self, trainer: Trainer, cursor: DataCursor, about: RunAbout) -> Path:
        """Write a checkpoint with all that resuming needs."""
        checkpoint = Checkpoint(
            spec=self.recipe.model,
            weights=trainer.averaged_weights(),
            tokenizer=self.tokens.tokenizer,
            step=trainer.step,
            progress=trainer.progress,
            documents=self.documents,
            origin=self.origin,
            state=trainer.state() | cursor.ledger.state(),
            about=about,
        )
        path = self.out / checkpoint_name(trainer.step)
        save_checkpoint(path, checkpoint)
        return path

    def forget_old(self, trainer: Trainer) -> None:
        """Remove older checkpoints than the recipe keeps, but never the best it keeps."""
        train, best = self.recipe.train, None
        if train.keep_best:
            best = checkpoint_name(trainer.validations.best_step)
        for old in checkpoints(self.out)[: -train.keep]:
            if old.name != best:
                remove_directory(old)

    def about(self, trainer: Trainer, cursor: DataCursor, judge: Referee) -> RunAbout:
        """What a checkpoint says about the run so far."""
        validations, best = trainer.validations, None
        if self.recipe.train.keep_best and validations.best_step:
            best = BestStep(step=validations.best_step, bpb=validations.best_bpb)
        return RunAbout(
            recipe=encode(self.recipe),
            seconds=trainer.elapsed,
            tokens=cursor.ledger.tokens,
            read=cursor.ledger.coverage(),
            text=text_about(self.tokens, self.held_out),
            finished=judge.over or trainer.fraction >= 1.0,
            environment=dataclasses.replace(
                environment(trainer.mesh.device.type, trainer.mesh.size),
                threads=trainer.threads.most,
                fewest_threads=trainer.threads.fewest,
                commit=commit(),
                versions=dataclasses.replace(versions(), python=platform.python_version()),
            ),
            best=best,
            rules=judge.about(trainer, cursor.ledger),
        )


def rewind(metrics: Path, step: int) -> None:
    """Drop the lines of steps that will be taken again, and a line cut short by a kill."""
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_bytes().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + b"\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    write_file(metrics, b"".join(kept) if step else b"")
