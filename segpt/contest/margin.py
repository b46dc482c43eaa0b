"""Whether a submission beats the record before it by the margin of the contest."""

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev

from segpt.config.parameter_golf import MARGIN, SIGNIFICANCE, margin
from segpt.leaderboard.statistics import Difference, welch

from . import claims as claimed
from .figures import bytes_per_token
from .submission_folder import Case, Contradiction


def better(case: Case) -> Iterator[Contradiction]:
    """A margin over the previous record that is too small, or that chance explains."""
    if (before := case.against) is None:
        return
    values = [float(seed.bpb) for seed in case.about.seeds if seed.bpb is not None]
    if not values and case.about.bpb is not None:
        values = [float(case.about.bpb)]
    per_token = bytes_per_token(case.runs, case.about)
    if not values or per_token is None:
        text = f"cannot be held against {before.name}: it has no BPB, or no nats per token"
        yield Contradiction("margin", case.place, text)
        return
    least, gain = margin(per_token), fmean(before.bpb) - fmean(values)
    nats = gain / least * MARGIN
    if gain < least:
        text = (
            f"is {gain:.5f} BPB ({nats:.5f} nats per token) better than {before.name} at "
            f"{fmean(before.bpb):.5f}, where {least:.5f} BPB ({MARGIN:g} nats) are asked for"
        )
        yield Contradiction("margin", case.place, text)
    for name, test in comparisons(before.bpb, values).items():
        p = None if test is None else test.p_beyond(least)
        if p is None or p >= SIGNIFICANCE:
            odds = "cannot be computed" if p is None else f"is {p:.3g}"
            text = (
                f"{name}: p of being better than {before.name} by {least:.5f} BPB {odds} over "
                f"{len(values)} seeds, where less than {SIGNIFICANCE:g} is asked for"
            )
            yield Contradiction("significance", case.place, text)
        texts = {} if case.page is None else {case.page: case.folder.texts[case.page]}
        said = [(case.place, case.about.p)] if case.about.p is not None else []
        said += [(page, p) for page, text in texts.items() for p in claimed.chances(text)[:1]]
        for place, chance in said:
            if p is not None and chance < SIGNIFICANCE <= p:
                text = f"claims p = {chance} against the previous record, and {name} gives {p:.3g}"
                yield Contradiction("significance", place, text)


def comparisons(before: Sequence[float], values: Sequence[float]) -> dict[str, Difference | None]:
    """The tests of runs against a previous record: one-sample, and Welch's if it has runs."""
    one_sample = None
    if len(values) > 1 and (spread := stdev(values)):
        error = spread / math.sqrt(len(values))
        one_sample = Difference(fmean(values) - fmean(before), error, len(values) - 1)
    tests = {"one-sample t": one_sample}
    return tests if len(before) < 2 else tests | {"Welch's t": welch(before, values)}
