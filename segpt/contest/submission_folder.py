"""A submission folder with its claims and logs, and which log is of which seed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import PurePosixPath
from typing import NamedTuple

from .claims import Claims
from .logs import Log
from .numbers import whole

SCRIPT, METADATA, PAGE, NEEDS = "train_gpt.py", "submission.json", "README.md", "requirements.txt"

LOGS = (".log", ".txt")


class Contradiction(NamedTuple):
    """What does not go together: its kind, the file that says it, and both numbers."""

    kind: str
    file: str
    text: str


@dataclass(frozen=True)
class Folder:
    """A submission as read: the sizes of all its files, and the texts of those that are read."""

    sizes: Mapping[str, int]
    texts: Mapping[str, str]


class Previous(NamedTuple):
    """The record to beat: bits per byte of its runs, or of one figure alone."""

    name: str
    bpb: tuple[float, ...]


def is_log(name: str) -> bool:
    """Whether a file of a submission is the log of a run."""
    path = PurePosixPath(name)
    listed = path.name.startswith(("requirements", "readme", "license", "results"))
    return path.suffix.lower() in LOGS and not listed


def metadata_of(names: Iterable[str]) -> str | None:
    """The file that holds the metadata, whatever it is called."""
    candidates = [
        n for n in sorted(names) if PurePosixPath(n).match("submission*.json") and "/" not in n
    ]
    return METADATA if METADATA in candidates else next(iter(candidates), None)


def script_of(names: Iterable[str]) -> str | None:
    """The counted script, whatever it is called."""
    candidates = [n for n in sorted(names) if n.endswith(".py") and "/" not in n]
    likely = [n for n in candidates if n.startswith("train")]
    return SCRIPT if SCRIPT in candidates else next(iter([*likely, *candidates]), None)


class Case:
    """The folder with its claims and logs, and which log is of which seed."""

    def __init__(
        self,
        folder: Folder,
        about: Claims,
        place: str,
        runs: Sequence[Log],
        today: date,
        against: Previous | None,
    ) -> None:
        self.folder, self.about, self.place, self.runs = folder, about, place, runs
        self.today, self.against = today, against
        self.script = script_of(folder.sizes)
        self.page = next((n for n in sorted(folder.texts) if n.lower() == PAGE.lower()), None)
        known = {seed.seed for seed in about.seeds}
        self.of_seed: dict[int, list[Log]] = {}
        for run in runs:
            for seed in _seeds_of(run, known):
                self.of_seed.setdefault(seed, []).append(run)
        if len(runs) == 1 and len(known) == 1 and not (known & self.of_seed.keys()):
            self.of_seed[next(iter(known))] = list(runs)


def _seeds_of(run: Log, known: set[int]) -> tuple[int, ...]:
    if run.named_seed is not None:
        return (run.named_seed,)
    if run.seeds:
        return run.seeds
    digits = "".join(c if c.isdecimal() else " " for c in PurePosixPath(run.name).stem).split()
    return tuple(seed for seed in map(whole, digits[-1:]) if seed is not None and seed in known)


def last(run: Log) -> str:
    final = [figure for figure in run.figures if figure.final] or list(run.figures)
    return str(final[-1].bpb) if final else "none"


def is_in(number: Decimal, known: Iterable[Decimal]) -> bool:
    return any(agree(number, other) for other in known)


def agree(a: Decimal, b: Decimal) -> bool:
    """Whether one number is the other, rounded or cut off to fewer decimals."""
    few, many = sorted((a, b), key=decimals)
    unit = Decimal(1).scaleb(-decimals(few))
    cut = many - many % unit if many >= 0 else many
    return abs(few - many) <= unit / 2 or few == cut


def near(stated: Decimal, computed: float, unit: Decimal) -> bool:
    """Whether a figure from rounded numbers is this one, itself rounded."""
    slack = max(unit, Decimal(1).scaleb(-decimals(stated)))
    return abs(float(stated) - computed) <= float(slack) * 1.001


def decimals(number: Decimal) -> int:
    """How many decimals a number is written with."""
    return max(0, -int(number.as_tuple().exponent))
