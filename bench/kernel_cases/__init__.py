"""The launches that are compiled and checked: each kernel in the shapes and types that it meets."""

from . import attention, newton_schulz, query_key, rms_norm, token_loss
from .case import Case

__all__ = ["Case", "cases"]


def cases() -> list[Case]:
    """All of them, with the tiles of the generation of GPUs that is compiled for."""
    kernels = rms_norm, newton_schulz, token_loss, attention, query_key
    return [case for kernel in kernels for case in kernel.cases()]
