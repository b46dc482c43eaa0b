"""The feed-forward body's product and activation in the shapes, types and activations it meets."""

from collections.abc import Iterator

from .case import BF16, FP16, FP32, TYPES, Case, meta, short

_SHAPES = ((1 << 15, 512, 2048), (8192, 2048, 8192), (16, 768, 3072), (999, 100, 333))


def cases() -> Iterator[Case]:
    """Streams of a small and a large model, a few rows, and sizes that no tile divides."""
    from segpt.kernels.activation import triton as gated_feed

    usual = {(BF16, 512), (FP16, 100), (FP32, 2048)}
    for act in ("relu2", "leaky_relu2", "silu", "swiglu"):
        for dtype in TYPES:
            for rows, width, hidden in _SHAPES:
                x, y = meta(dtype, rows, width), meta(dtype, rows, hidden)
                out = 2 * hidden if act == "swiglu" else hidden
                weight, product = meta(dtype, out, width), meta(dtype, rows, out)
                name = f"{act} {rows}x{hidden}x{width} {short(dtype)}"
                is_usual = act in ("relu2", "swiglu") and (dtype, width) in usual
                forward = gated_feed.forward(x, weight, y, act)
                yield Case(f"gated_feed forward {name}", forward, is_usual)
                slopes = gated_feed.slopes(x, weight, y, product, act)
                yield Case(f"gated_feed slope {name}", slopes, is_usual)
