"""What ``train`` and ``demo`` share: a run from its beginning or its last checkpoint to its end."""

import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from segpt.config.base import PlainSpec, encode, spec
from segpt.config.layout import parameters
from segpt.config.recipe import Recipe, names, read_recipe
from segpt.config.rules import Rules
from segpt.config.run_about import Coverage, RulesAbout, RunAbout
from segpt.errors import CheckpointError, InterruptError, SegptError, SpecError, TrainError
from segpt.locks import claim, locked
from segpt.stages import checkpoint_io, resolve_spec, run_directory
from segpt.stages.resuming import check_same_run, is_finished
from segpt.stages.start import From, Resume, Scratch, Start
from segpt.stages.train import Observer, train
from segpt.train.loop import StepMetrics
from segpt.train.mesh import Mesh, joined
from segpt.values import Checkpoint, Tokens

from . import _latest, _processes, _report
from ._signals import Signals


class Begun(NamedTuple):
    """A run that goes on: its last sound checkpoint, and later ones that are damaged."""

    run: Path
    checkpoint: Checkpoint
    damaged: tuple[Path, ...]


def begun(run: Path) -> Begun:
    """A run with the last checkpoint from which it can go on.

    Raises:
        CheckpointError: if there is none.
    """
    saved = run_directory.checkpoints(run)
    if not saved:
        raise CheckpointError(f"{run} holds no checkpoint to resume from; leave out --resume")
    damaged: list[CheckpointError] = []
    for path in reversed(saved):
        try:
            checkpoint = checkpoint_io.read_checkpoint(path, state=True)
        except CheckpointError as error:
            damaged.append(error)
            continue
        if damaged and _processes.leads():
            _report.notice(f"{damaged[0]}; going on from {path}")
        return Begun(run, checkpoint, tuple(saved[len(saved) - len(damaged) :]))
    raise damaged[0]


def recipe_of(checkpoint: Checkpoint, named: str | None, settings: Sequence[str]) -> Recipe:
    """The recipe that a run goes on with: its own, and what the command line says beside it.

    ``named`` is a recipe that the user named again; it has to be that of the run, whose length
    and seed count unless they are set.

    Raises:
        TrainError: naming what differs and would make it another run.
        SpecError: if a setting does not fit.
    """
    own = resolve_spec.of_checkpoint(checkpoint)
    of_model = [setting for setting in settings if setting.startswith("model.")]
    if named is None and of_model and own.name not in names():
        raise SpecError(
            f"--set {of_model[0]}: the model of a run stays as it is; leave this out to go on"
        )
    if named is not None or of_model:
        check_same_run(own, _named_again(own, named or own.name, named is None, settings))
    recipe = resolve_spec.of_checkpoint(checkpoint, [s for s in settings if s not in of_model])
    check_same_run(own, recipe)
    return recipe


def _named_again(own: Recipe, name: str, adapted: bool, settings: Sequence[str]) -> Recipe:
    """A recipe with what the run has by other ways than settings."""
    start = "null" if own.model.start is None else own.model.start
    model = [f"model.vocab={own.model.vocab}", f"model.start={start}"] if adapted else []
    asked = read_recipe(name, [*model, *settings])
    known = {setting.partition("=")[0].split(".")[1] for setting in settings if "." in setting}
    kept = {field: getattr(own.train, field) for field in ("length", "horizon", "seed")}
    mine = {field: value for field, value in kept.items() if field not in known}
    return dataclasses.replace(asked, train=dataclasses.replace(asked.train, **mine))


@spec
class BestCheckpoint(PlainSpec):
    """The checkpoint of the best validation, its step and its bits per byte."""

    checkpoint: str
    step: int
    bpb: float


@spec
class Trained(PlainSpec):
    """What came of a run, as ``segpt train --json`` says it.

    ``loss`` is in nats per token, ``bpb`` of the last validation, on what ``bpb_of`` says. None is
    what the metrics of a run that ended before do not tell. ``read`` is what was trained on,
    ``best`` the checkpoint of the best validation if the recipe keeps it.
    """

    checkpoint: str
    steps: int
    tokens: int | None
    loss: float | None
    bpb: float | None
    bpb_of: str | None
    tokens_per_second: float | None
    seconds: float | None
    parameters: int
    read: Coverage | None
    best: BestCheckpoint | None
    rules: RulesAbout | None


