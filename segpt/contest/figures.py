"""Bits per byte that a submission claims, held against its logs, its README and each other."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from statistics import fmean, pstdev, stdev

from segpt.config.parameter_golf import REFERENCE

from . import claims as claimed
from .claims import ClaimedRow, Claims, Seed
from .logs import Log
from .numbers import cut, figure
from .sizes import is_known
from .submission_folder import Case, Contradiction, agree, decimals, is_in, last, near

_ALIKE = 0.002  # relative: bytes per token of one text, however it is cut


_MOST_NATS = 20  # per token; larger numbers are of something else

_ELSEWHERE = re.compile(  # columns about changes, or about other submissions
    r"delta|gain|diff|\bvs\b|δ|\bstd|improve|change|gap|\bpr\b|#\d|base|sota|prev|time",
    re.IGNORECASE,
)


def claimed_figures(case: Case) -> Iterator[Contradiction]:
    """Bits per byte that no log has, or only for another model than the packed one."""
    about, place = case.about, case.place
    for seed in about.seeds:
        if not (runs := case.of_seed.get(seed.seed)):
            if case.runs:
                known = ", ".join(map(str, sorted(case.of_seed))) or "none that is named"
                text = f"seed {seed.seed} has no log; there are logs of seeds {known}"
                yield Contradiction("no-log", place, text)
            continue
        if seed.bpb is None:
            continue
        if not is_in(seed.bpb, (d for run in runs for d in run.decimals)):
            for run in runs[:1]:
                yield Contradiction("bpb", place, _other(f"seed {seed.seed}", seed.bpb, run))
            continue
        shown = [(r, f) for r in runs for f in r.figures if agree(seed.bpb, f.bpb)]
        if shown and not any(figure.final for _, figure in shown):
            run = shown[0][0]
            text = (
                f"seed {seed.seed} claims {seed.bpb} BPB, which {run.name} has only from before "
                f"quantization; its last is {last(run)}"
            )
            yield Contradiction("unquantized", place, text)
        yield from _elsewhere(case, seed, runs, [run for run, _ in shown])
    if about.bpb is not None and case.runs and not any(s.bpb is not None for s in about.seeds):
        finals = [[f.bpb for f in run.figures if f.final] for run in case.runs]
        logged = [d for run in case.runs for d in run.decimals]
        if all(finals):
            logged.append(Decimal(repr(fmean(float(figures[-1]) for figures in finals))))
        if not is_in(about.bpb, logged):
            kind = "lone-log" if len(case.runs) == 1 else "bpb"
            yield Contradiction(kind, place, _other("the submission", about.bpb, case.runs[0]))


def _elsewhere(
    case: Case, seed: Seed, runs: Sequence[Log], shown: Sequence[Log]
) -> Iterator[Contradiction]:
    """A figure that the log of the training does not have, nor that of its evaluation the size."""
    trained = [run for run in runs if run.steps]
    if not trained or not shown or any(run.steps for run in shown):
        return
    if seed.bytes is None or not any(seed.bytes in run.sizes for run in shown):
        text = (
            f"has seed {seed.seed}'s {seed.bpb} BPB, but not the size of what it evaluates; the "
            f"log of the training, {trained[0].name}, ends at {last(trained[0])}"
        )
        yield Contradiction("composite", shown[0].name, text)


def _other(who: str, bpb: Decimal, run: Log) -> str:
    return f"{who} claims {bpb} BPB, which is not in {run.name}; its last is {last(run)}"


def moments(case: Case) -> Iterator[Contradiction]:
    """Means and standard deviations that the seeds do not give."""
    about = case.about
    for name, mean, spread, of in (
        ("BPB", about.bpb, about.bpb_std, [s.bpb for s in about.seeds]),
        ("loss", about.loss, about.loss_std, [s.loss for s in about.seeds]),
    ):
        values = [value for value in of if value is not None]
        if len(values) < 2 or len(values) < len(of):
            continue
        unit = Decimal(1).scaleb(-min(map(decimals, values)))
        numbers = [float(value) for value in values]
        if mean is not None and not near(mean, fmean(numbers), unit):
            if not is_in(mean, values):
                text = f"claims a mean {name} of {mean}, and its seeds give {fmean(numbers):.8f}"
                yield Contradiction("mean", case.place, text)
            else:
                text = f"claims the {name} {mean} of one seed, and their mean is"
                yield Contradiction("mean", case.place, f"{text} {fmean(numbers):.8f}")
        either = stdev(numbers), pstdev(numbers)
        if spread is not None and not any(near(spread, value, unit) for value in either):
            text = f"claims a standard deviation of {spread} {name}, and its seeds give"
            yield Contradiction("std", case.place, f"{text} {either[0]:.8f}")


def readme(case: Case) -> Iterator[Contradiction]:
    """Numbers of the README that logs or metadata do not have."""
    if case.page is None:
        return
    text = case.folder.texts[case.page]
    about = case.about
    named = claimed.headlines(text)
    if about.bpb is not None and named and not is_in(about.bpb, named):
        claim = f"its heading says {named[0]} BPB, and {case.place} {about.bpb}"
        yield Contradiction("readme", case.page, claim)
    columns: dict[str, list[Decimal]] = {}
    for row in claimed.rows(text):
        yield from _row(case, case.page, row, columns)
    if (best := claimed.best_of(text, case.folder.texts.get(case.place, ""))) is not None:
        claim = f"counts the best {best[0]} of {best[1]} runs"
        yield Contradiction("best-of", case.page, claim)


def _row(
    case: Case, page: str, row: ClaimedRow, columns: dict[str, list[Decimal]]
) -> Iterator[Contradiction]:
    runs = [] if row.seed is None else case.of_seed.get(row.seed, [])
    claim = next((s for s in case.about.seeds if s.seed == row.seed), None)
    for head, cell in row.cells.items():
        if _ELSEWHERE.search(head):
            continue
        for written in claimed.numbers(cell):
            number = figure(written.replace(",", ""))
            if number is None:
                text = f"{head}: {cut(written)} is no figure that a run can have"
                yield Contradiction("number", page, text)
                continue
            if row.seed is None:
                values = columns.get(head, [])
                text = f"{head}: the mean is said to be {written}"
                if len(values) > 1 and not _is_mean(number, values):
                    mean = fmean(map(float, values))
                    yield Contradiction("readme", page, f"{text}, and the rows give {mean:.6g}")
                continue
            columns.setdefault(head, []).append(number)
            if not runs:
                continue
            is_figure = decimals(number) >= 3 and number < _MOST_NATS
            if is_figure and not is_in(number, (d for r in runs for d in r.decimals)):
                near = _nearest(number, runs)
                text = f"seed {row.seed}, {head}: {written}, and {runs[0].name} has {near}"
                yield Contradiction("readme", page, text)
            if decimals(number) == 0 and number > 1_000_000:
                size = int(number)
                if not is_known(size, runs):
                    logged = next((r.total for r in runs if r.total is not None), None)
                    says = "no size" if logged is None else f"{logged:,}"
                    text = f"seed {row.seed}, {head}: {written}, and {runs[0].name} has {says}"
                    yield Contradiction("readme", page, text)
                elif claim is not None and claim.bytes not in (None, size):
                    text = f"seed {row.seed}, {head}: {written}, and {case.place} {claim.bytes:,}"
                    yield Contradiction("readme", page, text)


def _is_mean(number: Decimal, values: Sequence[Decimal]) -> bool:
    return near(number, fmean(map(float, values)), Decimal(1).scaleb(-decimals(number)))


def _nearest(number: Decimal, runs: Iterable[Log]) -> str:
    known = [d for run in runs for d in run.decimals]
    return str(min(known, key=lambda d: abs(d - number))) if known else "no such number"


def losses(case: Case) -> Iterator[Contradiction]:
    """Nats per token and bits per byte that need different bytes per token."""
    pairs = [
        (run.name, "", f.bpb, f.loss, run.targets)
        for run in case.runs
        for f in run.figures
        if f.loss is not None
    ]
    about = case.about
    stated: list[tuple[str, Decimal | None, Decimal | None]]
    stated = [("the submission", about.bpb, about.loss)]
    stated += [(f"seed {s.seed}", s.bpb, s.loss) for s in about.seeds]
    stated_pairs = [
        (case.place, who, bpb, loss, ())
        for who, bpb, loss in stated
        if bpb is not None and loss is not None
    ]
    known = bytes_per_token(case.runs, about)
    seen: set[tuple[str, str]] = set()
    for place, who, bpb, loss, targets in [*stated_pairs, *pairs]:
        if (place, who) in seen:
            continue
        subject = f"{who}: " if who else ""
        if not bpb or not loss:
            if bpb != loss:
                seen.add((place, who))
                text = f"{subject}{loss} nats per token and {bpb} BPB: one is nothing, and one not"
                yield Contradiction("denominator", place, text)
            continue
        expected = next((r.bytes_per_token for r in REFERENCE if r.targets in targets), known)
        if expected is None:
            continue
        ratio, doubt = _ratio(bpb, loss)
        if abs(ratio / expected - 1) > _ALIKE + doubt:
            seen.add((place, who))
            text = (
                f"{subject}{loss} nats per token and {bpb} BPB are {ratio:.4f} bytes per token, "
                f"where it is {expected:.4f}"
            )
            yield Contradiction("denominator", place, text)


def bytes_per_token(runs: Iterable[Log], about: Claims) -> float | None:
    """The bytes that a token stands for, from the logs or else from the metadata."""
    ratios: list[float] = []
    for run in runs:
        for known in REFERENCE:
            if known.targets in run.targets:
                return known.bytes_per_token
        ratios += [_ratio(f.bpb, f.loss)[0] for f in run.figures if f.loss and f.bpb and f.final]
    if not ratios and about.loss and about.bpb:
        ratios = [_ratio(about.bpb, about.loss)[0]]
    return sorted(ratios)[len(ratios) // 2] if ratios else None


def _ratio(bpb: Decimal, loss: Decimal) -> tuple[float, float]:
    """Bytes per token, and how far rounding can put it off, relatively."""
    doubt = sum(0.5 * 10.0 ** -decimals(number) / float(number) for number in (bpb, loss))
    return float(loss) / (math.log(2) * float(bpb)), doubt


def chosen(case: Case) -> Iterator[Contradiction]:
    """Seeds that were run and do not count, where those that count are the better ones."""
    counted = {seed.seed: seed.bpb for seed in case.about.seeds if seed.bpb is not None}
    if not counted:
        return
    others = dict(case.about.others or {})
    for seed, runs in case.of_seed.items():
        finals = [f.bpb for run in runs for f in run.figures if f.final]
        if finals and seed not in counted:
            others.setdefault(seed, finals[-1])
    left = {seed: bpb for seed, bpb in others.items() if seed not in counted}
    if left and fmean(map(float, left.values())) > fmean(map(float, counted.values())):
        listed = ", ".join(f"{seed}: {bpb}" for seed, bpb in sorted(left.items()))
        whole = len(left) + len(counted)
        text = f"counts {len(counted)} of {whole} seeds, the better ones; left out: {listed}"
        yield Contradiction("best-of", case.place, text)
