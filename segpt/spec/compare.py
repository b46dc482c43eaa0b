"""One score as comparing needs it: what ``segpt score --out`` wrote, strictly read."""

import math

from segpt.errors import SpecError

from .base import spec
from .track import ScoreLine

TOLERANCE = 1e-6  # relative, of the sum over documents


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


@spec
class Scored:
    """A score: its line, which names model and text, and the tokenizer's fingerprint.

    ``by_document`` is null in files that do not say.
    """

    line: ScoreLine
    tokenizer: str
    by_document: Documents | None = None

    def __post_init__(self) -> None:
        if self.by_document is None:
            return
        for name in ("nats", "bytes"):
            total, whole = math.fsum(getattr(self.by_document, name)), getattr(self.line, name)
            if not math.isclose(total, whole, rel_tol=TOLERANCE):
                raise SpecError(f"the {name} of its documents sum to {total}, not to {whole}")
