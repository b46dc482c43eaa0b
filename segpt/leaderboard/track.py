"""The leaderboard as data: tracks with their limits, and the entries of an append-only chain.

An entry is a :class:`Record` that segpt can verify, a :class:`Claim` that others published, a
:class:`Baseline` that needs no model, or a :class:`Verification` of an earlier record. None is
ever changed: what is found out later about a record is an entry of its own.
"""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import date
from statistics import fmean
from typing import Any, Literal, NamedTuple, get_args

from segpt.config.base import spec
from segpt.errors import SpecError

PolicyKind = Literal["frozen", "sgd", "low_rank", "phased", "in_place", "ngram"]
Metric = Literal["bpb", "tokens", "core"]
State = Literal["claimed", "checked", "reproduced"]

LONGEST_NAME = 64
LONGEST_AUTHOR = 100
LONGEST_ABOUT = 2_000
LONGEST_SOURCE = 500
ROOT = "0" * 64  # what the first entry follows
MOST = 2**53  # of anything counted: so far, floats hold every whole number
DEEPEST = 8  # levels of the tables in a policy or in conditions


@spec
class Track:
    """The limits of one table of the leaderboard, and what a new record has to show.

    Attributes:
        metric: what entries are ranked by: bits per byte or training tokens, where lower is
            better, or CORE, where higher is.
        bytes: the most that an artifact may have, None where only ``parameters`` are limited.
        text: the digest of the text that is scored. Without one, the figures of two entries
            need not compare.
        source: where that text is: a file beside ``tracks.toml``, ``builtin``, or words for a
            reader.
        seconds: the most that one scoring may take.
        policies: the kinds of policy that are allowed.
        seeds: how many runs a new record rests on.
        margin: by how much, in units of the metric, a new record betters the one before it.
        significance: the largest p of a gain below ``margin``, tested over the runs of the two.
        tolerance: by how much bits per byte may differ, relatively, when they are verified.
    """

    name: str
    about: str
    metric: Metric = "bpb"
    bytes: int | None = None
    parameters: int | None = None
    text: str | None = None
    source: str = ""
    seconds: float | None = None
    policies: tuple[PolicyKind, ...] = get_args(PolicyKind)
    seeds: int = 1
    margin: float = 0.0
    significance: float | None = None
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        for what, limit in (("bytes", self.bytes), ("parameters", self.parameters)):
            if limit is not None:
                _check_count(what, limit)
        if self.text is not None:
            _check_digest("text", self.text)
        if self.seconds is not None:
            _check_positive("seconds", self.seconds)
        if not self.policies:
            raise SpecError(f"policies names at least one of {', '.join(get_args(PolicyKind))}")
        _check_count("seeds", self.seeds)
        if not 0 <= self.margin < math.inf:
            raise SpecError(f"margin is finite and not negative, got {self.margin}")
        if self.significance is not None and not 0 < self.significance <= 0.5:
            raise SpecError(f"significance is in (0, 0.5], got {self.significance}")
        _check_positive("tolerance", self.tolerance)

    @property
    def sign(self) -> int:
        """1 where lower figures are better, -1 where higher ones are: sort by sign * figure."""
        return -1 if self.metric == "core" else 1


@spec
class Tracks:
    """The tracks of a leaderboard, each with a name of its own."""

    tracks: tuple[Track, ...]

    def __post_init__(self) -> None:
        names = [track.name for track in self.tracks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise SpecError(f"two tracks are named {twice[0]!r}; give each its own name")


@spec
class ScoreLine:
    """One scoring of an artifact, as ``segpt score --out`` wrote it.

    ``model`` is the SHA-256 of the artifact that was scored and ``text`` the digest of the text;
    ``policy`` carries its ``kind``. ``seed`` tells apart scorings that draw at random.
    """

    seed: int | None = None
    policy: Mapping[str, Any]
    bpb: float
    nats: float
    bytes: int
    tokens: int
    seconds: float
    model: str
    text: str
    denominator: str
    conditions: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.policy.get("kind"), str):
            raise SpecError("policy names its kind, e.g. {kind: frozen}")
        _check_positive("bpb", self.bpb)
        _check_positive("nats", self.nats)
        _check_count("bytes", self.bytes)
        _check_count("tokens", self.tokens)
        if not 0 <= self.seconds < math.inf:
            raise SpecError(f"seconds are finite and not negative, got {self.seconds}")
        _check_digest("text", self.text)
        _check_plain("policy", self.policy)
        _check_plain("conditions", self.conditions)

    @property
    def policy_kind(self) -> str:
        """The kind of policy, and the mixture if there is one: ``sgd+ngram``."""
        return str(self.policy["kind"]) + ("+ngram" if "ngram" in self.policy else "")


