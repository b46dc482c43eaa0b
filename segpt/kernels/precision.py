"""What models multiply in within a block, and float32 that is float32 on a GPU too."""

import contextlib
from collections.abc import Iterator

import torch

from segpt.config.precision import Computed

_computed: Computed = "float32"


def computed() -> Computed:
    """What models multiply in here, where no autocast says otherwise."""
    return _computed


@contextlib.contextmanager
def computing(precision: Computed, device: str) -> Iterator[None]:
    """Let models multiply in this precision within the block, on a device such as ``cuda:0``.

    Only what models do is rounded so: what is computed of their results stays as it is.
    """
    global _computed
    before, _computed = _computed, precision
    try:
        with exact_float32(device):
            yield
    finally:
        _computed = before


@contextlib.contextmanager
def exact_float32(device: str) -> Iterator[None]:
    """Multiply float32 without rounding its factors to TF32 within the block; a CPU never does."""
    if not device.startswith("cuda"):
        yield
        return
    products, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = cudnn
