"""``segpt demo``."""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from segpt.config.base import decode, encode
from segpt.errors import InterruptError

from . import _options, _report

if TYPE_CHECKING:
    from segpt.report.demo import DemoResult

RECIPE = "demo"


@click.command("demo")
@_options.out("The directory to write.  [default: runs/demo, or the next free name]")
@_options.budget("[default: the recipe's, 1,000,000]")
@click.option("--seed", type=int, help="Seed of the model and data order.  [default: 1]")
@_options.settings
@_options.device
@_options.resume("RUN", "Go on with RUN, or --out, or the newest run, where it was interrupted.")
@_options.as_json
def command(
    out: Path | None,
    budget: int | None,
    seed: int | None,
    settings: tuple[str, ...],
    device: str,
    resume: str | None,
    as_json: bool,
) -> None:
    """The whole line on built-in text, in about five minutes on two cores.

    Prepares Python's own documentation, trains a small model on it, quantizes and packs it, and
    scores held-out text with the packed file, plain and with test-time training. A page in the
    directory shows all of it. What was done when it is interrupted is kept, and --resume goes on.
    """
    from segpt.config.recipe import read_recipe
    from segpt.report import demo, gather
    from segpt.stages import json_files

    from . import _resume

    changes = [] if seed is None else [f"train.seed={seed}"]
    changes += settings
    if budget is not None:
        changes.append(f"pack.budget={budget}")
    begun, run = None, None
    if resume is None:
        recipe = read_recipe(RECIPE, changes)
    else:
        run = _resume.run(resume, out)

    from segpt.workspace import begun_run

    from . import _demo, _training

    if run is not None:
        begun = _training.say_begun(run)
        recipe = begun_run.recipe_of(begun.checkpoint, None, changes)
        if (begun.run / gather.DEMO).is_file():
            _report.notice(f"{begun.run} is finished: nothing is left to do")
            stored = json_files.read_json(begun.run / gather.DEMO, "what the demo found")
            result = decode(demo.DemoResult, stored, str(begun.run / gather.DEMO))
            page = begun.run / gather.PAGE
            if as_json:
                _report.emit(encode(result) | {"report": str(page)}, True, [])
            else:
                _show(result)
                _report.emit({}, False, [f"{page} shows the run: open it in a browser."])
            return
    with _place(out if begun is None else begun.run, device) as place:
        result = _demo.run(recipe, place, device, resume=begun)
        if not as_json:
            _show(result)
        written = str(_demo.report_on(result, place, device))
    if as_json:
        _report.emit(encode(result) | {"report": written}, True, [])
    else:
        _report.emit({}, False, [f"{written} shows the run: open it in a browser."])


@contextlib.contextmanager
def _place(out: Path | None, device: str) -> Iterator[Path]:
    """The directory of the demo, which nobody else writes to; says how to go on after Ctrl-C."""
    from segpt.locks import claim, locked
    from segpt.workspace import newest

    place = out or claim(newest.RUNS / RECIPE)
    try:
        with locked(place):
            yield place
    except (InterruptError, KeyboardInterrupt) as error:
        if not any(place.glob("step-*")):
            raise
        words = ["segpt", "demo", "--resume", str(place)]
        words += [] if device == "auto" else ["--device", device]
        what = str(error) or "interrupted"
        raise InterruptError(f"{what}; to go on: {shlex.join(words)}") from None
    finally:
        if out is None:
            with contextlib.suppress(OSError):  # not empty: something is there
                place.rmdir()


def _show(result: "DemoResult") -> None:
    text = result.text
    rows = [
        [
            row.step,
            f"{row.bytes:,}",
            "" if row.artifact is None else f"{row.artifact:,}",
            f"{row.bpb:.4f}",
            row.what,
        ]
        for row in result.rows
    ]
    _report.table(
        f"{text.bytes:,} bytes of held-out text ({text.name}), read {text.mode}: bits per "
        "byte (BPB), lower is better",
        ["", "text, bytes", "model, bytes", "BPB", "what it means"],
        rows,
    )
    _report.emit(
        {},
        False,
        [
            f"Quantizing cost {result.quantization_cost:+.4f} BPB on {result.measured_on}: "
            f"{result.bpb_float:.4f} before, {result.bpb_quantized:.4f} after.",
            f"{result.artifact} is the whole model in {result.bytes:,} bytes, "
            f"{result.budget - result.bytes:,} below the budget.",
            f"Done in {result.seconds:.0f} s. Try: segpt inspect {result.artifact}",
        ],
    )
