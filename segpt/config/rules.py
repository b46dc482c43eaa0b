"""The rules of contests as data: what a training run must keep to, and what was found about it."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

from segpt.errors import SpecError

from .base import PlainSpec, nearest, spec


@spec
class Rules:
    """Limits on a run; None means that there is none.

    ``parameters`` counts all that a model learns, those that never run included, rounded to a
    multiple of ``multiple``. ``order`` and ``unique`` are how the text is taken, as in
    :class:`segpt.config.train.TrainSpec`. A run from ``scratch`` takes over no weights. Training
    ends when the loss on the first ``loss_tokens`` of held-out text falls to ``loss`` nats per
    token, or when another step would not fit into ``seconds`` of training. Where the rules name
    a ``device`` and ``processes``, the time holds for those alone. ``bytes`` is the size of the
    packed file.

    A limit on loss is of a text and a tokenizer: ``unit`` says in which unit it is and ``text``
    which text and tokenizer that means. ``texts`` are the digests of that text as held-out tokens
    and ``tokenizers`` the fingerprints of the tokenizer; where they are empty, none that segpt can
    read is known to be the contest's. Of anything else the loss is measured, and says nothing
    about the limit.
    """

    name: str
    about: str
    text: str = ""
    texts: tuple[str, ...] = ()
    tokenizers: tuple[str, ...] = ()
    parameters: int | None = None
    multiple: int = 1
    order: Literal["shuffled", "sequential"] | None = None
    unique: bool = False
    scratch: bool = True
    loss: float | None = None
    unit: str = ""
    loss_tokens: int | None = None
    seconds: float | None = None
    device: str | None = None
    processes: int | None = None
    bytes: int | None = None

    def comparable(self, tokenizer: str | None, text: str | None) -> bool:
        """Whether a loss is the contest's figure, of a tokenizer and a text by their digests."""
        return tokenizer in self.tokenizers and text in self.texts

    def timed(self, device: str, processes: int) -> bool:
        """Whether the limit of time holds for so many processes on this device."""
        if self.seconds is None:
            return False
        fits = self.device is None or self.device.lower() in device.lower()
        return fits and self.processes in (None, processes)


RULES = (
    Rules(
        name="lapp0",
        about="fewest training tokens to 3.28 nats per token of FineWeb",
        text="FineWeb's validation text in GPT-2's tokens, of which there are 50,257",
        unit="nats per token",
        parameters=162_000_000,
        multiple=1_000_000,
        order="sequential",
        unique=True,
        loss=3.28,
        loss_tokens=10_485_760,
        seconds=1800.0,
        device="H100",
        processes=8,
    ),
    Rules(
        name="golf",
        about="fewest bits per byte of FineWeb in 16,000,000 bytes, trained for ten minutes",
        text="the first 50,000 documents of the contest's export of FineWeb",
        unit="bits per byte",
        seconds=600.0,
        bytes=16_000_000,
    ),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Finding(PlainSpec):
    """What was found about one rule; ``holds`` is None while, or where, that is not known."""

    rule: str
    limit: str
    measured: str
    holds: bool | None
    note: str = ""


def find(name: str) -> Rules:
    """The rules of this name.

    Raises:
        SpecError: if there are none, with the nearest name.
    """
    for rules in RULES:
        if rules.name == name:
            return rules
    known = nearest(name, [rules.name for rules in RULES])
    raise SpecError(f"unknown rules {name!r}; {known}")


def rounded(number: int, unit: int) -> int:
    """The multiple of ``unit`` that is nearest, halves upwards."""
    return math.floor(number / unit + 0.5) * unit


def broken(findings: Iterable[Finding]) -> list[Finding]:
    """Those that say that a rule does not hold."""
    return [finding for finding in findings if finding.holds is False]


def sentence(findings: Iterable[Finding]) -> str:
    """Findings in one sentence, for an error."""
    parts = (
        f"{f.rule} is {f.measured}, and the limit {f.limit}" + (f" ({f.note})" if f.note else "")
        for f in findings
    )
    return "; ".join(parts)
