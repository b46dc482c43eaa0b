"""``python -m bench.transfer``: is the best learning rate of a narrow model that of wider ones?

One small model at several widths, trained for a few hundred steps on text that is read once, so
that the loss of the last steps is one of unseen text. A coordinate check tells how far the first
steps move what enters each visit and the logits; a sweep, which rate is best. Both are measured
under Adam and under Muon, with rates and starts as they are and as ``segpt.config.train.Mup`` has
them. Each run is written as soon as it is done, so that an interrupted sweep goes on.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from torch import Tensor

from segpt.atomic import write_file
from segpt.config.base import encode
from segpt.config.expand import expand
from segpt.config.layout import parameters
from segpt.config.model import ModelSpec
from segpt.config.optimizer import Adam, Muon, Optimizer, Override
from segpt.config.recipe import Bytes
from segpt.config.schedule import Schedule, Steps
from segpt.config.train import Mup, Scaling, TrainSpec
from segpt.data.batches import Blocks
from segpt.data.tokens import ids
from segpt.errors import DataError, SegptError
from segpt.model.state import ForwardState
from segpt.report import plot
from segpt.stages import prepare
from segpt.train.mesh import Mesh
from segpt.train.trainer import Trainer

from . import facts
from .summary import round_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OUT = Path(__file__).parent / "results" / "transfer.json"
TEXT = Path("runs") / "data" / "builtin-bytes"
BASE, WIDTHS = 64, (64, 128, 256, 512)
FACTORS = tuple(2.0**k for k in range(-3, 5))  # of the rates of WAYS
CHECKED = 10  # steps of the coordinate check
SEED = 1


def _rules(matrix: Adam | Muon) -> Optimizer:
    plain = Adam(rate=0.002)
    return Optimizer(matrix=matrix, table=plain, head=plain, vector=plain)


_START = Scaling(matrix="normal", table=1.0)
_MUP = dataclasses.replace(_START, mup=Mup(base_width=BASE))
WAYS: Mapping[str, tuple[Optimizer, Scaling]] = {
    "Adam": (_rules(Adam(rate=0.002)), _START),
    "Adam, muP": (_rules(Adam(rate=0.002)), _MUP),
    "Muon": (_rules(Muon(rate=0.02)), _START),
    "Muon, muP": (_rules(Muon(rate=0.02)), _MUP),
}

WHAT = (
    "One model at several widths, by byte, on the training split of the built-in text. `checks`: "
    "the root mean square, over a fixed batch, of what enters each visit and last of the logits "
    "(`start`), and of how far each of the first steps has moved it (`moved`). `sweep`: the loss "
    "in nats per token over the last fifth of a run at `factor` times the rates of the way, null "
    "where it diverged. `best`: the factor at the least of a parabola through the points about "
    "the smallest loss, by width, null at either end; `spread`: the largest over the smallest."
)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Prepared text, by byte.")
@click.option("--out", default=OUT, show_default=True, type=click.Path(path_type=Path))
@click.option("--width", "widths", multiple=True, type=int, help="May be repeated.")
@click.option("--factor", "factors", multiple=True, type=float, help="May be repeated.")
@click.option("--way", "ways", multiple=True, type=click.Choice(list(WAYS)))
@click.option("--steps", default=300, show_default=True)
@click.option("--depth", default=3, show_default=True)
@click.option("--context", default=128, show_default=True)
@click.option("--batch", default=8, show_default=True)
@click.option("--render", is_flag=True, help="Only draw --out.")
def main(
    data: Path | None,
    out: Path,
    widths: tuple[int, ...],
    factors: tuple[float, ...],
    ways: tuple[str, ...],
    steps: int,
    depth: int,
    context: int,
    batch: int,
    render: bool,
) -> None:
    """Measure what is missing in --out, width by width, and draw it."""
    torch.set_num_threads(1)
    size = {"steps": steps, "depth": depth, "context": context, "batch": batch}
    try:
        if not render:
            result = opened(out, size)
            report = prepare.open_splits(data) if data is not None else _builtin()
            measure(result, ids(report[0]), out, ways or WAYS, widths or WIDTHS, factors or FACTORS)
        draw(json.loads(out.read_bytes()), out.with_suffix(".png"))
    except SegptError as error:
        raise click.ClickException(str(error)) from error


def opened(out: Path, size: Mapping[str, int]) -> dict[str, Any]:
    """The results at ``out`` so far.

    Raises:
        DataError: if they are of runs of another size.
    """
    if not out.exists():
        return {"size": dict(size), "checks": [], "sweep": []}
    result: dict[str, Any] = json.loads(out.read_bytes())
    if result["size"] != size:
        raise DataError(f"{out} holds runs of another size, {result['size']}; choose another --out")
    return result


def measure(
    result: dict[str, Any],
    stream: Any,
    out: Path,
    ways: Sequence[str] | Mapping[str, Any],
    widths: Sequence[int],
    factors: Sequence[float],
) -> None:
    """Add what is missing to a result, and write it after each run."""
    size = result["size"]
    blocks = Blocks(stream, size["context"], SEED)
    if blocks.epoch_blocks <= (size["steps"] + 1) * size["batch"]:
        raise DataError("the text is too short to be read once; take fewer --steps")
    for width in widths:
        spec = model(width, size["depth"], size["context"])
        for way in ways:
            if (way, width) not in {(c["way"], c["width"]) for c in result["checks"]}:
                result["checks"].append(checked(way, spec, blocks, size["batch"]))
                write(out, result)
            for factor in factors:
                done = {(p["way"], p["width"], p["factor"]) for p in result["sweep"]}
                if (way, width, factor) in done:
                    continue
                loss = final_loss(way, spec, blocks, size["steps"], size["batch"], factor)
                point = {"way": way, "width": width, "factor": factor, "loss": loss}
                result["sweep"].append(point | {"commit": facts.commit()})
                write(out, result)
                sys.stdout.write(f"{way}, width {width}, {factor:g} times the rates: {loss}\n")
                sys.stdout.flush()


def model(width: int, depth: int, context: int) -> ModelSpec:
    """The model at a width: heads and hidden channels grow with it, a head stays as wide."""
    mixer: dict[str, Any] = {"heads": width // 32, "kv_heads": width // 32, "head_dim": 32}
    mixer["query_key"] = ["norm", {"kind": "rope", "dims": 32}]
    return expand(
        {
            "vocab": 257,
            "width": width,
            "context": context,
            "depth": depth,
            "head": {"tied": False, "softcap": None},
            "layer": {"mixer": mixer, "feed": {"hidden": 4 * width}},
        }
    )


def run_of(way: str, spec: ModelSpec, steps: int, batch: int, factor: float = 1.0) -> Trainer:
    """A run that is about to start, at ``factor`` times the rates of the way."""
    rules, scaling = WAYS[way]
    everything = (
        Override(role="matrix", rate_times=factor),
        Override(role="table", rate_times=factor),
        Override(role="head", rate_times=factor),
        Override(role="vector", rate_times=factor),
    )
    how = TrainSpec(
        length=Steps(count=steps),
        batch=batch,
        optimizer=dataclasses.replace(rules, overrides=everything),
        schedule=Schedule(warmup=0.1, warmdown=0.4),
        scaling=scaling,
        average=None,
        precision="float32",
        seed=SEED,
    )
    return Trainer(spec, how, Mesh(0, 1, torch.device("cpu")))


def checked(way: str, spec: ModelSpec, blocks: Blocks, batch: int) -> dict[str, Any]:
    """How far each of the first steps has moved what enters each visit, and the logits."""
    run = run_of(way, spec, 2 * CHECKED, batch)
    tokens = torch.from_numpy(blocks.take(blocks.epoch_blocks - batch, batch)[:, :-1])
    start, moved = entering(run, tokens), []
    for step in range(CHECKED):
        run.train_step(blocks.batch(step, batch))
        moved.append([_size(a - b) for a, b in zip(entering(run, tokens), start, strict=True)])
    return {"way": way, "width": spec.width, "start": [_size(x) for x in start], "moved": moved}


@torch.no_grad()
def entering(run: Trainer, tokens: Tensor) -> list[Tensor]:
    """What enters each visit, and the logits."""
    entered: list[Tensor] = []
    visit = run.model._visit

    def watched(index: int, x: Tensor, state: ForwardState) -> Tensor:
        entered.append(x)
        return visit(index, x, state)

    object.__setattr__(run.model, "_visit", watched)
    try:
        logits = run.model(tokens)
    finally:
        object.__delattr__(run.model, "_visit")
    return [*entered, logits]


def _size(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def final_loss(
    way: str, spec: ModelSpec, blocks: Blocks, steps: int, batch: int, factor: float
) -> float | None:
    """Nats per token of the last fifth of a run, each block before it is learned from."""
    run = run_of(way, spec, steps, batch, factor)
    losses = [float(run.train_step(blocks.batch(step, batch)).loss) for step in range(steps)]
    last = losses[-max(1, steps // 5) :]
    mean = sum(last) / len(last)
    return mean if math.isfinite(mean) else None


def best_factor(points: Sequence[Mapping[str, Any]]) -> float | None:
    """Where the least loss is, from a parabola over log2 of the factor.

    None if the smallest loss is that of the smallest or largest factor.
    """
    known = sorted((math.log2(p["factor"]), p["loss"]) for p in points if p["loss"] is not None)
    least = min(range(len(known)), key=lambda i: known[i][1], default=0)
    if not 0 < least < len(known) - 1:
        return None
    (a, fa), (b, fb), (c, fc) = known[least - 1 : least + 2]
    up, down = (b - a) * (fb - fc), (b - c) * (fb - fa)
    return float(2 ** (b - 0.5 * ((b - a) * up - (b - c) * down) / (up - down)))


def concluded(result: Mapping[str, Any]) -> dict[str, Any]:
    """The best factor by way and width, and how far apart those of a way are."""
    found: dict[str, Any] = {}
    for way in dict.fromkeys(p["way"] for p in result["sweep"]):
        own = [p for p in result["sweep"] if p["way"] == way]
        best = {
            width: best_factor([p for p in own if p["width"] == width])
            for width in sorted({p["width"] for p in own})
        }
        known = [factor for factor in best.values() if factor is not None]
        found[way] = {
            "best": {str(width): factor for width, factor in best.items()},
            "spread": max(known) / min(known) if len(known) == len(best) > 1 else None,
        }
    return found


def write(out: Path, result: Mapping[str, Any]) -> None:
    """Write a result with its summary."""
    size = result["size"]
    whole = {
        "what": WHAT,
        "command": "python -m bench.transfer",
        "date": date.today().isoformat(),
        **facts.device(),
        "versions": facts.versions(),
        "size": size,
        "parameters": {
            str(width): parameters(model(width, size["depth"], size["context"]))
            for width in sorted({c["width"] for c in result["checks"]})
        },
        "ways": {w: {"rules": encode(r), "scaling": encode(s)} for w, (r, s) in WAYS.items()},
        "summary": round_figures(concluded(result)),
        "checks": round_figures(result["checks"]),
        "sweep": round_figures(result["sweep"], 6),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, json.dumps(whole, indent=1).encode() + b"\n")


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw loss over rates by width for each way, and how far the first steps move the logits."""
    ways = list(result["summary"])
    picture = plot.figure(3.2 * (len(ways) + 1), 3.1)
    *panels, last = picture.subplots(1, len(ways) + 1)
    for axes, way in zip(panels, ways, strict=True):
        _sweep(axes, way, [p for p in result["sweep"] if p["way"] == way])
        axes.set_ylim(*_limits(result["sweep"]))
    panels[0].set_ylabel("loss, nats per byte")
    _checks(last, result["checks"])
    plot.save(picture, path)


