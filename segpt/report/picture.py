"""The curves of a run as a PNG. It needs matplotlib, which is optional."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segpt.errors import SegptError

from . import plot
from .chart import Pair
from .contents import Quantization, Report, ReportedScore, Training

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (plot.BLUE, plot.RED, plot.GREEN, plot.ORANGE, plot.GREY)


def draw(report: Report, path: Path) -> None:
    """Draw what a run has of: bits per byte, rates, bits of the layers, and the running score.

    The same bytes for the same report.

    Raises:
        SegptError: if matplotlib is not installed, or the run has no curve.
    """
    plot.need()
    panels = [
        (_learning, report.training if report.training and report.training.lines else None),
        (_rates, report.training if report.training and report.training.lines else None),
        (_layers, report.quantization),
        (_running, [score for score in report.scores if score.documents] or None),
    ]
    drawn = [(panel, part) for panel, part in panels if part is not None]
    if not drawn:
        raise SegptError("the run has no curve to draw; train, quantize or score it first")
    columns = min(2, len(drawn))
    rows = -(-len(drawn) // columns)
    picture = plot.figure(5.4 * columns, 3.6 * rows)
    for number, (panel, part) in enumerate(drawn, 1):
        axes = picture.add_subplot(rows, columns, number)
        plot.plain(axes)
        panel(axes, part)  # type: ignore[operator]
    plot.save(picture, path)


def _learning(axes: "Axes", training: Training) -> None:
    lines = training.lines
    if any(line.bpb is not None or line.validation_bpb is not None for line in lines):
        axes.set_ylabel("bits per byte")
        training_text = [(line.step, line.bpb) for line in lines]
        held_out = [(line.step, line.validation_bpb) for line in lines]
    else:
        axes.set_ylabel("nats per token")
        training_text = [(line.step, line.loss) for line in lines]
        held_out = [(line.step, line.validation_loss) for line in lines]
    _line(axes, training_text, 0, "training text")
    _line(axes, held_out, 1, "held-out text", marker="o")
    _named(axes, "What a byte of text costs, as training goes", "steps")


def _rates(axes: "Axes", training: Training) -> None:
    for number, (name, rate) in enumerate((training.rates or {"all weights": 1.0}).items()):
        points = [
            (line.step, None if line.rate is None else rate * line.rate) for line in training.lines
        ]
        _line(axes, points, number, name)
    axes.set_ylabel("rate" if training.rates else "share of the highest rate")
    _named(axes, "Learning rates", "steps")


def _layers(axes: "Axes", quantization: Quantization) -> None:
    names = [row.name for row in quantization.layers]
    axes.bar(range(len(names)), [row.bits for row in quantization.layers], color=plot.BLUE)
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 6 else 0, fontsize=8)
    axes.set_ylabel("bits per weight")
    axes.set_title("Where the bits went", loc="left", fontsize=10)


def _running(axes: "Axes", scores: Sequence[ReportedScore]) -> None:
    for number, score in enumerate(scores):
        _line(axes, score.running(), number, f"{score.policy}: {score.bpb:.4f}")
    axes.set_ylabel("bits per byte so far")
    _named(axes, "Bits per byte as the text goes by", "bytes of text scored")


def _line(axes: "Axes", points: Sequence[Pair], number: int, name: str, marker: str = "") -> None:
    known = [(x, y) for x, y in points if y is not None]
    colour = _COLOURS[number % len(_COLOURS)]
    literal = name.replace("$", r"\$").removeprefix("_")
    axes.plot(
        [x for x, _ in known], [y for _, y in known], color=colour, marker=marker, label=literal
    )


def _named(axes: "Axes", title: str, x: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x)
    axes.legend(frameon=False, fontsize=8.5)
