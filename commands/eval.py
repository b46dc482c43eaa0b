"""``segpt eval``."""

import os
from pathlib import Path

import click

from segpt.config.precision import Precision, of_measuring
from segpt.workspace import newest

from . import _options, _out, _report


@click.command("eval")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--tasks", required=True, metavar="NAME,...", help="Tasks, groups or tags.")
@click.option(
    "--include-path",
    "include",
    type=click.Path(path_type=Path),
    help="A directory of task files, instead of those that come with lm-evaluation-harness.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Examples per task, the first ones.")
@click.option("--fewshot", type=click.IntRange(min=0), help="Examples in each prompt.")
@click.option("--batch", type=click.IntRange(min=1), help="Sequences at once.")
@_options.out("Also write the results as JSON to this file.")
@_out.force
@_options.precision
@_options.device
@_options.as_json
def command(
    model: Path | None,
    tasks: str,
    include: Path | None,
    limit: int | None,
    fewshot: int | None,
    batch: int | None,
    out: Path | None,
    force: bool,
    precision: Precision | None,
    device: str,
    as_json: bool,
) -> None:
    """Run tasks of lm-evaluation-harness on MODEL.

    MODEL is an artifact, a quantized model or a checkpoint (the newest artifact by default). Data
    must be in local files or in the cache: nothing is downloaded, unless HF_HUB_OFFLINE=0 is set.
    The names of tasks may hold * and ?. Needs the extra: pip install 'segpt[eval]'.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # it is read while torch is imported

    from segpt.stages import json_files
    from segpt.stages.read_model import read_model

    _out.check_file(out, json_files.is_evaluation, forced=force)
    path = newest.existing(newest.need("artifact", model))
    value = read_model(path)

    from segpt.kernels.precision import computing
    from segpt.tasks.run_harness import evaluate
    from segpt.train.mesh import pick

    computed, where = of_measuring(precision or "auto"), pick(device)
    with computing(computed, where), _report.Bar(f"eval {path.name}") as bar:
        result = evaluate(
            value,
            [name.strip() for name in tasks.split(",") if name.strip()],
            include=include,
            limit=limit,
            shots=fewshot,
            batch=batch,
            device=where,
            report=lambda done, total: bar(done / total, f"{done:,} of {total:,} requests"),
        )
    plain = result.plain()
    if out is not None:
        json_files.write_json(out, plain)
    if as_json:
        _report.emit(plain, as_json, [])
        return
    rows = []
    for task, metrics in result.results.items():
        for name, measured in metrics.items():
            metric, _, kind = name.partition(",")
            if metric.endswith("_stderr") or measured is None:
                continue
            error = metrics.get(f"{metric}_stderr,{kind}")
            rows.append(
                (
                    task,
                    f"{result.shots.get(task, 0)}",
                    f"{result.samples.get(task, 0):,}",
                    f"{measured:.4f}",
                    "" if error is None else f"{error:.4f}",
                    metric if kind == "none" else f"{metric} ({kind})",
                )
            )
    columns = ("task", "shots", "examples", "value", "standard error", "metric")
    _report.table(f"{path.name}, {result.seconds:.1f} s", columns, rows)
