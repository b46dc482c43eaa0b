"""The Parameter Golf contest as data: its rule for a new record, and what its text measures.

The text is the first 50,000 documents of the contest's export of FineWeb. How many targets and
bytes these are depends on the tokenizer, and a denominator that differs from the one below is
the commonest way to a figure that is too good.
"""

import math
from typing import NamedTuple

from segpt.config.base import spec

MARGIN = 0.005  # nats per token by which a new record is better
SIGNIFICANCE = 0.01
BYTES = 16_000_000  # of code and model together
SECONDS = 600.0  # of training, and again of evaluation
DOCUMENTS = 50_000

MOST_BYTES = 16  # that a target of the tail may add, on average over the tail
TEXT_BYTES = 151_077_000  # of all documents, under any tokenizer, within TEXT_TOLERANCE
TEXT_TOLERANCE = 0.001  # relative: what normalisation changes, with room to spare


@spec
class Reference:
    """What scoring the contest's text counts under one of its tokenizers.

    ``targets`` are those that are left when the stream is cut to whole sequences of ``sequence``
    tokens, and ``bytes`` what they stand for; published counts of these differ by ``tolerance``
    at most.
    """

    name: str
    sequence: int
    targets: int
    bytes: int
    tolerance: int = 0

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.targets


REFERENCE = (
    Reference(name="sp1024", sequence=1024, targets=62_021_632, bytes=151_080_363),
    Reference(name="sp4096", sequence=2048, targets=45_508_608, bytes=151_054_300, tolerance=250),
    Reference(name="sp8192", sequence=2048, targets=40_540_160, bytes=151_078_221, tolerance=1),
    Reference(
        name="sp8192-caseops", sequence=2048, targets=47_851_520, bytes=151_074_498, tolerance=189
    ),
)


class Recognised(NamedTuple):
    """The contest's tokenizer that counts give away, and what is wrong with the counts."""

    name: str | None
    warning: str | None


def margin(bytes_per_token: float) -> float:
    """The bits per byte that ``MARGIN`` nats per token are, at so many bytes per token."""
    return MARGIN / math.log(2) / bytes_per_token


def truncated(tokens: int, sequence: int) -> int:
    """The tokens that the contest's loader keeps: whole sequences of targets, and the first token.

    A stream of ``tokens`` loses up to ``sequence`` - 1 of its last targets.
    """
    return max(tokens - 1, 0) // sequence * sequence + 1


def reference(targets: int, bytes: int, documents: int | None = None) -> Recognised:
    """Which of the contest's counts these are, and whether targets and bytes go together.

    Targets are recognised whether or not the stream was cut to whole sequences. Under another
    tokenizer the text is recognised by its number of documents, and ``name`` is None.

    Args:
        targets: how many tokens are predicted.
        bytes: what they stand for: the denominator of bits per byte.
        documents: how many documents they are, if known.
    """
    for known in REFERENCE:
        tail = targets - known.targets
        if not 0 <= tail < known.sequence:
            continue
        low = known.bytes - known.tolerance
        high = known.bytes + known.tolerance + MOST_BYTES * tail
        if low <= bytes <= high:
            return Recognised(known.name, None)
        return Recognised(
            known.name,
            f"{targets:,} targets are {known.name}'s of the contest, but {bytes:,} bytes are "
            f"{bytes / known.bytes:.4f} of its {known.bytes:,}: a wrong denominator",
        )
    if documents == DOCUMENTS and abs(bytes / TEXT_BYTES - 1) > TEXT_TOLERANCE:
        return Recognised(
            None,
            f"{documents:,} documents are as many as the contest scores, but {bytes:,} bytes are "
            f"{bytes / TEXT_BYTES:.4f} of its text: another text, or a wrong denominator",
        )
    return Recognised(None, None)
