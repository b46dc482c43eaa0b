"""Newton-Schulz in the shapes, types and masks that it meets."""

from collections.abc import Iterator

from .case import BF16, FP16, TYPES, Case, meta, short


def cases() -> Iterator[Case]:
    """Square and wide matrices; one whose sizes no tile divides."""
    from segpt.kernels.newton_schulz import triton as newton_schulz

    for dtype in TYPES:
        for matrices, size, inner in ((12, 512, 512), (4, 768, 3072), (8, 64, 256), (3, 200, 333)):
            x, gram = meta(dtype, matrices, size, inner), meta(dtype, matrices, size, size)
            name = f"{matrices}x{size}x{inner} {short(dtype)}"
            usual = (dtype, size) in ((BF16, 768), (FP16, 768), (FP16, 200))
            product = newton_schulz.symmetric_product
            yield Case(f"newton_schulz gram {name}", product(x, gram), usual)
            inner_product = product(gram, gram, 2.0315, gram, -4.775)
            yield Case(f"newton_schulz inner {name}", inner_product, usual)
