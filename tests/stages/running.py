"""A training run whose events go to functions."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from segpt.config.recipe import Recipe
from segpt.config.rules import Rules
from segpt.data.mix import TrainingText
from segpt.data.validation import ValidationSets
from segpt.stages import train as stage
from segpt.stages.start import From, Resume, Scratch, Start
from segpt.train.loop import StepMetrics
from segpt.train.mesh import Mesh
from segpt.values import Checkpoint, Tokens


class Calling(stage.Observer):
    """Calls a function for each event."""

    def __init__(
        self,
        report: Callable[[StepMetrics], None],
        notice: Callable[[str], None],
        stop: Callable[[], bool],
        finished: Callable[[Mapping[str, Any]], None],
        saved: Callable[[Path], None],
    ) -> None:
        self.step, self.notice, self.should_stop = report, notice, stop  # type: ignore[assignment,method-assign]
        self.finished, self.saved = finished, saved  # type: ignore[assignment,method-assign]


def train(
    recipe: Recipe,
    tokens: TrainingText,
    held_out: Tokens | ValidationSets | None,
    out: Path,
    mesh: Mesh,
    *,
    resume: Checkpoint | None = None,
    init: Checkpoint | None = None,
    rules: Rules | None = None,
    report: Callable[[StepMetrics], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    finished: Callable[[Mapping[str, Any]], None] = lambda _: None,
    saved: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Train, from scratch or from one of two checkpoints; the last checkpoint."""
    start: Start = Scratch()
    if resume is not None:
        start = Resume(resume)
    elif init is not None:
        start = From(init)
    observer = Calling(report, notice, stop, finished, saved)
    return stage.train(
        recipe, tokens, held_out, out, mesh, start=start, rules=rules, observer=observer
    )
