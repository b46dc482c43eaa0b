"""``segpt quantize``."""

import dataclasses
from pathlib import Path

import click

from segpt.spec.quant import Rule

from . import _latest, _options, _report


@click.command("quantize")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option(
    "--bits", type=click.IntRange(2, 8), help="Bits of the matrices; the table keeps its own."
)
@click.option("--method", type=click.Choice(["gptq", "nearest"]), help="How weights are rounded.")
@click.option("--data", type=click.Path(path_type=Path), help="The text it was trained on.")
@_options.out("The directory to write.  [default: beside the checkpoint]")
@_options.settings
@_options.device
@_options.as_json
def command(
    checkpoint: Path | None,
    bits: int | None,
    method: str | None,
    data: Path | None,
    out: Path | None,
    settings: tuple[str, ...],
    device: str,
    as_json: bool,
) -> None:
    """Quantize CHECKPOINT (the newest by default) and report what it costs.

    GPTQ reads training text only; the damage is measured on the validation split.
    """
    from segpt.artifact.container import pack
    from segpt.stages import files, recipes
    from segpt.stages.calibrate import quantize_on, share
    from segpt.train.mesh import pick

    from . import _training

    run = _latest.need("checkpoint", checkpoint)
    value = files.read_checkpoint(files.newest_checkpoint(run))
    recipe = recipes.of_checkpoint(value, settings)
    spec = recipes.with_bits(recipe.quantize, bits, method)
    tokens, held_out = _training.splits(recipe, data)
    with _report.Bar("quantize") as bar:
        quantized = quantize_on(
            value,
            spec,
            tokens,
            held_out,
            device=pick(device),
            report=lambda p: bar(share(p), p.task),
        )
    place = out or run.with_name(f"{run.name}-quantized")
    report = dict(quantized.report) | {"budget": recipe.pack.budget}
    files.save_quantized(place, dataclasses.replace(quantized, report=report))
    _latest.remember("quantized", place)
    result = {
        "out": str(place),
        "method": spec.method,
        "rules": [rule_text(rule) for rule in spec.rules],
        "bits_per_weight": report["bits_per_weight"],
        "roles": report["roles"],
        "fallbacks": report["fallbacks"],
        **report["quality"],
        "bytes": pack(quantized).size,
    }
    lines = [f"rule {text}" for text in result["rules"]]
    lines += [
        f"{role}: {row['parameters']:,} weights at {row['bits_per_weight']:.3f} bits"
        for role, row in report["roles"].items()
    ]
    lines += [f"fell back to rounding: {', '.join(report['fallbacks'])}"] * bool(
        result["fallbacks"]
    )
    lines += [
        f"{result['bits_per_weight']:.3f} bits per weight, {result['bytes']:,} bytes packed",
        f"BPB {result['bpb_before']:.4f} -> {result['bpb_after']:.4f}, KL mean "
        f"{result['kl_mean']:.5f} p99 {result['kl_p99']:.5f} nats, top-1 agreement "
        f"{100 * result['top1_agreement']:.2f} %",
    ]
    _report.emit(result, as_json, lines)


def rule_text(rule: Rule) -> str:
    """A rule as people read it."""
    where = f" of layers {rule.layers}" if rule.layers else ""
    if rule.bits == 16:
        return f"{rule.role}{where}: float16"
    per = f"group of {rule.group} columns" if rule.group else "row"
    return f"{rule.role}{where}: {rule.bits} bits, clip {rule.k:g} sigma, a scale per {per}"