def _limits(points: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """From below the least loss to where a model has learned little."""
    losses = [p["loss"] for p in points if p["loss"] is not None]
    least, most = min(losses), min(max(losses), 2 * min(losses))
    return least - 0.05 * (most - least), most + 0.05 * (most - least)


_COLOURS = (plot.GREY, plot.BLUE, plot.GREEN, plot.ORANGE, plot.RED)


def _sweep(axes: "Axes", way: str, points: Sequence[Mapping[str, Any]]) -> None:
    for colour, width in zip(_COLOURS, sorted({p["width"] for p in points}), strict=False):
        own = sorted((p["factor"], p["loss"]) for p in points if p["width"] == width and p["loss"])
        factors, losses = [factor for factor, _ in own], [loss for _, loss in own]
        axes.plot(factors, losses, "o-", color=colour, label=str(width), ms=3.5)
    axes.set_xscale("log", base=2)
    axes.set_title(way, fontsize=10)
    axes.set_xlabel("times the rates")
    axes.legend(title="width", fontsize=8, title_fontsize=8, frameon=False)
    plot.plain(axes)


def _checks(axes: "Axes", checks: Sequence[Mapping[str, Any]]) -> None:
    for colour, way in zip(_COLOURS, dict.fromkeys(c["way"] for c in checks), strict=False):
        own = sorted((c["width"], c["moved"][-1][-1]) for c in checks if c["way"] == way)
        widths, moved = [width for width, _ in own], [moved for _, moved in own]
        axes.plot(widths, moved, "o-", color=colour, label=way, ms=3.5)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_title(f"change of logits in {CHECKED} steps", fontsize=10)
    axes.set_xlabel("width")
    axes.legend(fontsize=8, frameon=False)
    plot.plain(axes)


def _builtin() -> tuple[Any, Any]:
    return prepare.builtin_splits(Bytes(), TEXT, lambda *_: None)


if __name__ == "__main__":
    main()
