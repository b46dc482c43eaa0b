"""Tokens to Checkpoint: a run directory with metrics and the last checkpoints."""

from pathlib import Path
from typing import Any

from segpt.config.base import encode
from segpt.config.recipe import Recipe
from segpt.config.rules import Rules
from segpt.config.run_about import RunAbout
from segpt.data.mix import TrainingText
from segpt.data.tokenizer import load
from segpt.data.validation import ValidationSets, as_sets, check_apart
from segpt.errors import TrainError
from segpt.kernels import use_recipe
from segpt.kernels.precision import exact_float32
from segpt.train.loop import StepMetrics, training
from segpt.train.mesh import Mesh
from segpt.train.trainer import Trainer, compile_model
from segpt.values import Tokens

from . import resuming
from .dry_run import estimate_facts, group_table
from .run_directory import checkpoint_name
from .session import DataCursor, Referee, RunWriter
from .start import SCRATCH, From, Resume, Scratch, Start
from .validation import Validation


class Observer:
    """Told what a run does. Every method may be overridden; none has to be."""

    def notice(self, line: str) -> None:
        """A line about the run before it begins, and when something falls back."""

    def step(self, metrics: StepMetrics) -> None:
        """A logged step, in the leading process."""

    def saved(self, checkpoint: Path) -> None:
        """A checkpoint that is on the disk, in the leading process."""

    def finished(self, about: RunAbout) -> None:
        """The ``about`` of the last checkpoint, when the run is over."""

    def should_stop(self) -> bool:
        """Asked after every step; true means save and stop."""
        return False


def train(
    recipe: Recipe,
    tokens: TrainingText,
    held_out: Tokens | ValidationSets | None,
    out: Path,
    mesh: Mesh,
    *,
    start: Start = SCRATCH,
    rules: Rules | None = None,
    observer: Observer | None = None,
) -> Path:
    """Train a recipe on tokens; checkpoints and ``metrics.jsonl`` go to the directory ``out``.

    A resumed run goes on exactly where it stopped. Its recipe is the same but for what does not
    change the result, see :func:`segpt.stages.resuming.differences`, and for the length, which may
    be another one up to the horizon of the schedules: a run that was stopped early has then taken
    the steps that the longer one takes.

    Args:
        recipe: model and training.
        tokens: the training split, or a mix of several.
        held_out: text to validate on during training, several by name, or None.
        out: the run directory.
        mesh: the processes that share the work.
        start: what the run begins with.
        rules: what the run must keep to; those of the resumed run if that had any.
        observer: told what happens, and asked when to stop.

    Returns:
        The directory of the last checkpoint.

    Raises:
        TrainError: if the tokens do not fit the model or the resumed run, or rules are broken
            before training, or the processes were not started alike.
        DataError: if the text is too short to take no target twice, where the recipe wants that.
        CheckpointError: if weights to begin with have another shape.
    """
    observer = Observer() if observer is None else observer
    with use_recipe(recipe.train.kernels), exact_float32(mesh.device.type):
        sets = as_sets(held_out)
        mesh.agree(_shared_facts(recipe, tokens, sets, start, rules))
        with mesh.all_well():
            session = _Session(recipe, tokens, sets, out, mesh, start, rules)
        trainer, cursor = session.trainer, session.cursor
        trainer.threads.notice = observer.notice
        compile_model(trainer, cursor.probe(trainer), observer.notice)
        if mesh.leads:
            for line in session.lines():
                observer.notice(line)
            session.writer.open(trainer.step)
        check = None if sets is None else Validation(recipe, sets, mesh)
        if check is not None and recipe.train.validate_first and not trainer.step:
            session.validate_first(check)
        if not session.referee.over:
            session.run(check, observer)
        observer.finished(session.about())
        return out / checkpoint_name(trainer.step)


