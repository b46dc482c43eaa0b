"""CORE for ``segpt score --core``: the bundle, the model that is asked, and what came of it."""

from pathlib import Path
from typing import Any

from segpt.errors import SegptError
from segpt.stages import json_files
from segpt.stages.open_model import Value, open_model, read_model
from segpt.tasks.core import Baselines
from segpt.tasks.core_bundle import LIST, read_bundle
from segpt.tasks.evaluate_core import CoreProgress, choose, core_lines, evaluate
from segpt.tasks.subject import Subject, of_hugging_face, of_model
from segpt.train.mesh import joined

from . import _latest, _report


def run(
    model: str | Path,
    value: Value | None = None,
    tasks: str = "all",
    *,
    bundle: Path | None = None,
    max_per_task: int = -1,
    baselines: Baselines | None = None,
    device: str = "auto",
    context: int | None = None,
    out: Path | None = None,
) -> tuple[dict[str, Any], list[str]] | None:
    """Ask a model the CORE tasks; the result as JSON values and as lines for people.

    Args:
        model: a path of ours; or else what ``transformers`` reads, a directory or owner/name.
        value: what is at the path, if it has been read.
        tasks: labels separated by commas, or ``all``.
        bundle: where the items are; where they were fetched to if None.
        max_per_task: items of each task; all if not positive.
        baselines: a table of baselines; the one of the bundle if None.
        device: where to compute.
        context: tokens that a model of ours is given at most; its own if None.
        out: also write the result as JSON to this file.

    Returns:
        None in a process that does not lead.
    """
    chosen = choose(tasks)
    core = read_bundle(_place(bundle))
    with joined(device) as mesh, _report.Bar(f"CORE of {Path(model).name}") as bar:
        with mesh.all_well():
            subject, identity = _subject(model, value, str(mesh.device), context)

        def report_progress(progress: CoreProgress) -> None:
            fraction = (progress.through + progress.done / progress.total) / progress.tasks
            bar(fraction, f"{progress.task} {progress.done:,} of {progress.total:,}")

        asked = {"tasks": [task.label for task in chosen], "--max-per-task": max_per_task}
        mesh.agree({"model": identity, "--baselines": baselines, **asked})
        result = evaluate(
            *(subject, core, chosen),
            max_per_task=max_per_task,
            baselines=baselines,
            report=report_progress if mesh.leads else lambda _: None,
        )
    if not mesh.leads:
        return None
    about = {"model": identity, "context": subject.context, "device": str(mesh.device)}
    plain = about | result.plain()
    if out is not None:
        json_files.write_json(out, plain)
    return plain, core_lines(result)


def _place(bundle: Path | None) -> Path:
    """The bundle that the user named, or the one that was fetched."""
    usual = _latest.RUNS / "core"
    if bundle is None and _latest.latest("core") is None and (usual / LIST).exists():
        return usual
    return _latest.need("core", bundle)


def _subject(
    model: str | Path, value: Value | None, device: str, context: int | None
) -> tuple[Subject, dict[str, Any]]:
    """Who is asked, and what names it."""
    if value is None and _is_foreign(Path(model)):
        if context is not None:
            raise SegptError(f"{model}: the context of a Hugging Face model is its own")
        return of_hugging_face(model, device), {"hugging_face": str(model)}
    opened = open_model(value or read_model(Path(model)), device)
    identity = {"path": str(model), "fingerprint": opened.identity}
    return of_model(opened.model, opened.codec, context), identity


def _is_foreign(path: Path) -> bool:
    """Whether ``transformers`` is asked: for its directories, and owner/name on its hub."""
    if path.exists():
        return (path / "config.json").exists()
    named = len(path.parts) == 2 and not path.is_absolute() and path.suffix != ".segpt"
    return named and not path.parent.exists()  # a misspelt runs/name is no owner's
