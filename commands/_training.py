"""What ``train`` and ``demo`` share: a run from its beginning or its last checkpoint to its end."""

import contextlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from segpt.config.base import encode
from segpt.config.layout import parameters
from segpt.config.recipe import Recipe
from segpt.config.rules import Rules
from segpt.config.run_about import RunAbout
from segpt.data.batches import in_chunks
from segpt.data.mix import TrainingText
from segpt.data.validation import ValidationSets, as_sets
from segpt.errors import InterruptError, SegptError, TrainError
from segpt.locks import claim, locked
from segpt.stages import checkpoint_io, run_directory
from segpt.stages.resuming import is_finished
from segpt.stages.start import From, Resume, Scratch, Start
from segpt.stages.train import Observer, train
from segpt.train.loop import StepMetrics
from segpt.train.mesh import Mesh, joined
from segpt.values import Checkpoint, Tokens
from segpt.workspace import begun_run
from segpt.workspace.begun_run import Trained

from . import _processes, _report
from ._remember import remember
from ._signals import Signals


def say_begun(run: Path) -> begun_run.Begun:
    """A run with the last checkpoint from which it can go on; a line if later ones are damaged.

    Raises:
        CheckpointError: if there is none.
    """
    last = begun_run.begun(run)
    if last.line is not None and _processes.leads():
        _report.notice(last.line)
    return last


def say_finished(run: begun_run.Begun) -> Trained:
    """What came of a run that has come to its end, which a line says."""
    _report.notice(
        f"{run.run} is trained to its end, step {run.checkpoint.step}: nothing is left to do"
    )
    return begun_run.finished(run)


def nothing() -> tuple[TrainingText, ValidationSets]:
    """The text of a run that has come to its end: it is not looked for."""
    raise AssertionError("a run that has ended reads nothing")


class Plan(NamedTuple):
    """A run that is about to begin or to go on.

    Attributes:
        recipe: model and training.
        read: opens the training and the validation split.
        out: the run directory.
        resume: the run that goes on, which lies at ``out``.
        fresh: take the first of out, out-2, ... that does not exist.
        init: a checkpoint whose weights to begin with.
        rules: what the run must keep to.
        optimizer: what becomes of the optimizer of ``init``.
    """

    recipe: Recipe
    read: Callable[[], tuple[TrainingText, Tokens | ValidationSets]]
    out: Path
    resume: begun_run.Begun | None = None
    fresh: bool = False
    init: Path | None = None
    rules: Rules | None = None
    optimizer: Literal["fresh", "kept"] = "fresh"


def run(
    plan: Callable[[], Plan],
    device: str,
    *,
    again: str | None = "segpt train",
    asked: Mapping[str, object] | None = None,
) -> Trained | None:
    """Train as planned, and say what came of it.

    Under torchrun every process makes the plan, and they have to agree. The leading one speaks;
    the others return None.

    Args:
        plan: decides what is trained, and reads what that takes.
        device: where to compute.
        again: the command that goes on with --resume. None where the caller says it, and has
            locked the directory.
        asked: what of the command line has to be the same in every process, beside the plan.
    """
    with joined(device) as mesh:
        mesh.agree(asked or {})
        with mesh.all_well():
            chosen = plan()
            if chosen.resume is not None and chosen.init is not None:
                raise TrainError("a resumed run has its own weights; leave out --init or --resume")
            if chosen.resume is None and not chosen.fresh:
                begun_run.check_vacant(chosen.out)
            init = None
            if chosen.init is not None:
                newest = run_directory.newest_checkpoint(chosen.init)
                init = checkpoint_io.read_checkpoint(newest, state=chosen.optimizer == "kept")
        mesh.agree({"recipe": encode(chosen.recipe)})
        if chosen.resume is not None and is_finished(chosen.resume.checkpoint, chosen.recipe):
            if not mesh.leads:
                return None
            # Its last act may have been cut short; a directory that is read only stays as it is.
            with contextlib.suppress(SegptError, OSError), locked(chosen.out):
                run_directory.clean_run(chosen.out)
            return say_finished(chosen.resume)
        with mesh.all_well(), mesh.leader_first():
            tokens, held_out = chosen.read()
            sets = as_sets(held_out)
            assert sets is not None  # commands always validate
        with contextlib.ExitStack() as stack:
            with mesh.all_well():
                place = stack.enter_context(_directory(chosen, mesh, lock=again is not None))
            try:
                return _train(chosen, tokens, sets, place, mesh, init)
            except InterruptError as error:
                line = f"{again} --resume {shlex.quote(str(place))}"
                line += "" if device == "auto" else f" --device {device}"
                hint = "" if again is None else f"; to go on: {line}"
                raise InterruptError(f"{error}{hint}") from None


