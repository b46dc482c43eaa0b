"""``segpt quantize``."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from segpt.errors import InterruptError
from segpt.spec.base import fingerprint
from segpt.spec.quant import Method, Rule

from . import _latest, _options, _out, _report


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
@click.option("--data", type=click.Path(path_type=Path), help="The text it was trained on.")
@_options.out("The directory to write.  [default: beside the checkpoint]")
@_options.settings
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
    out: Path | None,
    settings: tuple[str, ...],
    device: str,
    resume: bool,
    plot: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Quantize CHECKPOINT (the newest by default) and report what it costs.

    By default the steps are the finest that fit the budget. Calibration reads training text
    only; the damage is measured on the validation split. Every layer that is done is saved, so
    that an interrupted call can go on with --resume.
    """
    from segpt.artifact.container import pack
    from segpt.atomic import check_replaceable, remove_directory
    from segpt.stages import files, recipes, untuned
    from segpt.stages import plot as pictures
    from segpt.stages.calibrate import quantize_on, share
    from segpt.train.mesh import pick

    from . import _training

    if plot is not None:
        pictures.need()
        _out.check_file(plot, pictures.is_ours, forced=force)
    run = _latest.need("checkpoint", checkpoint)
    value = files.read_checkpoint(files.newest_checkpoint(run))
    recipe = recipes.of_checkpoint(value, settings)
    spec = recipes.quant_spec(recipe, method=method, budget=budget, bits=bits)
    tokens, held_out = _training.splits(recipe, data)
    place = out or run.with_name(f"{run.name}-quantized")
    check_replaceable(place, lambda there: files.holds(there, "quantized"))
    partial = place.with_name(f"{place.name}.partial")
    origin = {"checkpoint": value.fingerprint, "quantize": fingerprint(spec)}
    with _report.Bar("quantize") as bar, _told(partial):
        quantized = quantize_on(
            value,
            spec,
            tokens,
            held_out,
            device=pick(device),
            report=lambda p: bar(share(p, spec), p.task),
            resume=files.read_partial(partial, origin) if resume else None,
            save=lambda state: files.save_partial(partial, state, origin),
        )
    report = dict(quantized.report) | {"budget": spec.budget or recipe.pack.budget}
    files.save_quantized(place, dataclasses.replace(quantized, report=report))
    remove_directory(partial)
    _latest.remember("quantized", place)
    if plot is not None:
        with _report.Bar("plot") as bar:
            curve = untuned.curve(
                value, quantized, spec, tokens, held_out, device=pick(device), report=bar
            )
        report |= {"curve": curve.plain()}
        files.save_quantized(place, dataclasses.replace(quantized, report=report))
        pictures.quantized(plot, curve, report, spec.method)
    size = pack(quantized).size
    result = {
        "out": str(place),
        "method": spec.method,
        "rules": [] if spec.designed else [rule_text(rule) for rule in spec.rules],
        "budget": spec.budget,
        "bits_per_weight": 8 * size / report["parameters"],
        "roles": report["roles"],
        "layers": report["layers"],
        "fallbacks": report["fallbacks"],
        **report["quality"],
        "bytes": size,
        "bpb_of": _report.in_chunks(held_out, spec.report_tokens, value.spec.context),
    }
    lines = [f"method {spec.method}"] + [f"rule {text}" for text in result["rules"]]
    lines += [f"fell back to rounding: {', '.join(report['fallbacks'])}"] * bool(
        result["fallbacks"]
    )
    lines += [
        f"{size:,} bytes packed, {result['bits_per_weight']:.3f} bits per weight",
        f"BPB {result['bpb_before']:.4f} -> {result['bpb_after']:.4f} on {result['bpb_of']}",
        f"KL mean {result['kl_mean']:.5f} p99 {result['kl_p99']:.5f} nats, top-1 agreement "
        f"{100 * result['top1_agreement']:.2f} %, on the same",
    ]
    if plot is not None:
        lines.append(f"{plot} shows it")
    if not as_json:
        _show(result)
    _report.emit(result, as_json, lines)


@contextmanager
def _told(partial: Path) -> Iterator[None]:
    """Say how to go on after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        if not partial.exists():
            raise
        raise InterruptError(
            f"interrupted; {partial} holds the layers that are done: go on with --resume"
        ) from None


def _show(result: dict[str, Any]) -> None:
    """A row for each role and each layer."""
    named = list(result["roles"].items())
    named += [(f"layer {name}", row) for name, row in result["layers"].items()]
    rows = [
        [
            name,
            f"{row['parameters']:,}",
            f"{row['bits_per_weight']:.3f}",
            "" if row["error"] is None else f"{row['error']:.2e}",
            f"{row['damage']:.5f}" if row["damage"] else "",
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
