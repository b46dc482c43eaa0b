"""States of a forward pass as parts meet them, and what a model's visits are given."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from segpt.model.cache import LayerCache
from segpt.model.model import Model
from segpt.model.state import ForwardState, Memory, PassInputs, VisitState


def state_of(
    x0: Tensor,
    *,
    tokens: Tensor | None = None,
    begin: int = 0,
    cache: LayerCache | None = None,
    start: int | None = None,
    tables: Sequence[nn.Module] = (),
) -> ForwardState:
    """A state whose tokens start as ``x0`` (batch, time, width), from position ``begin`` on."""
    ids = torch.zeros(x0.shape[:2], dtype=torch.long) if tokens is None else tokens
    positions = torch.arange(begin, begin + ids.size(1))
    inputs = PassInputs(ids, positions, start=start, value_tables=tables)
    return ForwardState(inputs, Memory(x0), VisitState(cache=cache))


@contextmanager
def entering(model: Model) -> Iterator[list[Tensor]]:
    """What enters each visit of a model, in the order that they run, while the block does."""
    entered: list[Tensor] = []
    visit = model._visit

    def watched(index: int, x: Tensor, state: ForwardState) -> Tensor:
        entered.append(x)
        return visit(index, x, state)

    object.__setattr__(model, "_visit", watched)
    try:
        yield entered
    finally:
        object.__delattr__(model, "_visit")