class Figure(NamedTuple):
    """What a record is ranked by, the policy that reached it, and the figure of each run."""

    bpb: float
    policy: str
    by_run: tuple[float, ...]


@spec
class Run:
    """One training run of a record: its artifact, and how that scored."""

    artifact: str
    bytes: int
    seed: int | None = None
    scores: tuple[ScoreLine, ...]

    def __post_init__(self) -> None:
        _check_digest("artifact", self.artifact)
        _check_count("bytes", self.bytes)
        if not self.scores:
            raise SpecError("scores holds at least one score")


def figure(runs: Sequence[Run]) -> Figure:
    """The lowest bits per byte of a policy that every run was scored with, averaged over runs.

    A policy that draws at random may have scored a run several times; those are averaged first.

    Raises:
        SpecError: if no policy scored every run.
    """
    found: dict[str, list[float]] = {}
    for run in runs:
        kinds = {line.policy_kind for line in run.scores}
        for kind in sorted(kinds):
            of_kind = [line.bpb for line in run.scores if line.policy_kind == kind]
            found.setdefault(kind, []).append(fmean(of_kind))
    whole = [Figure(fmean(v), kind, tuple(v)) for kind, v in found.items() if len(v) == len(runs)]
    if not whole:
        raise SpecError("no policy scored every run; score each artifact with the same --ttt")
    return min(whole)


@spec
class Record:
    """Who reached which figure, with which files: all of it can be verified.

    The first run's artifact is the one that is submitted; further runs differ in their seed.
    ``bytes`` is the size of the largest artifact and ``bpb`` the figure that counts
    (:func:`figure`). ``origin`` is what the first artifact was made from, ``sections`` the bytes
    of its parts, and ``recipe`` the commands that make it again.
    """

    name: str
    track: str
    authors: tuple[str, ...]
    date: str
    about: str = ""
    bytes: int
    parameters: int
    bpb: float
    runs: tuple[Run, ...]
    origin: Mapping[str, str]
    sections: Mapping[str, int]
    segpt: str
    recipe: str = ""

    def __post_init__(self) -> None:
        _check_entry(self)
        _check_authors(self.authors)
        _check_words("about", self.about, LONGEST_ABOUT)
        _check_words("recipe", self.recipe, LONGEST_ABOUT)
        _check_count("bytes", self.bytes)
        _check_count("parameters", self.parameters)
        _check_positive("bpb", self.bpb)
        if not self.runs:
            raise SpecError("runs holds at least one run")
        if not all(isinstance(value, str) for value in self.origin.values()):
            raise SpecError("origin maps kinds of input to fingerprints, which are strings")
        if not all(type(value) is int and 0 <= value <= MOST for value in self.sections.values()):
            raise SpecError("sections maps parts of the artifact to their bytes")

    @property
    def artifact(self) -> str:
        """The SHA-256 of the artifact that is submitted."""
        return self.runs[0].artifact

    @property
    def value(self) -> float:
        return self.bpb


@spec
class Claim:
    """What others published, taken over as they say it: nothing of it has been verified.

    ``value`` is in units of the track's metric; ``values`` are those of single runs, where they
    are known. ``source`` says where it was published.
    """

    name: str
    track: str
    authors: tuple[str, ...]
    date: str
    about: str = ""
    source: str
    value: float
    values: tuple[float, ...] = ()
    bytes: int | None = None
    parameters: int | None = None

    def __post_init__(self) -> None:
        _check_entry(self)
        _check_authors(self.authors)
        _check_words("about", self.about, LONGEST_ABOUT)
        if not self.source.strip():
            raise SpecError("source says where the figure was published")
        _check_words("source", self.source, LONGEST_SOURCE)
        for value in (self.value, *self.values):
            _check_positive("value", value)
        for what, count in (("bytes", self.bytes), ("parameters", self.parameters)):
            if count is not None:
                _check_count(what, count)