class _Session:
    """A run on a text: its inputs are checked first, then the trainer is made, then restored."""

    def __init__(
        self,
        recipe: Recipe,
        tokens: TrainingText,
        held_out: ValidationSets | None,
        out: Path,
        mesh: Mesh,
        start: Start,
        rules: Rules | None,
    ) -> None:
        _check_tokens(recipe, tokens)
        check_apart(tokens, held_out)
        self.recipe, self.held_out, self.mesh, self.start = recipe, held_out, mesh, start
        self.writer = RunWriter(recipe, tokens, held_out, out, start)
        self.cursor = DataCursor(recipe, tokens)
        scratch = isinstance(start, Scratch)
        if isinstance(start, From):
            resuming.check_fits(start.checkpoint, recipe, tokens)
        if isinstance(start, Resume):
            resuming.check_resumable(start.checkpoint, self.writer.origin, recipe)
            scratch = "init" not in self.writer.origin
            rules = rules or resuming.rules_of(start.checkpoint)
        facts = estimate_facts(
            recipe, None if held_out is None else held_out.first, mesh, scratch=scratch
        )
        self.referee = Referee(rules, recipe, facts)
        self.trainer = Trainer(recipe.model, recipe.train, mesh)
        match start:
            case From(checkpoint, optimizer):
                self.trainer.start_from(checkpoint.weights)
                if optimizer == "kept":
                    self.trainer.keep_optimizer(checkpoint.state or {})
            case Resume(checkpoint):
                assert checkpoint.state is not None
                self.trainer.restore(checkpoint.step, checkpoint.weights, checkpoint.state)
                self.cursor.restore(checkpoint.state, self.trainer.blocks)
            case Scratch():
                pass
        self.cursor.check_enough(self.trainer)
        self.referee.begin(self.trainer)

    def run(self, check: Validation | None, observer: Observer) -> None:
        """Take the steps; log and save what they come to."""
        trainer = self.trainer
        trainer.threads.start()
        try:
            for event in training(
                trainer,
                lambda _step: self.cursor.read(trainer),
                validate=check,
                should_stop=observer.should_stop,
                finish=lambda _trainer, nats: self.referee.ends(trainer, nats, self.cursor),
                sizes=load(self.cursor.tokens.tokenizer).sizes,
                prepare=lambda: self.cursor.prepare(trainer),
            ):
                if not isinstance(event, StepMetrics):
                    self.save(observer)
                elif self.mesh.leads:
                    self.writer.log(event, None if check is None else check.by_set)
                    observer.step(event)
        finally:
            trainer.threads.release()

    def save(self, observer: Observer) -> None:
        """Write a checkpoint; old ones go, but for the best if the recipe keeps that."""
        self.cursor.check(self.trainer)
        self.referee.over |= self.trainer.fraction >= 1.0
        if self.mesh.leads:
            path = self.writer.save(self.trainer, self.cursor, self.about())
            observer.saved(path)
            self.writer.forget_old(self.trainer)

    def validate_first(self, check: Validation) -> None:
        """Measure what the run begins with, as the first line of the metrics."""
        trainer = self.trainer
        with trainer.average.applied():
            measured = check(trainer.model.set_progress(trainer.progress).eval())
        nats, bpb = map(self.mesh.mean_value, measured)
        trainer.validations.add(0, 0, nats, bpb)
        if self.mesh.leads:
            line = {"step": 0, "tokens": 0, "validation_loss": nats, "validation_bpb": bpb}
            by_set = {"validation_bpb_by_set": check.by_set} if check.by_set else {}
            self.writer.append(line | by_set)

    def about(self) -> RunAbout:
        """What a checkpoint says about the run so far."""
        return self.writer.about(self.trainer, self.cursor, self.referee)

    def lines(self) -> list[str]:
        """What a run says before it starts."""
        groups = group_table(self.trainer.optimizers.groups())
        lines = [*groups, *self.cursor.lines(self.trainer), *self.referee.lines()]
        if isinstance(self.start, Resume):
            lines += resuming.inexact(self.start.checkpoint, self.mesh)
        return lines


def _check_tokens(recipe: Recipe, tokens: TrainingText) -> None:
    """Refuse tokens of another vocabulary, or whose documents open with another token."""
    if tokens.tokenizer.vocab != recipe.model.vocab:
        raise TrainError(
            f"the tokens have a vocabulary of {tokens.tokenizer.vocab}, the model of "
            f"{recipe.model.vocab}; set model.vocab, or prepare the text with another tokenizer"
        )
    opens = load(tokens.tokenizer).start
    if recipe.model.start not in (None, opens):
        raise TrainError(
            f"documents of these tokens open with token {opens}, those of the model with "
            f"token {recipe.model.start}; set model.start={opens}"
        )


def _shared_facts(
    recipe: Recipe,
    tokens: TrainingText,
    held_out: ValidationSets | None,
    start: Start,
    rules: Rules | None,
) -> dict[str, Any]:
    """What all processes of a run have to be given alike."""
    resumed = initial = None
    match start:
        case Resume(checkpoint):
            resumed = {"step": checkpoint.step, "digest": checkpoint.fingerprint}
        case From(checkpoint, optimizer):
            initial = {"digest": checkpoint.fingerprint, "optimizer": optimizer}
        case Scratch():
            pass
    return {
        "recipe": encode(recipe),
        "data": {"tokens": tokens.count, "digest": tokens.fingerprint},
        "validation": held_out and {n: [t.count, t.digest] for n, t in held_out.all().items()},
        "resumed checkpoint": resumed,
        "initial checkpoint": initial,
        "rules": rules and rules.name,
    }
