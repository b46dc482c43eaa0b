"""The mixture with n-gram counts: pieces of a text, and whole rows of a vocabulary."""

from collections.abc import Iterator

import torch

from .case import FP32, TYPES, Case, meta, short


def cases() -> Iterator[Case]:
    """A few tables and many, targets of which there is no round number, and a wide vocabulary."""
    from segpt.kernels.ngram_mixture import NgramMixtureCall, NgramMixtureResult, NgramRowsCall
    from segpt.kernels.ngram_mixture import triton as ngram_mixture

    for dtype in TYPES:
        for tables, targets in ((6, 8192), (12, 999)):
            model, frequency = meta(dtype, targets), meta(dtype, tables, targets)
            features, known = meta(dtype, 4, tables, targets), meta(torch.bool, tables, targets)
            call = NgramMixtureCall(model, frequency, features, known, meta(dtype, 4, tables))
            launch = ngram_mixture.mixture(call, NgramMixtureResult(model, features))
            name = f"{tables}x{targets} {short(dtype)}"
            yield Case(f"ngram_mixture {name}", launch, (dtype, tables) == (FP32, 6))
        for rows, vocab in ((512, 8192), (33, 50257)):
            model = meta(dtype, rows, vocab)
            launch = ngram_mixture.rows(NgramRowsCall(model, meta(dtype, rows), model), model)
            name = f"{rows}x{vocab} {short(dtype)}"
            yield Case(f"ngram_rows {name}", launch, (dtype, rows) == (FP32, 512))
