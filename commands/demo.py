"""``segpt demo``."""

import time
from pathlib import Path
from typing import Any

import click

from . import _options, _report


@click.command("demo")
@_options.out("The directory to write.  [default: runs/demo, or the next free name]")
@_options.budget("[default: the recipe's, 1,000,000]")
@click.option("--seed", default=1, show_default=True, help="Seed of the model and data order.")
@_options.settings
@_options.device
@_options.as_json
def command(
    out: Path | None,
    budget: int | None,
    seed: int,
    settings: tuple[str, ...],
    device: str,
    as_json: bool,
) -> None:
    """The whole line on built-in text, in about five minutes on two cores.

    Prepares Python's own documentation, trains a small model on it, quantizes and packs it, and
    scores held-out text with the packed file, plain and with test-time training. A page in the
    directory shows all of it.
    """
    from segpt.spec.recipe import read_recipe

    from . import _demo, _latest

    changes = [f"train.seed={seed}", *settings]
    if budget is not None:
        changes.append(f"pack.budget={budget}")
    recipe = read_recipe("demo", changes)
    place = out or _latest.fresh(_latest.RUNS / "demo")
    started = time.perf_counter()
    result = _demo.run(recipe, place, device) | {"seed": seed}
    result["seconds"] = time.perf_counter() - started
    result["report"] = str(_demo.report_on(result, place))
    if as_json:
        _report.emit(result, True, [])
        return
    _show(result)


def _show(result: dict[str, Any]) -> None:
    text = result["text"]
    rows = [
        [
            row["step"],
            f"{row['bytes']:,}",
            "" if row["artifact"] is None else f"{row['artifact']:,}",
            f"{row['bpb']:.4f}",
            row["what"],
        ]
        for row in result["rows"]
    ]
    _report.table(
        f"{text['bytes']:,} bytes of held-out text ({text['name']}), read {text['mode']}: bits per "
        "byte (BPB), lower is better",
        ["", "text, bytes", "model, bytes", "BPB", "what it means"],
        rows,
    )
    _report.emit(
        {},
        False,
        [
            f"Quantizing cost {result['quantization_cost']:+.4f} BPB on {result['measured_on']}: "
            f"{result['bpb_float']:.4f} before, {result['bpb_quantized']:.4f} after.",
            f"{result['artifact']} is the whole model in {result['bytes']:,} bytes, "
            f"{result['budget'] - result['bytes']:,} below the budget.",
            f"{result['report']} shows the run: open it in a browser.",
            f"Done in {result['seconds']:.0f} s. Try: segpt inspect {result['artifact']}",
        ],
    )
