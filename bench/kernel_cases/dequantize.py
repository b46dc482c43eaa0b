"""Codes to weights: wide and narrow matrices, in rows that begin anywhere, and packed."""

from collections.abc import Iterator

import torch

from .case import BF16, FP16, FP32, TYPES, Case, meta, short


def cases() -> Iterator[Case]:
    """Scales of rows and of spans, codes of each width, and paths of each machine."""
    from segpt.kernels.dequantize import triton as dequantize

    for dtype in TYPES:
        for rows, columns, spans in ((3072, 768, 1), (512, 2048, 16), (999, 333, 3)):
            weights, scales = meta(dtype, rows, columns), meta(FP16, rows, spans)
            name = f"{rows}x{columns} {short(dtype)}"
            usual = (dtype, rows) in ((BF16, 3072), (FP32, 999))
            launch = dequantize.uniform(meta(torch.int8, rows, columns), scales, weights)
            yield Case(f"dequantize {name}", launch, usual)
            for bits in (4, 6, 8):
                codes = meta(torch.uint8, rows, -(-columns * bits // 8))
                launch = dequantize.packed(codes, bits, scales, weights)
                yield Case(f"dequantize packed {bits} {name}", launch, usual and bits == 6)
            yield from _paths(weights, name, usual)


def _paths(weights: torch.Tensor, name: str, usual: bool) -> Iterator[Case]:
    from segpt.kernels.dequantize import TrellisCall
    from segpt.kernels.dequantize import triton as dequantize
    from segpt.kernels.dequantize.paths import masks

    rows, columns = weights.shape
    codes, exponents = meta(torch.int8, rows, columns), meta(torch.int8, rows)
    by_column, values = meta(torch.int8, columns), meta(FP16, columns)
    stored = meta(torch.bool, rows)
    for states, centre, shared in ((1, values, None), (8, values, None), (16, values, values)):
        which = None if shared is None else stored
        call = TrellisCall(
            codes, states, 0.01, exponents, by_column, centre, which, shared, weights.dtype
        )
        period = len(masks(states))
        launch = dequantize.trellis(call, meta(FP32, 481), meta(torch.int32, period), weights)
        yield Case(f"dequantize trellis {states} {name}", launch, usual and states == 16)
