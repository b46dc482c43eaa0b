"""A run that was begun here: where it goes on, with which recipe, and what came of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from segpt.config.base import ADDED, PlainSpec, spec
from segpt.config.layout import parameters
from segpt.config.recipe import Recipe, names, read_recipe
from segpt.config.run_about import Coverage, RulesAbout, RunAbout
from segpt.data.batches import in_chunks
from segpt.errors import CheckpointError, SpecError
from segpt.stages import checkpoint_io, resolve_spec, run_directory
from segpt.stages.resuming import check_same_run
from segpt.values import Checkpoint


class Begun(NamedTuple):
    """A run that goes on: its last sound checkpoint, and later ones that are damaged.

    ``line`` says so where there are any.
    """

    run: Path
    checkpoint: Checkpoint
    damaged: tuple[Path, ...]
    line: str | None


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
        line = f"{damaged[0]}; going on from {path}" if damaged else None
        return Begun(run, checkpoint, tuple(saved[len(saved) - len(damaged) :]), line)
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
    ``best`` the checkpoint of the best validation if the recipe keeps it. ``bpb_by_set`` holds the
    bits per byte of each held-out text that has a name.
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
    bpb_by_set: Mapping[str, float] | None = dataclasses.field(default=None, metadata=ADDED)


def finished(run: Begun) -> Trained:
    """What came of a run that has come to its end."""
    checkpoint = run.checkpoint
    logged = list(run_directory.logged(run.run))
    last = logged[-1] if logged else {}
    about = checkpoint.about
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
        best=best_of(run.run, about),
        rules=about.rules,
        bpb_by_set=last_by_set(run.run),
    )


def last_by_set(run: Path) -> dict[str, float] | None:
    """The bits per byte of the last validation by held-out text, if these have names."""
    measured = [line.get("validation_bpb_by_set") for line in run_directory.logged(run)]
    last = next((table for table in reversed(measured) if isinstance(table, dict)), None)
    return None if last is None else {str(name): float(bpb) for name, bpb in last.items()}


def _measured_on(checkpoint: Checkpoint) -> str | None:
    """What the validations of a run were of, as its checkpoint remembers it."""
    text = checkpoint.about.text
    split = None if text is None else text.validation
    if split is None or split.split is None or split.tokens is None:
        return None
    most = resolve_spec.of_checkpoint(checkpoint).train.validate_tokens
    return in_chunks(split.split, split.tokens, most, checkpoint.spec.context)


def best_of(out: Path, about: RunAbout) -> BestCheckpoint | None:
    """The checkpoint of the best validation, if the recipe keeps it."""
    if (best := about.best) is None:
        return None
    path = out / run_directory.checkpoint_name(best.step)
    return BestCheckpoint(checkpoint=str(path), step=best.step, bpb=best.bpb)


def check_vacant(out: Path) -> None:
    """See that a run writes over no other one, and over nobody's file.

    Raises:
        CheckpointError: if there is one.
    """
    if run_directory.checkpoints(out):
        raise CheckpointError(f"{out} already holds a run; add --resume, or choose another --out")
    metrics = out / run_directory.METRICS
    if metrics.is_file():  # of a run that was killed before its first checkpoint, or another's
        with metrics.open("rb") as file:
            if not b'{"step": '.startswith(file.read(9)):
                raise CheckpointError(f"{metrics} was not written by segpt; choose another --out")