@contextlib.contextmanager
def _directory(plan: Plan, mesh: Mesh, *, lock: bool) -> Iterator[Path]:
    """The directory of a run, which nobody else writes to. Only the leading process looks."""
    if not mesh.leads:
        yield plan.out
        return
    place = claim(plan.out) if plan.fresh else plan.out
    try:
        with locked(place) if lock else contextlib.nullcontext():
            if plan.resume is None:
                begun_run.check_vacant(place)  # now that nobody else writes there
            for path in plan.resume.damaged if plan.resume is not None else ():
                path.rename(path.with_name(f"damaged-{path.name}"))
            yield place
    except BaseException:
        if plan.fresh:
            with contextlib.suppress(OSError):  # not empty: something is there already
                place.rmdir()
        raise


def _train(
    plan: Plan,
    tokens: TrainingText,
    held_out: ValidationSets,
    out: Path,
    mesh: Mesh,
    init: Checkpoint | None,
) -> Trained | None:
    start: Start = Scratch()
    if plan.resume is not None:
        start = Resume(plan.resume.checkpoint)
    elif init is not None:
        start = From(init, plan.optimizer)
    with _report.Bar(f"train {plan.recipe.name}") as bar, Signals() as stop:
        shown = _Shown(bar, stop, out)
        path = train(
            plan.recipe,
            tokens,
            held_out,
            out,
            mesh,
            start=start,
            rules=plan.rules,
            observer=shown,
        )
    if not mesh.leads:
        return None
    last, about = shown.last, shown.about
    assert about is not None  # which is told at the end of every run
    if last is None:
        assert plan.resume is not None  # a run that begins takes a step
        return say_finished(plan.resume)
    return Trained(
        checkpoint=str(path),
        steps=last.step,
        tokens=last.tokens,
        loss=last.loss,
        bpb=shown.bpb,
        bpb_of=in_chunks(
            held_out.first.split,
            held_out.first.count,
            plan.recipe.train.validate_tokens,
            plan.recipe.model.context,
        ),
        tokens_per_second=last.tokens_per_second,
        seconds=last.seconds,
        parameters=parameters(plan.recipe.model),
        read=about.read,
        best=begun_run.best_of(out, about),
        rules=about.rules,
        bpb_by_set=begun_run.last_by_set(out),
    )


class _Shown(Observer):
    """Shows a run to people, and keeps what its result says.

    A run becomes the newest once it has a checkpoint on the disk.
    """

    def __init__(self, bar: _report.Bar, stop: Callable[[], bool], out: Path) -> None:
        self.bar, self.stop, self.out = bar, stop, out
        self.last: StepMetrics | None = None
        self.bpb: float | None = None
        self.about: RunAbout | None = None
        self._remembered = False

    def notice(self, line: str) -> None:
        _report.notice(line)

    def step(self, metrics: StepMetrics) -> None:
        self.last = metrics
        if metrics.validation_bpb is not None:
            self.bpb = metrics.validation_bpb
        rate = f"{metrics.tokens_per_second:,.0f} tok/s"
        measured = "" if self.bpb is None else f"  BPB {self.bpb:.4f}"
        detail = f"step {metrics.step}  loss {metrics.loss:.3f}  {rate}{measured}"
        self.bar(metrics.progress, detail)

    def saved(self, checkpoint: Path) -> None:
        if not self._remembered:
            self._remembered = True
            for kind in ("checkpoint", "run"):
                remember(kind, self.out)

    def finished(self, about: RunAbout) -> None:
        self.about = about

    def should_stop(self) -> bool:
        return self.stop()
