"""GPTQ: rounding columns one by one, each making up for the errors before it.

Frantar et al. 2023, arXiv 2210.17323.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .grid import decode, largest_code, nearest, widen

RETRIES = 3
_PER_COLUMN = 4  # inputs below which a Hessian says little of some directions


class Rounding(NamedTuple):
    """int8 codes (rows, columns), and the damping behind them; None if all are the nearest."""

    codes: Tensor
    damping: float | None


def gptq(
    weight: Tensor,
    hessian: Tensor,
    scales: Tensor,
    bits: int,
    *,
    damping: float = 0.01,
    act_order: bool = True,
    block: int = 128,
    samples: int | None = None,
) -> Rounding:
    """Codes that keep the outputs of a weight close on the inputs behind its Hessian.

    Columns whose input was always zero are rounded to nearest: the calibration text says nothing
    of them, and another text may use them. If the damped Hessian has no Cholesky factor, or the
    sweep overflows, the damping grows tenfold, at most three times; then every weight is rounded
    to nearest. So is a row whose outputs that keeps closer, which happens where many weights are
    clipped: no row is ever worse for the sweep.

    A Hessian of few inputs is blind to most directions, and a sweep that trusts it moves weights
    along these as it likes. With fewer than four inputs per column the damping is at least four
    times the columns over the inputs, which leaves little but rounding to nearest.

    Args:
        weight: (rows, columns) float32.
        hessian: (columns, columns), see :func:`segpt.quant.hessian.hessians`.
        scales: (rows, spans) float16, for spans of columns in their own order.
        bits: 2 to 8.
        damping: fraction of the mean of the diagonal that is added to it.
        act_order: sweep the columns from the largest input to the smallest.
        block: columns that are rounded before the columns after them are corrected at once.
        samples: how many different inputs are behind the Hessian; enough of them if None.
    """
    if samples is not None and samples < _PER_COLUMN * len(hessian):
        damping = max(damping, _PER_COLUMN * len(hessian) / max(1, samples))
    hessian = hessian.double().clone()
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    # Of an input that never occurred nothing is known, so it counts like any other. As it occurred
    # with no other input either, its errors stay its own, and the sweep rounds it to nearest.
    diagonal[dead] = 1.0 if dead.all() else diagonal[~dead].mean()
    weight = weight.float()
    order = torch.arange(len(hessian), device=hessian.device)
    if act_order:
        order = diagonal.argsort(descending=True, stable=True)
    plain = nearest(weight, scales, bits)
    wide = widen(scales, len(order))
    for retry in range(RETRIES + 1):
        fraction = damping * 10**retry
        factor = inverse_factor(hessian[order][:, order], fraction)
        swept = _sweep(weight[:, order], wide[:, order], factor.float(), bits, block)
        if swept is not None:
            codes = torch.empty_like(plain)
            codes[:, order] = swept
            loss = output_error(weight - decode(codes, scales), hessian)
            worse = ~(loss <= output_error(weight - decode(plain, scales), hessian))
            return Rounding(torch.where(worse[:, None], plain, codes), fraction)
    return Rounding(plain, None)


def output_error(change: Tensor, hessian: Tensor) -> Tensor:
    """How far each row's outputs move, squared and per token: the diagonal of D H D^T, (rows,)."""
    return ((change @ hessian.float()) * change).sum(1)


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """The upper triangular U with U^T U = (H + damping * mean(diag H) * I)^-1.

    Both are (columns, columns). U is NaN where the damped Hessian is not positive definite.
    """
    damped = hessian + torch.eye(len(hessian)).to(hessian) * damping * hessian.diagonal().mean()
    # With both axes reversed, the lower factor of H becomes an upper one, H = R R^T, and U is
    # its inverse: one factorisation instead of two around an explicit inverse.
    lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    upper = lower.flip(0, 1).masked_fill(failed > 0, torch.nan)
    return torch.linalg.solve_triangular(upper, torch.eye(len(upper)).to(upper), upper=True)


def _sweep(weight: Tensor, scale: Tensor, factor: Tensor, bits: int, block: int) -> Tensor | None:
    """int8 codes of the columns from left to right, or None if anything ceased to be finite."""
    most, columns = largest_code(bits), weight.size(1)
    left = weight.T.contiguous()  # what each column still has to express
    steps = scale.T.contiguous()
    codes = torch.empty_like(left)
    errors = torch.empty_like(left)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        for j in range(start, end):
            codes[j] = (left[j] / steps[j]).round().clamp(-most, most)
            errors[j] = (left[j] - codes[j] * steps[j]) / factor[j, j]
            left[j + 1 : end].addr_(factor[j, j + 1 : end], errors[j], alpha=-1)
        left[end:].addmm_(factor[start:end, end:].T, errors[start:end], alpha=-1)
    return codes.T.to(torch.int8) if errors.isfinite().all() else None
