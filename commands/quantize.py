"""``segpt quantize``."""

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from segpt.config.base import decode, encode
from segpt.config.precision import of_measuring
from segpt.config.quant import Method, QuantSpec, Rule
from segpt.errors import CheckpointError, DataError, InterruptError
from segpt.locks import locked
from segpt.workspace import newest

from . import _options, _out, _report
from ._remember import remember

if TYPE_CHECKING:
    from segpt.config.quant_report import QuantReport
    from segpt.values import Quantized
    from segpt.workspace.prepared import NamedText, TextReading
    from segpt.workspace.quantize_task import QuantizeTask


@click.command("quantize")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option(
    "--method",
    type=click.Choice(["trellis", "rd", "gptq", "nearest"]),
    help="Designed steps on a trellis, or on one grid; or grids of --bits.  [default: trellis]",
)
@_options.budget("Bytes of the packed file, for trellis and rd.  [default: the recipe's]")
@click.option(
    "--bits",
    type=click.IntRange(2, 8),
    help="gptq, nearest: bits of the matrices, and the table keeps its own. trellis, rd: mean "
    "bits per weight. Without --method: gptq.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="The text it was trained on.  [default: wherever that is]",
)
@click.option(
    "--calibration",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="TEXT",
    help="An imported model: text that calibrates, files or directories. Repeatable.",
)
@click.option(
    "--held-out",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="TEXT",
    help="An imported model: other text, that the damage is measured on. Repeatable.",
)
@click.option(
    "--field", default="text", show_default=True, help="Field of the jsonl and parquet of these."
)
@_options.out("The directory to write.  [default: beside the checkpoint]")
@_options.settings
@click.option(
    "--context",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="Tokens of a row of text that calibrates or measures: fewer take less memory.  "
    "[default: the model's context]",
)
@_options.precision
@_options.device
@click.option("--resume", is_flag=True, help="Go on where an interrupted call stopped.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PNG",
    help="Draw KL over bits per weight, and what each role and layer takes and loses.",
)
@_out.force
@_options.as_json
def command(
    checkpoint: Path | None,
    method: Method | None,
    budget: int | None,
    bits: int | None,
    data: Path | None,
    calibration: tuple[Path, ...],
    held_out: tuple[Path, ...],
    field: str,
    out: Path | None,
    settings: tuple[str, ...],
    context: int | None,
    precision: str | None,
    device: str,
    resume: bool,
    plot: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Quantize CHECKPOINT (the newest by default) and report what it costs.

    By default the steps are the finest that fit the budget. Calibration reads training text
    only; the damage is measured on the validation split. Both are those that the checkpoint was
    trained and validated on; a model that was imported knows none, so --calibration and
    --held-out name them. Every layer that is done is saved, and --resume goes on with what was
    interrupted, in the way it was begun.
    """
    from segpt.atomic import check_replaceable
    from segpt.report import plot as pictures
    from segpt.stages import quantized_io, unfinished, value_directory
    from segpt.workspace import quantize_task
    from segpt.workspace.calibration_texts import CalibrationPaths
    from segpt.workspace.prepared import check_there

    from . import _texts

    if plot is not None:
        pictures.need()
        _out.check_file(plot, pictures.is_ours, forced=force)
    if precision is not None:
        settings = (*settings, f"quantize.precision={precision}")
    if context is not None:
        settings = (*settings, f"quantize.context={context}")
    texts = CalibrationPaths(
        calibration=tuple(map(str, calibration)), held_out=tuple(map(str, held_out)), field=field
    )
    request = quantize_task.QuantizeRequest(checkpoint, out, method, budget, bits, settings, texts)
    if resume and (done := quantize_task.finished(request)) is not None:
        _report.notice(f"{done} is finished: nothing is left to do")
        _tell(done, quantized_io.read_quantized(done), None, as_json)
        return
    if checkpoint is not None:
        newest.existing(checkpoint)
    check_there(data)
    task = quantize_task.resume(request) if resume else quantize_task.begin(request)
    place, value, spec = task.place, task.checkpoint, task.spec
    check_replaceable(place, lambda directory: value_directory.holds(directory, "quantized"))
    reading = _reading(task, data)
    _texts.say(reading.names)
    _report.notice(f"model: {task.path}")

    from segpt.kernels.precision import computing
    from segpt.report import rate_curve
    from segpt.train.mesh import pick
    from segpt.workspace.quantizing import origin_of, quantize

    with locked(place):
        splits = _texts.read(reading)
        before = None
        if resume:
            before = unfinished.read_partial(task.partial, origin_of(task, splits))
        with _told(task.partial, _again(place, data, device)), _report.Bar("quantize") as bar:
            quantized = quantize(task, splits, device=pick(device), report=bar, before=before)
        remember("quantized", place)
        if plot is not None:
            computed, where = of_measuring(spec.precision), pick(device)
            with _report.Bar("plot") as bar, computing(computed, where):
                curve = rate_curve.curve(value, quantized, spec, *splits, device=where, report=bar)
            assert quantized.report is not None  # of what was just quantized
            report = dataclasses.replace(quantized.report, curve=curve.report())
            quantized_io.save_quantized(place, dataclasses.replace(quantized, report=report))
            pictures.quantized(plot, curve, report, spec.method)
    _tell(place, quantized, plot, as_json, texts=reading.names)


def _reading(task: "QuantizeTask", data: Path | None) -> "TextReading":
    """The text of a model, or those that were named for one that was trained elsewhere."""
    from segpt.workspace import calibration_texts, model_text

    if task.texts is None:
        return model_text.of_model(task.checkpoint, task.path, data)
    if data is not None:
        raise DataError(
            f"--data names the text that a model was trained on, which is not known of {task.path};"
            " leave it out: --calibration and --held-out name texts"
        )
    with _report.Bar("read the texts") as bar:
        return calibration_texts.read(
            task.texts, task.checkpoint, task.spec, bar.say, _report.notice
        )


def _again(place: Path, data: Path | None, device: str) -> str:
    """The command that goes on."""
    words = ["segpt", "quantize", "--resume", "--out", str(place)]
    words += [] if data is None else ["--data", str(data)]
    words += [] if device == "auto" else ["--device", device]
    return shlex.join(words)


def _tell(
    place: Path,
    quantized: "Quantized",
    plot: Path | None,
    as_json: bool,
    texts: "Sequence[NamedText]" = (),
) -> None:
    """Print what came of it."""
    from segpt.artifact.container import pack

    report, size = quantized.report, pack(quantized).size
    if report is None:
        raise CheckpointError(f"{place} does not say what coding cost; quantize it anew")
    spec = None if report.spec is None else decode(QuantSpec, report.spec, "$.spec")
    result = {
        "out": str(place),
        "method": None if spec is None else spec.method,
        "rules": [] if spec is None or spec.designed else [rule_text(r) for r in spec.rules],
        "budget": None if spec is None else spec.budget,
        "bits_per_weight": 8 * size / report.parameters,
        "roles": encode(report.roles),
        "layers": encode(report.layers),
        "fallbacks": list(report.fallbacks),
        **(encode(report.quality) or {}),
        "bytes": size,
        "bpb_of": report.measured_on,
        "texts": encode(texts),
    }
    lines = [f"method {result['method']}"] + [f"rule {text}" for text in result["rules"]]
    lines += [f"fell back to rounding: {', '.join(report.fallbacks)}"] * bool(result["fallbacks"])
    lines += [
        f"{size:,} bytes packed, {result['bits_per_weight']:.3f} bits per weight",
        f"BPB {result['bpb_before']:.4f} -> {result['bpb_after']:.4f} on {result['bpb_of']}",
        f"KL mean {result['kl_mean']:.5f} p99 {result['kl_p99']:.5f} nats, top-1 agreement "
        f"{100 * result['top1_agreement']:.2f} %, on the same",
    ]
    if plot is not None:
        lines.append(f"{plot} shows it")
    if not as_json:
        _show(report)
    _report.emit(result, as_json, lines)


@contextmanager
def _told(partial: Path, again: str) -> Iterator[None]:
    """Say how to go on after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        if not partial.exists():
            raise
        raise InterruptError(
            f"interrupted; {partial} holds the layers that are done; to go on: {again}"
        ) from None


def _show(report: "QuantReport") -> None:
    """A row for each role and each layer."""
    named = list(report.roles.items())
    named += [(f"layer {name}", row) for name, row in report.layers.items()]
    rows = [
        [
            name,
            f"{row.parameters:,}",
            f"{row.bits_per_weight:.3f}",
            "" if row.error is None else f"{row.error:.2e}",
            f"{row.damage:.5f}" if row.damage else "",
        ]
        for name, row in named
    ]
    columns = ["", "weights", "about bits each", "squared error", "damage, nats per token"]
    _report.table("Where the bits go, before packing", columns, rows)


def rule_text(rule: Rule) -> str:
    """A rule as people read it."""
    where = f" of layers {rule.layers}" if rule.layers else ""
    if rule.bits == 16:
        return f"{rule.role}{where}: float16"
    per = f"group of {rule.group} columns" if rule.group else "row"
    return f"{rule.role}{where}: {rule.bits} bits, clip {rule.k:g} sigma, a scale per {per}"