def finished(run: Begun) -> Trained:
    """What came of a run that has come to its end."""
    checkpoint = run.checkpoint
    logged = list(run_directory.logged(run.run))
    last = logged[-1] if logged else {}
    about = checkpoint.about
    _report.notice(
        f"{run.run} is trained to its end, step {checkpoint.step}: nothing is left to do"
    )
    measured = [line["validation_bpb"] for line in logged if line.get("validation_bpb") is not None]
    return Trained(
        checkpoint=str(run_directory.checkpoints(run.run)[-1]),
        steps=checkpoint.step,
        tokens=about.tokens,
        loss=last.get("loss"),
        bpb=measured[-1] if measured else None,
        bpb_of=_measured_on(checkpoint),
        tokens_per_second=last.get("tokens_per_second"),
        seconds=about.seconds,
        parameters=parameters(checkpoint.spec),
        read=about.read,
        best=_best(run.run, about),
        rules=about.rules,
    )


def _measured_on(checkpoint: Checkpoint) -> str | None:
    """What the validations of a run were of, as its checkpoint remembers it."""
    text = checkpoint.about.text
    split = None if text is None else text.validation
    if split is None or split.split is None or split.tokens is None:
        return None
    most = resolve_spec.of_checkpoint(checkpoint).train.validate_tokens
    return _report.in_chunks(split.split, split.tokens, most, checkpoint.spec.context)


def nothing() -> tuple[Tokens, Tokens]:
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
    """

    recipe: Recipe
    read: Callable[[], tuple[Tokens, Tokens]]
    out: Path
    resume: Begun | None = None
    fresh: bool = False
    init: Path | None = None
    rules: Rules | None = None


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
                _check_vacant(chosen.out)
            init = None
            if chosen.init is not None:
                init = checkpoint_io.read_checkpoint(run_directory.newest_checkpoint(chosen.init))
        mesh.agree({"recipe": encode(chosen.recipe)})
        if chosen.resume is not None and is_finished(chosen.resume.checkpoint, chosen.recipe):
            if not mesh.leads:
                return None
            # Its last act may have been cut short; a directory that is read only stays as it is.
            with contextlib.suppress(SegptError, OSError), locked(chosen.out):
                run_directory.clean_run(chosen.out)
            return finished(chosen.resume)
        with mesh.all_well(), mesh.leader_first():
            tokens, held_out = chosen.read()
        with contextlib.ExitStack() as stack:
            with mesh.all_well():
                place = stack.enter_context(_directory(chosen, mesh, lock=again is not None))
            try:
                return _train(chosen, tokens, held_out, place, mesh, init)
            except InterruptError as error:
                line = f"{again} --resume {shlex.quote(str(place))}"
                line += "" if device == "auto" else f" --device {device}"
                hint = "" if again is None else f"; to go on: {line}"
                raise InterruptError(f"{error}{hint}") from None


def _check_vacant(out: Path) -> None:
    """Refuse a directory in which a run would write over another, or over someone's file."""
    if run_directory.checkpoints(out):
        raise CheckpointError(f"{out} already holds a run; add --resume, or choose another --out")
    metrics = out / run_directory.METRICS
    if metrics.is_file():  # of a run that was killed before its first checkpoint, or another's
        with metrics.open("rb") as file:
            if not b'{"step": '.startswith(file.read(9)):
                raise CheckpointError(f"{metrics} was not written by segpt; choose another --out")


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
                _check_vacant(place)  # now that nobody else writes there
            for path in plan.resume.damaged if plan.resume is not None else ():
                path.rename(path.with_name(f"damaged-{path.name}"))
            yield place
    except BaseException:
        if plan.fresh:
            with contextlib.suppress(OSError):  # not empty: something is there already
                place.rmdir()
        raise


def _train(
    plan: Plan, tokens: Tokens, held_out: Tokens, out: Path, mesh: Mesh, init: Checkpoint | None
) -> Trained | None:
    start: Start = Scratch()
    if plan.resume is not None:
        start = Resume(plan.resume.checkpoint)
    elif init is not None:
        start = From(init)
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
        return finished(plan.resume)
    return Trained(
        checkpoint=str(path),
        steps=last.step,
        tokens=last.tokens,
        loss=last.loss,
        bpb=shown.bpb,
        bpb_of=_report.in_chunks(
            held_out.split,
            held_out.count,
            plan.recipe.train.validate_tokens,
            plan.recipe.model.context,
        ),
        tokens_per_second=last.tokens_per_second,
        seconds=last.seconds,
        parameters=parameters(plan.recipe.model),
        read=about.read,
        best=_best(out, about),
        rules=about.rules,
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
                _latest.remember(kind, self.out)

    def finished(self, about: RunAbout) -> None:
        self.about = about

    def should_stop(self) -> bool:
        return self.stop()


def _best(out: Path, about: RunAbout) -> BestCheckpoint | None:
    """The checkpoint of the best validation, if the recipe keeps it."""
    if (best := about.best) is None:
        return None
    path = out / run_directory.checkpoint_name(best.step)
    return BestCheckpoint(checkpoint=str(path), step=best.step, bpb=best.bpb)
