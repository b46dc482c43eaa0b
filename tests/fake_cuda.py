"""A CUDA device without a GPU: tensors that have a shape, a type and a device, and no values.

What runs within :func:`fake_cuda` finds CUDA there. An operation on tensors of two devices raises,
and so does one that asks for a value. Triton's kernels are launched and do nothing. There is no
backward pass, whose streams need a driver.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

CUDA = torch.device("cuda:0")
GENERATION = 90


@contextlib.contextmanager
def fake_cuda() -> Iterator[None]:
    """Let CUDA be there within the block, where no gradients are wanted."""
    patches = {
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.is_bf16_supported": lambda *_: True,
        "torch.nn.Module.to": _moved,
        "segpt.kernels.launch.Launch.run": lambda _launch: None,
        "segpt.kernels.tiles._architecture": lambda _device: GENERATION,
    }
    with contextlib.ExitStack() as stack:
        for name, replacement in patches.items():
            stack.enter_context(mock.patch(name, replacement))
        stack.enter_context(torch.no_grad())
        stack.enter_context(FakeTensorMode())
        stack.enter_context(_Indexing())
        yield


def _moved(module: nn.Module, device: str | torch.device) -> nn.Module:
    """What ``module.to(device)`` does, for tensors that cannot be swapped in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = parameter.detach().to(device)
                part._parameters[name] = nn.Parameter(moved, requires_grad=False)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.to(device)
    return module


class _Indexing(TorchFunctionMode):
    """Indexing by operations: that of Python asks for the current device of a driver."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.__getitem__:
            return _indexed(*args)
        if func is Tensor.__invert__:
            return torch.bitwise_not(*args)
        if func is Tensor.contiguous:
            return args[0].clone(memory_format=torch.contiguous_format)
        if func is Tensor.__setitem__:
            target, key, value = args
            view = _indexed(target, key)
            if not isinstance(value, Tensor) or value.device == view.device:
                return None  # there are no values to set
        return func(*args, **(kwargs or {}))


def _indexed(x: Tensor, key: Any) -> Tensor:
    keys = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in [k for k in keys if not isinstance(k, Tensor)]:
        at = next(i for i, k in enumerate(keys) if k is Ellipsis)
        taken = sum(k is not None for k in keys) - 1
        keys[at : at + 1] = [slice(None)] * (x.dim() - taken)
    place, indices = 0, dict[int, Tensor]()
    for k in keys:
        if k is None:
            x, place = x.unsqueeze(place), place + 1
        elif isinstance(k, slice):
            x = torch.ops.aten.slice.Tensor(x, place, k.start, k.stop, k.step or 1)
            place += 1
        elif isinstance(k, int):
            x = x.select(place, k)
        else:
            indices[place] = k if isinstance(k, Tensor) else torch.tensor(k, device=x.device)
            place += 1
    if not indices:
        return x
    every = [indices.get(i) for i in range(max(indices) + 1)]
    return torch.ops.aten.index.Tensor(x, every)
