"""Normalisation in the shapes, types and masks that it meets."""

from collections.abc import Iterator

from .case import BF16, FP32, TYPES, Case, meta, short


def cases() -> Iterator[Case]:
    """Heads, streams from small to wide, and one whose rows have no round length."""
    from segpt.kernels.rms_norm import triton as rms_norm

    for dtype in TYPES:
        for rows, width in (
            (1 << 18, 64),
            (1 << 15, 512),
            (1 << 15, 768),
            (4096, 8192),
            (999, 100),
        ):
            x, y, slope = (meta(dtype, rows, width) for _ in range(3))
            name = f"{rows}x{width} {short(dtype)}"
            usual = (dtype, width) in ((BF16, 512), (BF16, 100), (FP32, 64))
            yield Case(f"rms_norm forward {name}", rms_norm.forward(x, y), usual)
            yield Case(f"rms_norm backward {name}", rms_norm.backward(x, slope, y), usual)
            by_row = meta(FP32, rows)
            for scale, of_rows in ((0.5, None), (by_row, by_row)):
                more = f"{name}{' scaled by row' * (of_rows is not None)}"
                add = rms_norm.add_forward(x, slope, scale, x, y)
                yield Case(f"add_norm forward {more}", add, usual and of_rows is None)
                back = rms_norm.add_backward(x, (slope, slope), scale, y, of_rows)
                yield Case(f"add_norm backward {more}", back, usual)
