"""The launches that are compiled and checked: each kernel in the shapes and types that it meets."""

from . import (
    attention,
    dequantize,
    gated_feed,
    newton_schulz,
    ngram_mixture,
    query_key,
    rms_norm,
    token_loss,
    updates,
)
from .case import Case, kernel_of

__all__ = ["Case", "cases", "kernel_of"]

KERNELS = (
    attention,
    dequantize,
    gated_feed,
    newton_schulz,
    ngram_mixture,
    query_key,
    rms_norm,
    token_loss,
    updates,
)


def cases() -> list[Case]:
    """All of them, with the tiles of the generation of GPUs that is compiled for."""
    return [case for kernel in KERNELS for case in kernel.cases()]
