"""``python -m bench.overview``: the picture of the README, from the records of the leaderboard.

What each packed model makes of the held-out text of the demo's tracks, over the bytes of its file,
beside compressors on the same text.
"""

import re
from pathlib import Path

import click

from segpt.atomic import write_file
from segpt.errors import SegptError
from segpt.leaderboard.entry import Baseline, Record
from segpt.leaderboard.store import Board, read_board
from segpt.report import chart
from segpt.report.figure import STYLE

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "overview.svg"
TRACKS = ("demo-1mb", "demo-256kb")
COMPRESSORS = ("gzip", "brotli")
LEGEND = {"frozen": "the model as it is", "learning": "the same, learning from what it has scored"}

_PAGE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 -40 500 312" class="chart">
<style>{style}
.chart text {{ font-size: 12px; }} .page {{ fill: var(--chart-page); }}</style>
<rect class="page" x="-10" y="-40" width="500" height="312"/>
{legend}{drawing}
</svg>
"""
_KEYS = """<circle class="fill c1" cx="54" cy="-20" r="4.5"/>
<text class="ink" x="65" y="-16">{}</text>
<path class="fill c2" d="M185.5-24.5h9v9h-9z"/>
<text class="ink" x="201" y="-16">{}</text>
"""


@click.command()
@click.option("--out", default=PICTURE, show_default=True, type=click.Path(path_type=Path))
def main(out: Path) -> None:
    """Draw the picture of the README."""
    try:
        write_file(out, picture(read_board(ROOT / "leaderboard")).encode())
    except SegptError as error:
        raise click.ClickException(str(error)) from error


def picture(board: Board) -> str:
    """The picture as SVG; the same leaderboard gives the same bytes."""
    entries = [link.entry for link in board.links if link.entry.track in TRACKS]
    points = []
    for kind, name in LEGEND.items():
        of_kind = [
            chart.Point(record.name, record.bytes / 1000, line.bpb, name)
            for record in entries
            if isinstance(record, Record)
            for line in record.runs[0].scores
            if (line.policy_kind == "frozen") == (kind == "frozen")
        ]
        points += chart.pareto(of_kind)  # a larger and worse one says nothing more
    levels = {
        entry.program: 8 * entry.compressed / entry.bytes
        for entry in entries
        if isinstance(entry, Baseline)
    }
    figure = chart.scatter(
        points,
        chart.Frame(
            title="Bits per byte of held-out text, over the bytes of the model",
            x="size of the model's file, kB",
            y="bits per byte of held-out text (lower is better)",
        ),
        front=False,
        groups=tuple(LEGEND.values()),
        levels=[chart.Level(name, levels[name]) for name in COMPRESSORS],
    )
    # the legend of the figure is made of small pictures; the chart is the last one
    drawings = re.findall(r"<svg [^>]*>(.*?)</svg>", figure, re.DOTALL)
    if not drawings:
        raise SegptError("the leaderboard has no records to draw")
    legend = _KEYS.format(*LEGEND.values())
    return _PAGE.format(style=STYLE, legend=legend, drawing=drawings[-1])


if __name__ == "__main__":
    main()