@spec
class Baseline:
    """What a general-purpose compressor makes of a track's text, which needs no artifact.

    ``program`` is gzip, bzip2, xz, zstd or brotli at its best, ``compressed`` the bytes that it
    leaves of the ``bytes`` of the text, whose documents are joined in order.
    """

    name: str
    track: str
    date: str
    program: str
    version: str
    text: str
    bytes: int
    compressed: int

    def __post_init__(self) -> None:
        _check_entry(self)
        _check_words("program", self.program, LONGEST_AUTHOR)
        _check_words("version", self.version, LONGEST_AUTHOR)
        _check_digest("text", self.text)
        _check_count("bytes", self.bytes)
        _check_count("compressed", self.compressed)

    @property
    def value(self) -> float:
        """Bits per byte of the text."""
        return 8 * self.compressed / self.bytes


@spec
class Verification:
    """That somebody derived the figure of an earlier record or baseline again.

    ``state`` says how: ``checked``, by scoring the very artifacts that the record names, or by
    compressing the text; ``reproduced``, by making the first artifact anew with the record's
    recipe and scoring that. ``bpb`` is what came out, ``artifact`` of which file (None of a
    baseline), and ``conditions`` where and with which versions.
    """

    name: str
    track: str
    date: str
    record: str
    authors: tuple[str, ...]
    state: Literal["checked", "reproduced"]
    artifact: str | None = None
    bpb: float
    conditions: Mapping[str, Any]

    def __post_init__(self) -> None:
        _check_entry(self)
        _check_authors(self.authors)
        _check_name("record", self.record)
        if self.artifact is not None:
            _check_digest("artifact", self.artifact)
        _check_positive("bpb", self.bpb)
        _check_plain("conditions", self.conditions)


Entry = Record | Claim | Baseline | Verification


@spec
class Link:
    """An entry in its place of the chain: ``previous`` is the SHA-256 of the file before it."""

    number: int
    previous: str
    entry: Entry

    def __post_init__(self) -> None:
        _check_count("number", self.number)
        _check_digest("previous", self.previous)

    @property
    def file(self) -> str:
        """The name of the file that holds the entry."""
        return f"{self.number:04d}-{self.entry.name}.json"


@spec
class Chain:
    """What the whole chain amounts to: its first and its last file, by digest, and its length.

    Whoever keeps ``head`` can tell later that nothing before it was touched.
    """

    root: str
    head: str
    count: int

    def __post_init__(self) -> None:
        _check_digest("root", self.root)
        _check_digest("head", self.head)
        _check_count("count", self.count)


def _check_entry(entry: Entry) -> None:
    _check_name("name", entry.name)
    _check_name("track", entry.track)
    _check_date(entry.date)


def _check_authors(authors: Sequence[str]) -> None:
    if not authors:
        raise SpecError("authors names at least one person or team")
    for author in authors:
        if not author.strip():
            raise SpecError("an author has a name")
        _check_words("authors", author, LONGEST_AUTHOR)


def _check_words(what: str, text: str, longest: int) -> None:
    if len(text) > longest:
        raise SpecError(f"{what} has at most {longest:,} characters, got {len(text):,}")
    _check_unicode(what, text)


def _check_name(what: str, name: str) -> None:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) or len(name) > LONGEST_NAME:
        raise SpecError(
            f"{what} {name[:LONGEST_NAME]!r}: write at most {LONGEST_NAME} lower-case letters and "
            "digits, in words joined by '-'"
        )


def _check_unicode(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SpecError(f"{what} {text[:80]!r}: not Unicode; write it in UTF-8") from None


def _check_digest(what: str, digest: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise SpecError(f"{what} is a SHA-256 of 64 hexadecimal digits, got {digest[:80]!r}")


def _check_date(text: str) -> None:
    try:
        sound = date.fromisoformat(text).isoformat() == text
    except ValueError:
        sound = False
    if not sound:
        raise SpecError(f"date {text[:80]!r}: write a day of the calendar as YYYY-MM-DD")


def _check_count(what: str, count: int) -> None:
    if not 1 <= count <= MOST:
        raise SpecError(f"{what} is a count from 1 to {MOST:,}")


def _check_positive(what: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise SpecError(f"{what} must be positive and finite, got {value}")
    if value > MOST:
        raise SpecError(f"{what} is at most {MOST:,}, got {value:g}")


def _check_plain(what: str, value: Any, depth: int = 0) -> None:
    """Refuse what JSON cannot hold, or could not be read from it again."""
    if depth > DEEPEST:
        raise SpecError(f"{what} has tables within tables, more than {DEEPEST} deep")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_plain(f"{what}.{str(key)[:40]}", inner, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_plain(what, inner, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise SpecError(f"{what} must be finite, got {value}")
    elif isinstance(value, int) and abs(value) > MOST:
        raise SpecError(f"{what} is a whole number of more than {MOST:,}")
