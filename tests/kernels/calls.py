"""Calls of operations whose result is one tensor, and how to run them forward and backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from segpt.kernels.activation.reference import ActivationCall, FeedCall
from segpt.kernels.attention.reference import AttentionCall
from segpt.kernels.linear.reference import LinearCall
from segpt.kernels.newton_schulz.reference import NewtonSchulzCall
from segpt.kernels.rms_norm.reference import RmsNormCall
from segpt.kernels.rotary.reference import RotaryCall

QUINTIC = (3.4445, -4.7750, 2.0315)
ACTIVATIONS = ("relu2", "leaky_relu2", "silu", "swiglu")
CALLS: dict[str, Callable[..., Any]] = {
    "activation": ActivationCall,
    "attention": AttentionCall,
    "gated_feed": FeedCall,
    "linear": LinearCall,
    "newton_schulz": NewtonSchulzCall,
    "rms_norm": RmsNormCall,
    "rotary": RotaryCall,
}


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attention_inputs(
    batch: int, queries: int, keys: int, heads: int, kv_heads: int, channels: int, *window: int
) -> tuple[Any, ...]:
    return (
        noise(batch, queries, heads, channels, seed=0),
        noise(batch, keys, kv_heads, channels, seed=1),
        noise(batch, keys, kv_heads, channels, seed=2),
        *window,
    )


def opening(batch: int, keys: int, *starts: int) -> Tensor:
    """Documents of keys, (batch, keys): later rows start each of theirs one key later."""
    opens = torch.zeros(batch, keys, dtype=torch.int64)
    for row in range(batch):
        opens[row, [start + row for start in starts]] = 1
    return opens.cumsum(1)


def newton_schulz_inputs(matrices: int, rows: int, columns: int) -> tuple[Any, ...]:
    x = noise(matrices, rows, columns, seed=0)
    # two steps: each multiplies the rounding errors of the one before by up to 3.4
    return x / torch.linalg.matrix_norm(x, keepdim=True), (QUINTIC,) * 2


def rotary_inputs(dims: int, *, neighbours: bool) -> tuple[Any, ...]:
    angle = noise(9, 1, dims // 2, seed=1)
    return noise(2, 9, 3, 8, seed=0), angle.cos(), angle.sin(), neighbours


# Those of which the result is one tensor; test_cross_entropy.py and test_add_norm.py: the others.
CASES: dict[str, list[tuple[Any, ...]]] = {
    "activation": [(noise(3, 8, seed=0), act) for act in ACTIVATIONS],
    "gated_feed": [(noise(2, 5, 7, seed=0), noise(6, 7, seed=1), act) for act in ACTIVATIONS],
    "rms_norm": [(noise(2, 3, 16, seed=0),), (noise(1, 1, seed=0),)],
    "rotary": [
        rotary_inputs(8, neighbours=False),
        rotary_inputs(4, neighbours=False),
        rotary_inputs(8, neighbours=True),
        rotary_inputs(4, neighbours=True),
    ],
    "linear": [
        (noise(3, 5, seed=0), noise(7, 5, seed=1)),
        (noise(2, 128, 48, seed=0), noise(96, 48, seed=1)),  # enough work for every back end
        (noise(1, 99, 131, seed=0), noise(131, 131, seed=1).T),
    ],
    "attention": [
        attention_inputs(2, 16, 16, 4, 4, 8),
        attention_inputs(2, 16, 16, 4, 2, 8),
        attention_inputs(1, 33, 33, 6, 1, 64),
        attention_inputs(2, 1, 17, 4, 2, 8),
        attention_inputs(2, 5, 17, 4, 2, 8),
        attention_inputs(1, 1, 1, 1, 1, 2),
        attention_inputs(2, 16, 16, 4, 2, 8, 99),  # wider than what there is
        attention_inputs(2, 5, 9, 4, 2, 8, 5),
        attention_inputs(2, 1, 17, 4, 2, 8, 5),
        attention_inputs(2, 3, 17, 4, 2, 8, 5),
        attention_inputs(2, 16, 16, 4, 2, 8, 5),
        attention_inputs(2, 16, 19, 4, 2, 8, 5),
        attention_inputs(2, 15, 40, 4, 1, 8, 5),
        attention_inputs(1, 33, 33, 6, 6, 64, 8),
        attention_inputs(3, 7, 9, 4, 2, 8, 1),
        attention_inputs(1, 48, 63, 4, 2, 8, 16),  # blocks and nothing before them
        attention_inputs(1, 50, 60, 4, 2, 8, 12),
        attention_inputs(2, 40, 40, 2, 1, 8, 1),
        *(
            (*attention_inputs(*shape), window, None, 0.12)
            for shape in [(2, 16, 16, 4, 2, 8), (2, 5, 17, 4, 2, 8), (2, 1, 9, 4, 2, 8)]
            for window in (None, 5)
        ),
        (*attention_inputs(1, 48, 63, 4, 2, 8), 16, None, 0.5),
        *(
            (*attention_inputs(2, queries, keys, 4, 2, 8), window, opening(2, keys, *starts))
            for queries, keys, window in [
                (16, 16, None),
                (5, 17, None),
                (1, 17, None),
                (16, 16, 5),
                (5, 17, 5),
                (1, 17, 5),
                (5, 17, 99),
            ]
            for starts in [(), (0,), (3, 4, 11)]
        ),
        (*attention_inputs(2, 40, 43, 4, 2, 8), 6, opening(2, 43, 2, 5, 20, 21, 38), 0.2),
        (*attention_inputs(1, 50, 60, 4, 2, 8), 12, opening(1, 60, 9, 30, 31, 32, 59)),
    ],
    "newton_schulz": [
        newton_schulz_inputs(1, 1, 1),
        newton_schulz_inputs(3, 8, 8),
        newton_schulz_inputs(2, 7, 33),
        newton_schulz_inputs(1, 64, 128),
    ],
}


def floating(argument: Any) -> bool:
    return isinstance(argument, Tensor) and argument.is_floating_point()


def on(args: tuple[Any, ...], device: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """Copies of the tensors among the arguments, ready for backward."""
    return tuple(
        (
            (a.to(device, dtype).detach().requires_grad_() if floating(a) else a.to(device))
            if isinstance(a, Tensor)
            else a
        )
        for a in args
    )


def gradients(
    function: Callable[..., Tensor], args: tuple[Any, ...]
) -> tuple[Tensor, list[Tensor]]:
    """The result, and the gradient of its product with fixed noise for each tensor."""
    result = function(*args)
    weight = noise(*result.shape, seed=3).to(result)
    inputs = [a for a in args if floating(a)]
    return result, list(torch.autograd.grad((result * weight).sum(), inputs))


def called(run: Callable[[Any], Tensor], name: str) -> Callable[..., Tensor]:
    """``run`` with the arguments of its call one by one."""
    return lambda *args: run(CALLS[name](*args))
