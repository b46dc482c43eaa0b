"""CORE for ``segpt score --core``: the bundle, the model that is asked, and what came of it."""

from pathlib import Path
from typing import Any, NamedTuple

from segpt.config.precision import Precision, of_measuring
from segpt.kernels.precision import computing
from segpt.stages import json_files
from segpt.stages.read_model import Value
from segpt.tasks.asked_model import subject_of
from segpt.tasks.core import Baselines
from segpt.tasks.core_bundle import LIST, read_bundle
from segpt.tasks.evaluate_core import CoreProgress, choose, core_lines, evaluate
from segpt.train.mesh import joined
from segpt.workspace import newest

from . import _report


class CoreOptions(NamedTuple):
    """How the tasks are asked.

    Attributes:
        tasks: labels separated by commas, or ``all``.
        bundle: where the items are; where they were fetched to if None.
        max_per_task: items of each task; all if not positive.
        baselines: a table of baselines; the one of the bundle if None.
        device: where to compute.
        precision: what the model multiplies in; float32 if None or ``auto``.
        context: tokens that a model of ours is given at most; its own if None.
        out: also write the result as JSON to this file.
    """

    tasks: str = "all"
    bundle: Path | None = None
    max_per_task: int = -1
    baselines: Baselines | None = None
    device: str = "auto"
    precision: Precision | None = None
    context: int | None = None
    out: Path | None = None


def run(
    model: str | Path, options: CoreOptions, value: Value | None = None
) -> tuple[dict[str, Any], list[str]] | None:
    """Ask a model the CORE tasks; the result as JSON values and as lines for people.

    Args:
        model: a path of ours; or else what ``transformers`` reads, a directory or owner/name.
        options: how they are asked.
        value: what is at the path, if it has been read.

    Returns:
        None in a process that does not lead.
    """
    chosen = choose(options.tasks)
    bundle = read_bundle(_place(options.bundle))
    precision = of_measuring(options.precision or "auto")
    with joined(options.device) as mesh, _report.Bar(f"CORE of {Path(model).name}") as bar:
        device = str(mesh.device)
        with mesh.all_well():
            subject, identity = subject_of(model, value, device, options.context, precision)

        def show(progress: CoreProgress) -> None:
            fraction = (progress.through + progress.done / progress.total) / progress.tasks
            bar(fraction, f"{progress.task} {progress.done:,} of {progress.total:,}")

        limit, baselines = options.max_per_task, options.baselines
        asked = {"tasks": [task.label for task in chosen], "--max-per-task": limit}
        asked |= {"--baselines": baselines, "--precision": precision}
        mesh.agree({"model": identity, **asked})
        with computing(precision, device):
            result = evaluate(
                *(subject, bundle, chosen),
                max_per_task=limit,
                baselines=baselines,
                report=show if mesh.leads else lambda _: None,
            )
    if not mesh.leads:
        return None
    about = {"model": identity, "context": subject.context, "device": device}
    if precision != "float32":
        about["precision"] = precision
    plain = about | result.plain()
    if options.out is not None:
        json_files.write_json(options.out, plain)
    return plain, core_lines(result)


def _place(bundle: Path | None) -> Path:
    """The bundle that the user named, or the one that was fetched."""
    usual = newest.RUNS / "core"
    if bundle is None and newest.latest("core") is None and (usual / LIST).exists():
        return usual
    return newest.need("core", bundle)
