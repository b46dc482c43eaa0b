"""``segpt compare``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import _options, _report

if TYPE_CHECKING:
    from segpt.leaderboard.comparison import ComparisonReport

UNITS = {"bpb": "bits per byte", "nats_per_token": "nats per token"}
TESTS = {"runs": "paired runs", "welch": "Welch", "documents": "documents of this text"}


@click.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@_options.as_json
def command(a: Path, b: Path, as_json: bool) -> None:
    """Whether the scores of B are better than those of A, or chance explains it.

    A and B are each a file that `segpt score --out` wrote, or a directory of such files, one for
    each seed. Three seeds on each side are the least that names a better one.
    """
    from segpt.leaderboard.compare import compare

    compared = compare(a, b)
    if not as_json:
        _show(compared)
    contest = compared.contest
    state = "cannot be tested" if contest.p is None else f"p = {contest.p:.2g}"
    lines = [
        f"contest: whether B is better by {contest.nats_per_token:g} nats per token, which are "
        f"{contest.bpb:.5f} bits per byte at {contest.bytes_per_token:.4f} bytes per token: "
        + {True: f"met ({state})", False: f"not met ({state})", None: state}[contest.met],
        *(f"note: {flag}" for flag in compared.flags),
        compared.verdict,
    ]
    _report.emit(compared, as_json, lines)


def _show(compared: "ComparisonReport") -> None:
    sides = [
        [
            f"{letter} {name}",
            str(side.n),
            " ".join("?" if seed is None else str(seed) for seed in side.seeds),
            f"{row.mean:.5f}",
            "" if row.sd is None else f"{row.sd:.5f}",
            "" if row.sd is None else f"{row.low:.5f} to {row.high:.5f}",
        ]
        for unit, name in UNITS.items()
        for letter, side in (("A", compared.a), ("B", compared.b))
        for row in [getattr(side, unit)]
    ]
    _report.table("Scores", ["", "n", "seeds", "mean", "sd", "95 % of the mean"], sides)
    tests = [
        [
            f"{UNITS[unit]}, {TESTS[name]}",
            f"{row.mean:+.5f}",
            f"{row.low:+.5f} to {row.high:+.5f}",
            f"{row.t:.2f}",
            f"{row.freedom:.1f}",
            f"{row.p:.2g}",
            f"{row.p_better:.2g}",
        ]
        for unit in UNITS
        if (difference := getattr(compared.difference, unit)) is not None
        for name in TESTS
        if (row := getattr(difference, name)) is not None
    ]
    if not tests:
        mean = compared.difference.bpb.mean
        tests = [["bits per byte, untested", f"{mean:+.5f}", *[""] * 5]]
    columns = ["", "mean", "95 % interval", "t", "freedom", "p", "p (B better)"]
    _report.table("B - A", columns, tests)
