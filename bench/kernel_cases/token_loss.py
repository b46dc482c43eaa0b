"""The loss of tokens in the shapes, types and masks that it meets."""

from collections.abc import Iterator

import torch

from .case import BF16, FP16, FP32, TYPES, Case, meta, short


def cases() -> Iterator[Case]:
    """With and without a cap; a vocabulary and a width that no tile divides."""
    from segpt.kernels.cross_entropy import LinearHead
    from segpt.kernels.cross_entropy import triton as token_loss

    for dtype in TYPES:
        for rows, vocab, width in ((1 << 16, 8192, 512), (4096, 50_257, 768), (999, 257, 100)):
            hidden, weight = meta(dtype, rows, width), meta(dtype, vocab, width)
            targets = torch.empty(rows, dtype=torch.int64, device="meta")
            log_z, picked, share = (meta(torch.float32, rows) for _ in range(3))
            slope = meta(dtype, rows, vocab)
            for softcap in (None, 30.0):
                head = LinearHead(weight, 1.0, softcap)
                name = f"{rows}x{vocab}x{width} {short(dtype)}{' capped' * (softcap is not None)}"
                usual = (dtype, vocab, softcap) in (
                    (BF16, 8192, 30.0), (FP16, 50_257, None), (FP32, 257, None)
                )  # fmt: skip
                normalise = token_loss.normalise(hidden, weight, head, targets, (log_z, picked))
                yield Case(f"token_loss log Z {name}", normalise, usual)
                slopes = token_loss.slopes(hidden, weight, head, targets, log_z, share, 1e-4, slope)
                yield Case(f"token_loss slope {name}", slopes, usual)
