"""Whether a run may go on with a recipe, and what a checkpoint to begin with has to fit."""

from collections.abc import Mapping
from typing import Any

from segpt.config.base import differences as spec_differences
from segpt.config.layout import layout
from segpt.config.recipe import Recipe
from segpt.config.rules import Rules, find
from segpt.config.schedule import Seconds, Steps
from segpt.data.mix import TrainingText
from segpt.errors import CheckpointError, TrainError
from segpt.train.mesh import Mesh
from segpt.values import Checkpoint

from .environment import environment
from .resolve_spec import of_checkpoint
from .threads import rounded_otherwise


def check_fits(init: Checkpoint, recipe: Recipe, tokens: TrainingText) -> None:
    """Refuse weights of another shape or for other tokens, all of it in one message."""
    if init.tokenizer.fingerprint != tokens.tokenizer.fingerprint:
        raise CheckpointError(
            "the checkpoint to begin with has another tokenizer than the text; prepare the text "
            "with that of the checkpoint"
        )
    wanted = {weight.name: weight.shape for weight in layout(recipe.model)}
    held = {name: array.shape for name, array in init.weights.items()}
    odd = sorted(name for name in wanted.keys() | held if wanted.get(name) != held.get(name))
    if odd:
        was, now = (shapes.get(odd[0], "missing") for shapes in (held, wanted))
        raise CheckpointError(
            f"{len(odd)} weights of the checkpoint to begin with do not fit the model, the first "
            f"is {odd[0]!r}: {was} there, {now} in the recipe; take the recipe it was trained with"
        )


def check_resumable(resume: Checkpoint, origin: Mapping[str, str], recipe: Recipe) -> None:
    if resume.state is None:
        raise CheckpointError("the checkpoint holds no optimizer state, so it cannot be resumed")
    if origin["recipe"] != resume.origin.get("recipe"):
        check_same_run(of_checkpoint(resume), recipe)
    for key, value in origin.items():
        before = resume.origin.get(key)
        if key != "recipe" and before != value:
            what = {"tokens": "text", "documents": "text"}.get(key, key)
            raise TrainError(
                f"the checkpoint was trained with another {what} ({key} {before}, now {value}); "
                f"resume with the same, or {_ANEW}"
            )


_ANEW = "begin a new run with its weights: --init and another --out"

# What a resumed run may change: when it says, measures and saves something, how it computes the
# same numbers, and what is done with the model afterwards.
_FREE = (
    *("name", "about", "tokenizer", "quantize", "pack", "score", "adapt", "ngram", "data"),
    *(f"train.{name}" for name in ("save_every", "keep", "log_every", "validate_every")),
    *(f"train.{name}" for name in ("validate_first", "kurtosis", "recompute", "compile")),
)


def check_same_run(before: Recipe, now: Recipe) -> None:
    """Refuse to resume with a recipe that would give another result.

    Raises:
        TrainError: naming what differs, with both values.
    """
    if odd := differences(before, now):
        most = 4
        named = [f"{path} {_short(was)}, now {_short(new)}" for path, was, new in odd[:most]]
        more = f" and {len(odd) - most} more" if len(odd) > most else ""
        raise TrainError(
            f"the checkpoint was trained with another recipe: {'; '.join(named)}{more}; "
            f"leave these out to go on as it was begun, or {_ANEW}"
        )


def differences(before: Recipe, now: Recipe) -> list[tuple[str, Any, Any]]:
    """What differs between the recipes of a run and makes it another one: path and both values.

    The length does not if schedules reach equally far, nor does what leaves the result as it is.
    """
    free = [*_FREE, *(("train.length", "train.horizon") if _reach(before) == _reach(now) else ())]
    within = tuple(f"{name}{end}" for name in free for end in (".", "["))
    odd = spec_differences(before, now)
    return [leaf for leaf in odd if leaf[0] not in free and not leaf[0].startswith(within)]


def _reach(recipe: Recipe) -> Steps | Seconds:
    """How far the schedules of a run reach."""
    length = recipe.train.length
    return (
        Steps(count=recipe.train.horizon or length.count) if isinstance(length, Steps) else length
    )


def _short(value: Any) -> str:
    return "(none)" if value is None else f"{value}"


def is_finished(checkpoint: Checkpoint, recipe: Recipe) -> bool:
    """Whether a run has come to its end, so that resuming with ``recipe`` would do nothing."""
    length = recipe.train.length
    if isinstance(length, Steps):
        reached = checkpoint.step >= length.count
    else:
        reached = (checkpoint.about.seconds or 0.0) >= length.count
    ended = checkpoint.about.finished  # by rules, or with the text
    return reached or (bool(ended) and length == of_checkpoint(checkpoint).train.length)


def rules_of(resume: Checkpoint) -> Rules | None:
    held = resume.about.rules
    return None if held is None else find(held.name)


def inexact(resume: Checkpoint, mesh: Mesh) -> list[str]:
    """A line if a resumed run adds up its sums in another order than it did."""
    now = environment(mesh.device.type, mesh.size)
    line = rounded_otherwise("the run", resume.about.environment, now)
    return [] if line is None else [line]
