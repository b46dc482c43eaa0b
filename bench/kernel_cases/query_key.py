"""Norm, rotation and gain of queries and keys, in the shapes, types and forms that they meet."""

from collections.abc import Iterator

import torch

from .case import BF16, FP16, FP32, TYPES, Case, meta, short


def cases() -> Iterator[Case]:
    """Heads of 32 to 128 channels, all or some of which turn; every place of the norm."""
    from segpt.kernels.query_key import triton as query_key

    for dtype in TYPES:
        for batch, time, heads, kv_heads, channels, dims in (
            (16, 2048, 8, 4, 64, 64),
            (8, 1024, 12, 12, 128, 64),
            (32, 1, 8, 2, 32, 32),
            (3, 333, 6, 3, 48, 16),
        ):
            q = meta(dtype, batch, time, heads, channels)
            k = meta(dtype, batch, time, kv_heads, channels)
            angles = meta(dtype, time, 1, dims // 2)
            gain = meta(dtype, heads, 1)
            made = meta(torch.float32, batch, time, heads)
            forms = {
                "norm, rotation, gain": query_key.FusedSteps(1, angles, angles, False, gain),
                "rotation, norm": query_key.FusedSteps(2, angles, angles),
                "rotation of neighbours, gain": query_key.FusedSteps(
                    0, angles, angles, True, gain[:1]
                ),
                "norm": query_key.FusedSteps(1),
            }
            for form_name, form in forms.items():
                size = "x".join(map(str, (batch, time, heads, kv_heads, channels)))
                name = f"{size} {short(dtype)} {form_name}"
                whole = form.norm == 1 and form.cos is not None
                usual = (dtype, channels, whole) in ((BF16, 64, True), (BF16, 128, True)) or (
                    dtype, channels, form.norm) in ((FP16, 48, 2), (FP32, 64, 0))  # fmt: skip
                forward = query_key.forward(q, k, form, (q, k))
                yield Case(f"query_key forward {name}", forward, usual)
                backward = query_key.backward((q, k), (q, k), form, (q, k, made))
                yield Case(f"query_key backward {name}", backward, usual)
