"""The tracks of a leaderboard as data: their limits, and what a new record has to show."""

import math
from typing import Literal, get_args

from segpt.config.base import spec
from segpt.errors import SpecError

from .fields import check_count, check_digest, check_name, check_positive

PolicyKind = Literal["frozen", "sgd", "low_rank", "phased", "in_place", "ngram"]
Metric = Literal["bpb", "tokens", "core"]


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
        check_name("name", self.name)
        for what, limit in (("bytes", self.bytes), ("parameters", self.parameters)):
            if limit is not None:
                check_count(what, limit)
        if self.text is not None:
            check_digest("text", self.text)
        if self.seconds is not None:
            check_positive("seconds", self.seconds)
        if not self.policies:
            raise SpecError(f"policies names at least one of {', '.join(get_args(PolicyKind))}")
        check_count("seeds", self.seeds)
        if not 0 <= self.margin < math.inf:
            raise SpecError(f"margin is finite and not negative, got {self.margin}")
        if self.significance is not None and not 0 < self.significance <= 0.5:
            raise SpecError(f"significance is in (0, 0.5], got {self.significance}")
        check_positive("tolerance", self.tolerance)

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
