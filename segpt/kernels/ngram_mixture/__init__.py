"""Probabilities of a model mixed with those of n-gram counts."""

from torch import Tensor

from segpt.kernels.registry import Later, Op

from .reference import (
    NgramMixtureCall,
    NgramMixtureResult,
    NgramRowsCall,
    mixture_reference,
    rows_reference,
)

_MODULE = "segpt.kernels.ngram_mixture.triton"
NGRAM_MIXTURE = Op[NgramMixtureCall, NgramMixtureResult](
    "ngram_mixture",
    mixture_reference,
    Later("triton", 30, ("cuda",), f"{_MODULE}:TritonNgramMixture"),
)
NGRAM_ROWS = Op[NgramRowsCall, Tensor](
    "ngram_rows", rows_reference, Later("triton", 30, ("cuda",), f"{_MODULE}:TritonNgramRows")
)

__all__ = [
    "NGRAM_MIXTURE",
    "NGRAM_ROWS",
    "NgramMixtureCall",
    "NgramMixtureResult",
    "NgramRowsCall",
    "ngram_mixture",
    "ngram_rows",
]


def ngram_mixture(call: NgramMixtureCall) -> NgramMixtureResult:
    """Nats of targets (targets,), and how to lower them: (features, tables, targets)."""
    return NGRAM_MIXTURE(call)


def ngram_rows(call: NgramRowsCall) -> Tensor:
    """Log-probabilities (rows, vocab) of a model and counts together."""
    return NGRAM_ROWS(call)
