"""What turns the final stream into logits."""

import dataclasses

from segpt.errors import SpecError

from .base import ADDED, spec
from .caps import Algebraic, Asymmetric, Sigmoid
from .role import Entry, Role, vector, within


@spec
class Head:
    """Logits z = ``scale`` * W x of the final normalised stream x.

    W is the table if the head is ``tied``. If it is not, W has a row per token and as many more as
    make a ``multiple``, which are never read, and with ``zero`` it starts at zero. A ``gain`` is
    learned for each channel of x, and a ``shift`` is added to each after that. A ``softcap`` that
    is a number c replaces z by c * tanh(z / c).
    """

    tied: bool = True
    softcap: float | Sigmoid | Algebraic | Asymmetric | None = 30.0
    scale: float = dataclasses.field(default=1.0, metadata=ADDED)
    gain: bool = dataclasses.field(default=False, metadata=ADDED)
    multiple: int = dataclasses.field(default=1, metadata=ADDED)
    zero: bool = dataclasses.field(default=False, metadata=ADDED)
    shift: bool = dataclasses.field(default=False, metadata=ADDED)

    def __post_init__(self) -> None:
        if isinstance(self.softcap, int | float) and self.softcap <= 0:
            raise SpecError(f"softcap must be positive or null, got {self.softcap}")
        if self.scale <= 0:
            raise SpecError(f"the scale of logits is positive, got {self.scale}")
        if self.multiple < 1:
            raise SpecError(f"the rows of a head are a multiple of 1 or more, got {self.multiple}")
        if self.shift and not self.gain:
            raise SpecError("the shift of a head stands beside its gain; set head.gain to true")
        if self.tied and (self.zero or self.multiple > 1):
            raise SpecError("a tied head has no matrix of its own; set head.tied to false")

    def rows(self, vocab: int) -> int:
        """How many rows the matrix of an untied head has."""
        return -(-vocab // self.multiple) * self.multiple

    def weights(self, vocab: int, width: int) -> tuple[Entry, ...]:
        """The gain, the shift, the matrix and what the cap learns, as far as there are any."""
        entries = [vector("gain", width)] if self.gain else []
        if self.shift:
            entries.append(vector("shift", width))
        if not self.tied:
            entries.append(Entry("matrix", Role.HEAD, (self.rows(vocab), width)))
        if isinstance(self.softcap, Sigmoid | Algebraic | Asymmetric):
            entries += within("cap", self.softcap.weights(width))
        return tuple(entries)
