"""The entries of an append-only chain, as data.

An entry is a :class:`Record` that segpt can verify, a :class:`Claim` that others published, a
:class:`Baseline` that needs no model, or a :class:`Verification` of an earlier record. None is
ever changed: what is found out later about a record is an entry of its own.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal, NamedTuple

from segpt.config.base import spec
from segpt.errors import SpecError

from .fields import (
    LONGEST_ABOUT,
    LONGEST_AUTHOR,
    LONGEST_SOURCE,
    MOST,
    check_authors,
    check_count,
    check_date,
    check_digest,
    check_name,
    check_plain,
    check_positive,
    check_words,
)

State = Literal["claimed", "checked", "reproduced"]

ROOT = "0" * 64  # what the first entry follows


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
        check_positive("bpb", self.bpb)
        check_positive("nats", self.nats)
        check_count("bytes", self.bytes)
        check_count("tokens", self.tokens)
        if not 0 <= self.seconds < math.inf:
            raise SpecError(f"seconds are finite and not negative, got {self.seconds}")
        check_digest("text", self.text)
        check_plain("policy", self.policy)
        check_plain("conditions", self.conditions)

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
        check_digest("artifact", self.artifact)
        check_count("bytes", self.bytes)
        if not self.scores:
            raise SpecError("scores holds at least one score")


def figure(runs: Sequence[Run]) -> Figure:
    """The lowest bits per byte of a policy that every run was scored with, averaged over runs.

    A policy that draws at random may have scored a run several times; those are averaged first.

    Raises:
        SpecError: if no policy scored every run.
    """
    means: dict[str, list[float]] = {}
    for run in runs:
        kinds = {line.policy_kind for line in run.scores}
        for kind in sorted(kinds):
            of_kind = [line.bpb for line in run.scores if line.policy_kind == kind]
            means.setdefault(kind, []).append(fmean(of_kind))
    whole = [Figure(fmean(v), kind, tuple(v)) for kind, v in means.items() if len(v) == len(runs)]
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
        check_authors(self.authors)
        check_words("about", self.about, LONGEST_ABOUT)
        check_words("recipe", self.recipe, LONGEST_ABOUT)
        check_count("bytes", self.bytes)
        check_count("parameters", self.parameters)
        check_positive("bpb", self.bpb)
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
        check_authors(self.authors)
        check_words("about", self.about, LONGEST_ABOUT)
        if not self.source.strip():
            raise SpecError("source says where the figure was published")
        check_words("source", self.source, LONGEST_SOURCE)
        for value in (self.value, *self.values):
            check_positive("value", value)
        for what, count in (("bytes", self.bytes), ("parameters", self.parameters)):
            if count is not None:
                check_count(what, count)


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
        check_words("program", self.program, LONGEST_AUTHOR)
        check_words("version", self.version, LONGEST_AUTHOR)
        check_digest("text", self.text)
        check_count("bytes", self.bytes)
        check_count("compressed", self.compressed)

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
        check_authors(self.authors)
        check_name("record", self.record)
        if self.artifact is not None:
            check_digest("artifact", self.artifact)
        check_positive("bpb", self.bpb)
        check_plain("conditions", self.conditions)


Entry = Record | Claim | Baseline | Verification


@spec
class Link:
    """An entry in its place of the chain: ``previous`` is the SHA-256 of the file before it."""

    number: int
    previous: str
    entry: Entry

    def __post_init__(self) -> None:
        check_count("number", self.number)
        check_digest("previous", self.previous)

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
        check_digest("root", self.root)
        check_digest("head", self.head)
        check_count("count", self.count)


def _check_entry(entry: Entry) -> None:
    check_name("name", entry.name)
    check_name("track", entry.track)
    check_date(entry.date)
