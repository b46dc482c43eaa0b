"""What a stage of a recipe begins with."""

from pathlib import Path
from typing import Literal, NamedTuple

from segpt.config.stages import Stage
from segpt.errors import SpecError
from segpt.stages import run_directory
from segpt.workspace import newest

from . import _processes, _report


class Beginning(NamedTuple):
    """What a run begins with, and what becomes of the optimizer of that."""

    init: Path | None
    optimizer: Literal["fresh", "kept"] = "fresh"


def begins_with(stage: Stage | None, init: Path | None, *, asked: bool) -> Beginning:
    """What a run begins with: ``init``, or the newest run of the stage before one that was asked.

    Raises:
        SpecError: if that stage has no run here.
    """
    if stage is None or stage.start is None:
        return Beginning(init)
    if init is not None or not asked:
        return Beginning(init, stage.start.optimizer if init is not None and asked else "fresh")
    saved = [place for place in _runs(str(stage.before)) if run_directory.checkpoints(place)]
    if not saved:
        raise SpecError(
            f"stage {stage.name} begins with the run of stage {stage.start.after}, and there is "
            f"none at {newest.RUNS / str(stage.before)}; train it with --stage "
            f"{stage.start.after}, or name a run or checkpoint with --init"
        )
    if _processes.leads():
        kept = stage.start.optimizer
        _report.notice(f"stage {stage.name} begins with {saved[-1]}, optimizer {kept}")
    return Beginning(saved[-1], stage.start.optimizer)


def _runs(name: str) -> list[Path]:
    """Where runs of a recipe lie, the newest last: its name, then that with -2, -3 and so on."""
    numbers = {
        int(place.name.removeprefix(f"{name}-")): place
        for place in newest.RUNS.glob(f"{name}-*")
        if place.name.removeprefix(f"{name}-").isdecimal()
    }
    return [newest.RUNS / name, *(numbers[number] for number in sorted(numbers))]
