"""An average of the weights over the steps of a run, in float32."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from segpt.config.train import Average
from segpt.model.model import Model
from segpt.model.params import weights


class Averaged:
    """The average of a model's weights; without a spec, the weights themselves."""

    def __init__(self, model: Model, spec: Average | None) -> None:
        self.spec, self.updates = spec, 0
        self.live = {w.name: w.tensor for w in weights(model)}
        kept = self.live if spec else {}
        self.shadow = {name: t.detach().to(torch.float32, copy=True) for name, t in kept.items()}

    @torch.no_grad()
    def update(self, progress: float) -> None:
        """Take in the weights after a step at this fraction of the run (see ``spec.Average``)."""
        if self.spec is None:
            return
        shadow: list[Tensor] = list(self.shadow.values())
        live: list[Tensor] = list(self.live.values())
        if progress < self.spec.since:
            torch._foreach_copy_(shadow, live)
            return
        torch._foreach_lerp_(shadow, live, 1.0 - remembered(self.spec, self.updates))
        self.updates += 1

    def weights(self) -> dict[str, Tensor]:
        """The weights to use, as named arrays: averaged if there is an average, raw otherwise."""
        return dict(self.shadow) if self.spec else {n: t.detach() for n, t in self.live.items()}

    def restore(self, arrays: Mapping[str, Tensor], updates: int) -> None:
        """Take over the named arrays that :meth:`weights` returned after so many updates."""
        for name, tensor in self.shadow.items():
            tensor.copy_(arrays[name])
        self.updates = updates

    @contextlib.contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Run a block with the averaged weights in the model."""
        if self.spec is None:
            yield
            return
        raw = {name: t.detach().clone() for name, t in self.live.items()}
        try:
            for name, tensor in self.live.items():
                tensor.copy_(self.shadow[name])
            yield
        finally:
            for name, tensor in self.live.items():
                tensor.copy_(raw[name])


def remembered(spec: Average, updates: int) -> float:
    """Which part of an average of so many updates the next one keeps."""
    if spec.decay is None:
        return updates / (1 + updates)
    return min(spec.decay, (1 + updates) / (10 + updates))
