"""Which weights of a model are coded together, and which have steps of one kind."""

from collections.abc import Sequence

from segpt.config.layout import Place, layout
from segpt.model.model import Model

_TAIL = 0.01  # of the weights: what the last part has at least


def parts(model: Model, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The names of the weights that are coded together, in the order in which they are."""
    table: list[str] = []
    head: list[str] = []
    layers: list[list[str]] = [[] for _ in model.spec.layers]
    for weight in layout(model.spec):
        if weight.name in names:
            apart = head if weight.place is Place.HEAD else table
            (apart if weight.layer is None else layers[weight.layer]).append(weight.name)
    divided = [part for part in (table, *layers, head) if part]
    sizes = {w.name: w.size for w in layout(model.spec)}
    # The last part is coded again to land on the budget: it has to be able to move the total.
    while len(divided) > 1 and sum(map(sizes.__getitem__, divided[-1])) < _TAIL * sum(
        map(sizes.__getitem__, names)
    ):
        last = divided.pop()
        divided[-1] = divided[-1] + last
    return tuple(map(tuple, divided))


def kind(name: str) -> str:
    """What a weight is in its layer: ``query``, ``up``, ``table``, ``value_tables``, ..."""
    return next(word for word in reversed(name.split(".")) if not word.isdigit())
