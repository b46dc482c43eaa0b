"""What a submission folder claims, held against its own logs and files.

The rules are those of the Parameter Golf contest (:mod:`segpt.config.parameter_golf`): one counted
script and its model in 16,000,000 bytes, ten minutes of training and ten of evaluation, a log for
each seed.
"""

from collections.abc import Callable, Iterator
from datetime import date

from segpt.errors import SpecError

from . import claims as claimed
from . import figures, logs, margin, runs, sizes
from .claims import Claims
from .submission_folder import (
    METADATA,
    PAGE,
    SCRIPT,
    Case,
    Contradiction,
    Folder,
    Previous,
    is_log,
    metadata_of,
    script_of,
)


def check(folder: Folder, today: date, against: Previous | None = None) -> list[Contradiction]:
    """Every contradiction of a submission, by file.

    Args:
        folder: the files of the submission.
        today: what no date may lie beyond.
        against: the record that this one claims to be better than.
    """
    contradictions = [*_missing(folder)]
    about = Claims()
    place = metadata_of(folder.sizes) or METADATA
    if place in folder.texts:
        try:
            about = claimed.read(folder.texts[place])
        except SpecError as error:
            contradictions.append(Contradiction("missing", place, str(error)))
    read = [logs.read(name, folder.texts[name]) for name in sorted(folder.texts) if is_log(name)]
    case = Case(folder, about, place, read, today, against)
    for part in _PARTS:
        contradictions += part(case)
    return sorted(dict.fromkeys(contradictions), key=lambda c: (c.file, c.kind))


def _missing(folder: Folder) -> Iterator[Contradiction]:
    def gone(name: str, instead: str | None) -> Contradiction:
        note = "" if instead is None else f"; {instead} is there instead"
        return Contradiction("missing", name, f"is missing{note}")

    if METADATA not in folder.sizes:
        yield gone(METADATA, metadata_of(folder.sizes))
    if not any(name.lower() == PAGE.lower() for name in folder.sizes):
        yield gone(PAGE, None)
    if SCRIPT not in folder.sizes:
        yield gone(SCRIPT, script_of(folder.sizes))
    if not any(is_log(name) for name in folder.sizes):
        yield Contradiction("missing", "*.log", "there is no log of any run")


def _fields(case: Case) -> Iterator[Contradiction]:
    if case.place in case.folder.texts:
        for key in case.about.missing:
            yield Contradiction("missing", case.place, f"names no {key}")
        for text in case.about.odd:
            yield Contradiction("number", case.place, text)
        if len(case.about.seeds) >= claimed.MOST_SEEDS:
            text = f"lists {claimed.MOST_SEEDS:,} seeds or more; only these are looked at"
            yield Contradiction("number", case.place, text)
    if case.about.date is None:
        return
    try:
        day = date.fromisoformat(case.about.date[:10])
    except ValueError:
        yield Contradiction("date", case.place, f"date {case.about.date[:40]!r} is no day")
        return
    if day > case.today:
        yield Contradiction("date", case.place, f"is of {day}, and today is {case.today}")


_PARTS: tuple[Callable[[Case], Iterator[Contradiction]], ...] = (
    *(_fields, figures.claimed_figures, figures.moments, figures.readme, figures.losses),
    *(figures.chosen, sizes.claimed_sizes, sizes.files, sizes.needed, runs.one_run, runs.times),
    margin.better,
)
