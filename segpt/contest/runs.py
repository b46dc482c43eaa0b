"""Whether each log of a submission is of one run, of the run it is said to be, and in time."""

from collections.abc import Callable, Iterator, Sequence

from segpt.config.parameter_golf import SECONDS

from .logs import Log
from .submission_folder import Case, Contradiction

_LAST = 599.0  # seconds of training after which no more fits


def one_run(case: Case) -> Iterator[Contradiction]:
    """Logs of another seed, of several runs, or of other data than their neighbours."""
    for run in case.runs:
        if run.named_seed is not None and run.seeds and run.named_seed not in run.seeds:
            text = f"is called seed {run.named_seed}, and was run with seed {run.seeds[0]}"
            yield Contradiction("seed", run.name, text)
        if run.steps and len(run.seeds) > 1:
            text = f"names seeds {' and '.join(map(str, run.seeds))}: several runs in one log"
            yield Contradiction("composite", run.name, text)
        elif run.steps and run.headers > 1:
            yield Contradiction("composite", run.name, f"has the headers of {run.headers} runs")
        if run.back is not None:
            step, before = run.back
            text = f"step {step:,} comes after step {before:,}: several runs in one log"
            yield Contradiction("composite", run.name, text)
        for key, values in sorted(run.settings.items()):
            if key != "seed" and len(values) > 1:
                text = f"{key} is {' and '.join(values[:3])}: several runs in one log"
                yield Contradiction("composite", run.name, text)
    trained = [run for run in case.runs if run.steps]
    yield from _unlike("shards", trained, lambda run: run.shards[:1], "training shards")
    yield from _unlike("targets", case.runs, lambda run: run.targets[:1], "validation tokens")
    yield from _unlike(
        "code", trained, lambda run: () if run.code is None else (run.code,), "bytes of code"
    )


def _unlike(
    kind: str, runs: Sequence[Log], value: Callable[[Log], Sequence[int]], what: str
) -> Iterator[Contradiction]:
    """Each log whose count is not that of most."""
    counts: dict[int, list[Log]] = {}
    for run in runs:
        for count in value(run):
            counts.setdefault(count, []).append(run)
    if len(counts) < 2:
        return
    common = max(counts, key=lambda count: (len(counts[count]), count))
    for count, odd in sorted(counts.items()):
        if count != common:
            for run in odd:
                text = f"{count:,} {what}, and {counts[common][0].name} has {common:,}"
                yield Contradiction(kind, run.name, text)


def times(case: Case) -> Iterator[Contradiction]:
    """Training or evaluation that took too long, and training data read after the stop."""
    if not case.about.timed:
        return
    for run in case.runs:
        if run.trained is not None and run.trained > SECONDS:
            text = f"trains for {run.trained:.3f} s, where {SECONDS:g} s are allowed"
            yield Contradiction("train-time", run.name, text)
        elif run.calibration is not None and run.trained is not None:
            whole = run.trained + run.calibration
            if whole > SECONDS or (not run.calibration and run.trained > _LAST):
                text = (
                    f"reads training data after the stop: {run.trained:.1f} s and "
                    f"{run.calibration:.1f} s are {whole:.1f} s, where {SECONDS:g} s are allowed"
                )
                yield Contradiction("after-stop", run.name, text)
        longest = max(run.evaluations, key=lambda evaluation: evaluation.seconds, default=None)
        if longest is not None and longest.seconds > SECONDS:
            text = f"{longest.name} is {longest.seconds:.1f} s, where {SECONDS:g} s are allowed"
            yield Contradiction("eval-time", run.name, text)
    for seed in case.about.seeds:
        for kind, took in (("train-time", seed.trained), ("eval-time", seed.evaluated)):
            if took is not None and took > SECONDS:
                text = f"seed {seed.seed} takes {took:.3f} s, where {SECONDS:g} s are allowed"
                yield Contradiction(kind, case.place, text)
