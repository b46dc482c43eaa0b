"""How n-gram counts of the scored text join the model, as data."""

from segpt.errors import SpecError

from .base import spec


@spec
class Ngram:
    """Counts of what followed the last tokens so far, mixed into every distribution.

    ``orders`` are the lengths of the contexts that are counted over the whole stream, and
    ``document_orders`` of those counted anew in each document; an order of 0 counts tokens alone.
    Before anything is learnt, each order leaves the share ``keep`` to the model and the orders
    below it. These shares then move by gradient steps of size ``rate`` (Adagrad), one after every
    ``block`` targets. A table holds at most ``contexts`` contexts.
    """

    orders: tuple[int, ...] = (0, 1, 2, 3, 5, 8)
    document_orders: tuple[int, ...] = (0, 1, 2, 3)
    keep: float = 0.9
    rate: float = 0.15
    block: int = 32
    contexts: int = 1 << 19

    def __post_init__(self) -> None:
        for orders in (self.orders, self.document_orders):
            if list(orders) != sorted(set(orders)) or min(orders, default=0) < 0:
                raise SpecError("orders ascend from 0 or more, each named once")
        if not self.orders + self.document_orders:
            raise SpecError("orders or document_orders names at least one order")
        if not 0 < self.keep < 1 or self.rate < 0:
            raise SpecError("keep lies between 0 and 1, rate is not negative")
        if self.block < 1 or self.contexts < 2:
            raise SpecError("block is at least 1 and contexts at least 2")
