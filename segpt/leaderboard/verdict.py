"""What came of an entry that was derived again, as data."""

import dataclasses
from dataclasses import dataclass
from typing import Literal, NamedTuple

from segpt.config.base import ADDED, INLINE, PlainSpec, spec
from segpt.config.environment import Environment

from .derive import Fact
from .entry import Baseline, Record

Verifiable = Record | Baseline


class Comparison(NamedTuple):
    """A figure that an entry claims, and the same derived again."""

    what: str
    claimed: float
    measured: float
    agrees: bool

    @property
    def difference(self) -> float:
        return self.measured - self.claimed


@spec
class VerdictConditions(PlainSpec):
    """Where an entry was derived again, and with which versions.

    ``version`` is that of a compressor, empty without one, and ``same_bytes`` whether an artifact
    that was made anew is that of the record, None if none was made.
    """

    version: str = dataclasses.field(default="", metadata=ADDED)
    environment: Environment = dataclasses.field(default=Environment(), metadata=INLINE)
    same_bytes: bool | None = dataclasses.field(default=None, metadata=ADDED)


@dataclass(frozen=True)
class Verdict:
    """What came of an entry.

    Attributes:
        entry: what was verified.
        comparisons: of every figure that could be derived again.
        facts: of every other field that could be.
        findings: what the rules of its track and the order of the chain do not allow.
        missing: why the others could not, empty if all could.
        bpb: the figure that counts, as it was measured; None if something is missing.
        artifact: the digest of what was scored, None of a baseline.
        remade: whether the artifact was made anew.
        conditions: where, and with which versions.
    """

    entry: Verifiable
    comparisons: tuple[Comparison, ...]
    facts: tuple[Fact, ...] = ()
    findings: tuple[str, ...] = ()
    missing: str = ""
    bpb: float | None = None
    artifact: str | None = None
    remade: bool = False
    conditions: VerdictConditions = dataclasses.field(default=VerdictConditions())

    @property
    def refuted(self) -> tuple[Fact, ...]:
        """The fields that are not what the entry claims."""
        return tuple(fact for fact in self.facts if not fact.agrees)

    @property
    def differs(self) -> bool:
        same = all(comparison.agrees for comparison in self.comparisons)
        return not same or bool(self.refuted or self.findings)

    @property
    def state(self) -> Literal["checked", "reproduced"] | None:
        """What the entry is found to be, None if it differs or something was missing."""
        if self.differs or self.missing or self.bpb is None:
            return None
        return "reproduced" if self.remade else "checked"
