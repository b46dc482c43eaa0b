"""The leaderboard as data: tracks with their limits, and records that claim a place on one."""

import math
import re
from collections.abc import Iterable, Mapping
from datetime import date
from statistics import fmean
from typing import Any, Literal, NamedTuple, get_args

from segpt.errors import SpecError

from .base import spec

PolicyKind = Literal["frozen", "sgd", "low_rank", "phased", "in_place", "ngram"]

LONGEST_NAME = 64
LONGEST_AUTHOR = 100
MOST = 2**53  # of anything counted: so far, floats hold every whole number


@spec
class Track:
    """The limits of one table of the leaderboard.

    ``bytes`` bounds the size of the artifact and ``seconds`` the time that one scoring takes
    (null: no limit). ``text`` is the digest of the text that is scored (null: any text, so that
    the figures of two records need not compare). ``policies`` are the kinds of policy allowed.
    """

    name: str
    about: str
    bytes: int
    text: str | None = None
    seconds: float | None = None
    policies: tuple[PolicyKind, ...] = get_args(PolicyKind)

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        _check_count("bytes", self.bytes)
        if self.text is not None:
            _check_digest("text", self.text)
        if self.seconds is not None:
            _check_positive("seconds", self.seconds)
        if not self.policies:
            raise SpecError(f"policies names at least one of {', '.join(get_args(PolicyKind))}")


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

    @property
    def policy_kind(self) -> str:
        """The kind of policy, and the mixture if there is one: ``sgd+ngram``."""
        return str(self.policy["kind"]) + ("+ngram" if "ngram" in self.policy else "")


class Figure(NamedTuple):
    """What a record is ranked by, and the policy that reached it."""

    bpb: float
    policy: str


def figure(scores: Iterable[ScoreLine]) -> Figure:
    """The lowest bits per byte of any policy, each averaged over its seeds."""
    found: dict[str, list[float]] = {}
    for line in scores:
        found.setdefault(line.policy_kind, []).append(line.bpb)
    return min(Figure(fmean(values), kind) for kind, values in found.items())


@spec
class Record:
    """One line of the leaderboard: who reached which figure, with which file.

    ``artifact`` is the SHA-256 of the file, ``bytes`` its size and ``origin`` what it was made
    from. ``bpb`` is the figure that counts (:func:`figure`). ``recipe`` says how to make the
    artifact again. ``state`` is ``claimed`` until a maintainer has scored the artifact too.
    """

    name: str
    track: str
    authors: tuple[str, ...]
    date: str
    artifact: str
    bytes: int
    parameters: int
    bpb: float
    scores: tuple[ScoreLine, ...]
    origin: Mapping[str, str]
    segpt: str
    recipe: str = ""
    state: Literal["claimed", "checked"] = "claimed"

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        _check_name("track", self.track)
        if not self.authors:
            raise SpecError("authors names at least one person or team")
        for author in self.authors:
            if not author.strip() or len(author) > LONGEST_AUTHOR:
                raise SpecError(f"an author has 1 to {LONGEST_AUTHOR} characters")
        _check_unicode("authors", "".join(self.authors))
        _check_unicode("recipe", self.recipe)
        _check_date(self.date)
        _check_digest("artifact", self.artifact)
        _check_count("bytes", self.bytes)
        _check_count("parameters", self.parameters)
        _check_positive("bpb", self.bpb)
        if not self.scores:
            raise SpecError("scores holds at least one score")
        if not all(isinstance(value, str) for value in self.origin.values()):
            raise SpecError("origin maps kinds of input to fingerprints, which are strings")

    @property
    def file(self) -> str:
        """The name of the file that holds the record."""
        return f"{self.date}-{self.name}.json"


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
