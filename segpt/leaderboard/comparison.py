"""What is compared, read strictly from what ``segpt score --out`` wrote, and what comes of it."""

import math
from collections.abc import Mapping
from typing import Any

from segpt.config.base import PlainSpec, spec
from segpt.errors import SpecError

from .entry import ScoreLine
from .fields import MOST
from .statistics import Summary

TOLERANCE = 1e-6  # relative, of the sum over documents
ROUNDING = 1e-9  # relative, of bits per byte that are nats over bytes


@spec
class Documents:
    """The nats and the bytes of each document of a text, in its order."""

    nats: tuple[float, ...]
    bytes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.nats) != len(self.bytes):
            raise SpecError(
                f"{len(self.nats):,} nats of documents do not go with {len(self.bytes):,} bytes"
            )
        if not self.nats:
            raise SpecError("there is no document; leave by_document out")
        if not all(0 <= nats <= MOST for nats in self.nats):
            raise SpecError(f"the nats of a document are from 0 to {MOST:,}")
        if not all(0 <= size <= MOST for size in self.bytes):
            raise SpecError(f"the bytes of a document are a count from 0 to {MOST:,}")


@spec
class Scored:
    """A score: its line, which names model and text, and the tokenizer's fingerprint.

    ``by_document`` is null in files that do not say, and so is ``nats_per_token``. No figure is
    taken at its word: bits per byte are nats over bytes.
    """

    line: ScoreLine
    tokenizer: str
    by_document: Documents | None = None
    nats_per_token: float | None = None

    @property
    def bpb(self) -> float:
        """Bits per byte, from nats and bytes."""
        return self.line.nats / (math.log(2) * self.line.bytes)

    def __post_init__(self) -> None:
        line, per_token = self.line, self.nats_per_token
        if not math.isclose(line.bpb, self.bpb, rel_tol=ROUNDING):
            raise SpecError(
                f"bpb is {line.bpb}, but {line.nats} nats over {line.bytes:,} bytes are {self.bpb}"
            )
        if per_token is not None and not math.isclose(
            per_token, line.nats / line.tokens, rel_tol=ROUNDING
        ):
            raise SpecError(
                f"nats_per_token is {per_token}, but {line.nats} nats over {line.tokens:,} tokens "
                f"are {line.nats / line.tokens}"
            )
        if line.conditions.get("text", line.text) != line.text:
            raise SpecError(
                f"the text is {line.text[:12]}, but its conditions name "
                f"{str(line.conditions['text'])[:12]!r}"
            )
        self._check_documents()

    def _check_documents(self) -> None:
        if self.by_document is None:
            return
        for name in ("nats", "bytes"):
            total, whole = math.fsum(getattr(self.by_document, name)), getattr(self.line, name)
            if not math.isclose(total, whole, rel_tol=TOLERANCE):
                raise SpecError(f"the {name} of its documents sum to {total}, not to {whole}")
        count, stated = len(self.by_document.bytes), self.line.conditions.get("documents")
        if stated is not None and stated != count:
            raise SpecError(f"there are {count:,} documents, but its conditions say {stated}")


@spec
class SideReport(PlainSpec):
    """The scores of a side: ``n`` of them, from ``files``, and their figures by unit."""

    files: tuple[str, ...]
    n: int
    seeds: tuple[int | None, ...]
    policy: Mapping[str, Any]
    text: str
    bytes: int
    tokens: int
    denominator: str
    tokenizer: str | None
    bpb: Summary
    nats_per_token: Summary


@spec
class TestedDifference(PlainSpec):
    """A :class:`segpt.leaderboard.statistics.Difference` with all that follows from it."""

    mean: float
    error: float
    freedom: float
    t: float
    low: float
    high: float
    p: float
    p_better: float


@spec
class DifferenceReport(PlainSpec):
    """B - A in one unit, and every test of it; None is one that the scores do not allow."""

    mean: float
    runs: TestedDifference | None
    welch: TestedDifference | None
    documents: TestedDifference | None


@spec
class UnitDifferences(PlainSpec):
    """B - A by unit; None in nats per token if the tokenizers differ."""

    bpb: DifferenceReport
    nats_per_token: DifferenceReport | None


@spec
class ContestReport(PlainSpec):
    """The threshold of the contest in both units, and whether it is ``met`` by B.

    ``p`` is how often chance alone goes that far; both are None where that cannot be tested.
    """

    nats_per_token: float
    bytes_per_token: float
    bpb: float
    p: float | None
    met: bool | None


@spec
class ComparisonReport(PlainSpec):
    """What the scores of B are against those of A, as ``segpt compare --json`` says it.

    ``over`` names the test that tells most, None without any, and ``better`` the side that is
    better, None where that is not shown. ``flags`` are what a reader should know before.
    """

    a: SideReport
    b: SideReport
    difference: UnitDifferences
    over: str | None
    contest: ContestReport
    better: str | None
    verdict: str
    flags: tuple[str, ...]
