"""Pictures of what quantization costs. They need matplotlib, which is optional."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segpt.atomic import write_file
from segpt.errors import SegptError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from segpt.config.quant_report import QuantReport

    from .rate_curve import Curve

# Okabe and Ito's colours, which people with any colour vision can tell apart.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#888888"

_DPI = 130
_MADE_BY = "segpt"


def need() -> None:
    """Check that pictures can be drawn.

    Raises:
        SegptError: if matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401 - to see whether it is there
    except ImportError as error:
        raise SegptError("a plot needs matplotlib; pip install 'segpt[plot]'") from error


def figure(width: float, height: float) -> "Figure":
    """An empty picture of a size in inches."""
    need()
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained")


def save(picture: "Figure", path: Path) -> None:
    """Write a picture as PNG, the same bytes for the same picture."""
    data = io.BytesIO()
    picture.savefig(data, format="png", dpi=_DPI, metadata={"Software": _MADE_BY})
    write_file(path, data.getvalue())


def is_ours(path: Path) -> bool:
    """Whether a file is a picture that :func:`save` wrote."""
    with path.open("rb") as file:
        head = file.read(1024)
    return head.startswith(b"\x89PNG") and b"Software\0" + _MADE_BY.encode() in head


def plain(axes: "Axes") -> None:
    """Take off the frame, and lay a faint grid below what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.tick_params(labelsize=8.5)


def kl_axes(axes: "Axes", what: str) -> None:
    """Name the axes of KL over bits, KL on a log scale with a few readable numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MultipleLocator, NullFormatter

    plain(axes)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MultipleLocator(0.5))
    axes.set_xlabel("bits per weight")
    axes.set_ylabel(what)


def quantized(path: Path, curve: "Curve", report: "QuantReport", method: str) -> None:
    """Draw KL over bits per weight, and what every role and layer takes and loses.

    Args:
        path: the PNG to write.
        curve: of :func:`segpt.report.rate_curve.curve`.
        report: of the quantized model.
        method: by which it was made.
    """
    rows = [(name, row, BLUE) for name, row in report.roles.items() if name != "vector"]
    rows += [(f"layer {name}", row, GREEN) for name, row in report.layers.items()]
    panels = [("bits per weight", "bits_per_weight"), ("squared error, relative", "error")]
    panels += [("damage, nats per token", "damage")] * any(row.damage for _, row, _ in rows)
    picture = figure(11.0, 5.2)
    grid = picture.add_gridspec(len(panels), 2, width_ratios=(1.15, 1.0))
    left = picture.add_subplot(grid[:, 0])
    kl_axes(left, f"KL to the float model, nats per token ({curve.tokens:,} held-out tokens)")
    left.plot(
        [dot.bits for dot in curve.dots],
        [dot.kl for dot in curve.dots],
        "o-",
        color=BLUE,
        markersize=5,
        label="trellis, neither searched nor tuned",
    )
    point = curve.here
    left.plot(
        [point.bits], [point.kl], "*", color=RED, markersize=15, label=f"this model ({method})"
    )
    left.annotate(
        f"{point.bits:.2f} bits\nKL {point.kl:.4f}",
        (point.bits, point.kl),
        (11, 7),
        textcoords="offset points",
        fontsize=9,
        color=RED,
    )
    left.legend(frameon=False, fontsize=9)
    for i, (title, key) in enumerate(panels):
        axes = picture.add_subplot(grid[i, 1])
        _bars(axes, title, [(name, getattr(row, key) or 0.0, colour) for name, row, colour in rows])
        axes.tick_params(axis="x", labelbottom=i == len(panels) - 1)
    save(picture, path)


def _bars(axes: "Axes", title: str, rows: Sequence[tuple[str, float, str]]) -> None:
    plain(axes)
    axes.grid(visible=False, axis="x")
    names, values, colours = zip(*rows, strict=True)
    bars = axes.bar(range(len(rows)), values, color=colours, width=0.72)
    many = len(rows) > 9
    axes.set_xticks(range(len(rows)), names, rotation=90 if many else 0)
    if not many:
        axes.bar_label(bars, [f"{v:#.3g}" for v in values], fontsize=8, padding=1.5)
        axes.margins(y=0.16)
    axes.set_title(title, loc="left", fontsize=9.5)
