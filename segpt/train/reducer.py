"""Gradients averaged over the processes while backward still computes others.

    ready in backward:  head | last visit | ... | first visit | table
    messages:           [ bucket 0 ][ bucket 1 ]   ...   [ the last one, after backward ]

Every process starts the same messages in the same order, whatever is ready first in it.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segpt.model.model import Model
from segpt.model.params import weights

from .mesh import Mesh

BYTES = 25 * 2**20  # of a bucket: large enough for the full bandwidth, and early enough


@dataclass
class Bucket:
    """Weights whose gradients travel in one message.

    Attributes:
        tensors: the weights, of any shape.
        awaited: how many of them have no gradient yet in this backward pass.
        message: their gradients and whatever goes with them, (numbers,), once it is sent.
        work: the message on its way.
    """

    tensors: Sequence[nn.Parameter]
    awaited: int = field(init=False)
    message: Tensor | None = None
    work: dist.Work | None = None

    def __post_init__(self) -> None:
        self.awaited = len(self.tensors)


class GradientReducer:
    """Averages the gradients of a model over the processes; of one process, it does nothing.

    :meth:`start` comes before the last backward pass of a step, and :meth:`finish` after it. A
    bucket is sent when its gradients and those of all buckets before it are there. Weights may
    stay without a gradient: they are sent as zero, and have one afterwards if they got one in any
    process.
    """

    def __init__(self, model: Model, mesh: Mesh) -> None:
        self.model, self.mesh = model, mesh
        self.buckets: list[Bucket] = []
        self._bucket_of: dict[int, Bucket] = {}
        self._sent = 0
        self._active = False
        if mesh.size > 1:
            for weight in weights(model):
                weight.tensor.register_post_accumulate_grad_hook(self._ready)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Send gradients from now on as they become ready: the coming ones are the last."""
        if self.mesh.size == 1:
            return
        self.buckets = [Bucket(tensors) for tensors in divided(backward_order(self.model), BYTES)]
        self._bucket_of = {id(t): bucket for bucket in self.buckets for t in bucket.tensors}
        self._sent, self._active = 0, True

    @torch.no_grad()
    def finish(self) -> None:
        """Send what is left, and wait until every gradient is the mean over the processes."""
        if self.mesh.size == 1:
            return
        self._active = False
        tensors = [tensor for bucket in self.buckets for tensor in bucket.tensors]
        absent = [tensor for tensor in tensors if tensor.grad is None]
        # How many processes have a gradient of each weight goes with the last bucket.
        present = torch.tensor([float(t.grad is not None) for t in tensors])
        for bucket in self.buckets[self._sent : -1]:
            self._send(bucket)
        self._send(self.buckets[-1], present.to(self.mesh.device))
        for bucket in self.buckets:
            assert bucket.work is not None
            assert bucket.message is not None
            bucket.work.wait()
            bucket.message /= self.mesh.size
        if absent:  # only then is the device waited for
            assert bucket.message is not None
            counts = bucket.message[-len(tensors) :].tolist()
            self._take_over({id(t) for t, count in zip(tensors, counts, strict=True) if count})
        self.buckets, self._bucket_of = [], {}

    def _ready(self, tensor: Tensor) -> None:
        """The gradient of a weight, of any shape, has got all that it gets."""
        if not self._active:
            return
        self._bucket_of[id(tensor)].awaited -= 1
        # The last one waits for the end of backward, which knows what has no gradient.
        while self._sent < len(self.buckets) - 1 and not self.buckets[self._sent].awaited:
            self._send(self.buckets[self._sent])
            self._sent += 1

    def _send(self, bucket: Bucket, more: Tensor | None = None) -> None:
        """Start a message, (numbers,), in which the gradients lie from now on."""
        grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in bucket.tensors]
        extra = [] if more is None else [more]
        bucket.message = torch.cat([*(grad.reshape(-1) for grad in grads), *extra])
        for tensor, part in _parts(bucket):
            if tensor.grad is not None:
                tensor.grad = part
        bucket.work = self.mesh.begin_sum(bucket.message)

    def _take_over(self, numbers: Collection[int]) -> None:
        """Give weights, by their id, the gradient that they got in some process."""
        for bucket in self.buckets:
            for tensor, part in _parts(bucket):
                if id(tensor) in numbers:
                    tensor.grad = part


def backward_order(model: Model) -> list[nn.Parameter]:
    """The weights that may get a gradient as the model is now, of any shape, as backward ends them.

    A weight is done when its first use is: what several visits share waits for the first of them.
    Visits through which no gradient flows count as no use.
    """
    end = len(model.active)
    first = {id(parameter): -1 for parameter in model.parameters()}
    first |= {id(parameter): end for parameter in model.head.parameters()}
    visited = [*model.layers.parameters(), *model.visits.parameters()]
    for parameter in visited:
        del first[id(parameter)]
    for place, index in reversed(list(enumerate(model.active))):
        if place not in model.no_grad_visits:
            layer = model.layers[model.spec.visits[index].layer]
            for parameter in (*layer.parameters(), *model.visits[index].parameters()):
                first[id(parameter)] = place
    used = [w.tensor for w in reversed(list(weights(model))) if id(w.tensor) in first]
    return sorted(used, key=lambda tensor: -first[id(tensor)])


def divided(tensors: Sequence[nn.Parameter], most: int) -> list[list[nn.Parameter]]:
    """Weights of any shape in groups of at most so many bytes, or of one; in their order."""
    groups: list[list[nn.Parameter]] = []
    room = 0
    for tensor in tensors:
        if not groups or tensor.nbytes > room:
            groups.append([])
            room = most
        groups[-1].append(tensor)
        room -= tensor.nbytes
    return groups


def _parts(bucket: Bucket) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """The weights of a bucket, of any shape, each with its part of the message in that shape."""
    assert bucket.message is not None
    start = 0
    for tensor in bucket.tensors:
        yield tensor, bucket.message[start : start + tensor.numel()].view_as(tensor)
        start += tensor.numel()
