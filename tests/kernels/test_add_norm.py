"""The norm of a sum is, to the bit, what its operations one by one are."""

import pytest
import torch

from segpt.kernels import OPS, add_norm, rms_norm
from tests.kernels.near import noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_row", [True, False])
def test_it_is_a_sum_a_norm_and_a_scale(dtype: torch.dtype, *, per_row: bool) -> None:
    results = []
    for fused in (True, False):
        x, residual = (noise(2, 5, 12, seed=i, dtype=dtype).requires_grad_() for i in range(2))
        rows = noise(2, 5, seed=2).requires_grad_()
        if fused:
            total, normed = add_norm(x, residual, rows if per_row else 0.3)
        else:
            total = x + residual
            scale = rows[..., None].to(dtype) if per_row else 0.3
            normed = rms_norm(total) * scale
        outputs = total, normed
        slopes = [noise(2, 5, 12, seed=seed, dtype=dtype) for seed in (3, 4)]
        leaves = [x, residual, rows] if per_row else [x, residual]
        results.append([*outputs, *torch.autograd.grad(outputs, leaves, slopes)])
    for mine, expected in zip(*results, strict=True):
        assert mine.dtype == expected.dtype
        assert torch.equal(mine, expected)


def test_a_scale_is_one_number_or_one_for_each_row() -> None:
    x, residual = noise(3, 4), noise(3, 4, seed=1)
    plain = add_norm(x, residual).normed
    assert torch.equal(add_norm(x, residual, torch.tensor(2.0)).normed, 2 * plain)
    rows = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(add_norm(x, residual, rows).normed, rows[:, None] * plain)


def test_every_back_end_is_tried() -> None:
    assert [b.name for b in OPS["add_norm"].backends] == ["triton"]  # test_triton_norm.py
