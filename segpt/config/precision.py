"""What a model multiplies in, as data: float32, or bfloat16 where that is asked for."""

from typing import Literal

Precision = Literal["auto", "float32", "bfloat16"]
Computed = Literal["float32", "bfloat16"]  # what ``auto`` comes to


def of_training(precision: Precision, device: str) -> Computed:
    """What a model is trained in on a device, as ``cuda:0``: ``auto`` is bfloat16 on CUDA."""
    if precision == "auto":
        return "bfloat16" if device.startswith("cuda") else "float32"
    return precision


def of_measuring(precision: Precision) -> Computed:
    """What scores, codes and texts are computed in: ``auto`` is float32 on every device.

    A figure then does not depend on where it was computed, but for the order of sums.
    """
    return "float32" if precision == "auto" else precision
