"""Updates of weights: of many tensors at once, with aligned addresses and others."""

from collections.abc import Iterator

import torch

from .case import BF16, FP32, TYPES, Case, meta, short


def cases() -> Iterator[Case]:
    """AdamW in each type; Muon around Newton-Schulz, by rows and columns, tall and wide."""
    from segpt.kernels.updates import AdamUpdateCall
    from segpt.kernels.updates import triton as updates

    numbers = updates.adam_numbers(
        AdamUpdateCall([], [], [], [], [], 0.01, 1e-3, 0.9, 0.95, 1e-8), 10.0
    )
    table, owner = meta(torch.int64, 150, 6), meta(torch.int32, 120_000)
    for dtype in TYPES:
        moment = meta(FP32, 512, 512)
        weight = meta(dtype, 512, 512)
        for cautious, is_aligned in ((False, True), (True, True), (True, False)):
            like = weight, weight, moment, moment
            launch = updates.adam(table, owner, like, numbers, cautious, is_aligned)
            name = f"{'cautious ' * cautious}{'aligned ' * is_aligned}{short(dtype)}"
            yield Case(f"adam_update {name}", launch, (cautious, is_aligned) == (False, True))
        yield from _muon(dtype)


def _muon(dtype: torch.dtype) -> Iterator[Case]:
    from segpt.kernels.updates import triton as updates

    table = meta(torch.int64, 24, 4)
    for matrices, out, width in ((12, 3072, 768), (12, 512, 512), (3, 100, 333)):
        is_aligned = out % 16 == 0
        usual = (dtype, out) in ((BF16, 3072), (FP32, 100))
        name = f"{matrices}x{out}x{width} {short(dtype)}"
        weight, stack = meta(FP32, out, width), meta(dtype, matrices, out, width)
        share = 0.05, 0.95
        made = updates.momentum(table, weight, stack, out * width, share, True, is_aligned)
        yield Case(f"muon_momentum {name}", made, usual)
        for line, second in (("row", meta(FP32, out, 1)), ("column", meta(FP32, 1, width))):
            update = meta(dtype, matrices, width, out).mT if out > width else stack
            lines = out if line == "row" else width
            energy, factor = (meta(FP32, matrices, lines) for _ in range(2))
            where = meta(torch.int64, matrices, 1)
            moments = updates.second_moment(update, where, second, energy, 0.05)
            yield Case(f"muon_update moments by {line} {name}", moments, usual)
            scale = updates.LineScale(factor, line)
            made = updates.muon(table, weight, update, scale, out, (0.02, 0.01), True, is_aligned)
            yield Case(f"muon_update by {line} {name}", made, usual)
        made = updates.muon(table, weight, stack, None, out, (0.02, 0.01), False, is_aligned)
        yield Case(f"muon_update plain {name}", made, usual=False)
    if dtype == FP32:
        energy, factor = (meta(FP32, 12, 768) for _ in range(2))
        where, second = meta(torch.int64, 12, 1), meta(FP32, 768, 1)
        launch = updates.line_scale(where, second, energy, factor)
        yield Case("muon_update scales float32", launch, usual=True)
