"""How long it takes to verify an entry, judged by the seconds that its scores took before."""

from collections.abc import Sequence

from .entry import Baseline, Record, ScoreLine, figure
from .verdict import Verifiable

COMPRESSING, MAKING = 5.0, 300.0  # seconds, about


def seconds_of(entry: Verifiable, *, remade: bool) -> float:
    """About how long it takes to verify an entry: as long as its scores took before."""
    if isinstance(entry, Baseline):
        return COMPRESSING
    return (
        seconds(counted(entry)) + MAKING if remade else sum(seconds(r.scores) for r in entry.runs)
    )


def counted(record: Record) -> tuple[ScoreLine, ...]:
    """The scores of the first artifact that its figure comes from."""
    counts = figure(record.runs).policy
    return tuple(line for line in record.runs[0].scores if line.policy_kind == counts)


def seconds(lines: Sequence[ScoreLine]) -> float:
    return sum(line.seconds for line in lines)
