"""One score as comparing needs it: what ``segpt score --out`` wrote, strictly read."""

import math

from segpt.config.base import spec
from segpt.errors import SpecError

from .entry import ScoreLine
from .fields import MOST

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
