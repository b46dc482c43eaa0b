"""Codes by trellis search, each survivor with its own GPTQ error feedback.

GPTQ rounds column by column and lets later columns make up for each error (arXiv 2210.17323). A
trellis chooses the grid of a column by the codes before it, so the best path is not the nearest
code at each step: Viterbi's algorithm keeps the best path into every state. The paths have made
different errors, so every one carries its own corrected weights ("per-survivor processing",
Raheli et al. 1995). All rows run at once; so one implementation serves CPU and CUDA.
"""

import torch
from torch import Tensor

from segpt.trellis import machine

LARGEST = 127
_SPAN = 32  # columns that are corrected one by one before the columns after them are, at once
_ROWS = 1024  # at a time, which bounds the memory that survivors take
_NEVER = 1e30  # the cost of a path that does not exist


def encode(
    weight: Tensor,
    factor: Tensor,
    steps: Tensor,
    states: int,
    *,
    penalty: Tensor | None = None,
) -> Tensor:
    """int8 codes (rows, columns) of the cheapest path of every row.

    The cost of a path is the sum over columns of (error / factor[j, j])^2, which is what GPTQ
    minimises greedily, plus ``penalty[j]`` times the squared point where a penalty is given.

    Args:
        weight: (rows, columns) float32, rows already divided by their own scale.
        factor: (columns, columns) upper triangular, of the inverse Hessian.
        steps: (columns,) the step of each column.
        states: of the machine, see :mod:`segpt.trellis`; 1 is a uniform grid.
        penalty: (columns,) what a squared point costs in bits, times lambda.
    """
    if penalty is None:
        penalty = torch.zeros_like(steps)
    return torch.cat(
        [_encode(w, factor, steps, states, penalty) for w in torch.split(weight, _ROWS)]
    )


def _encode(weight: Tensor, factor: Tensor, steps: Tensor, states: int, penalty: Tensor) -> Tensor:
    rows, columns = weight.shape
    device = weight.device
    m = machine(states)
    grid = torch.from_numpy(m.grid).to(device).float()[:, None]
    # The two ways into every state, as 2 * state + parity of the code; with one state, both.
    into = torch.from_numpy(m.following).to(device).flatten().argsort(stable=True).view(states, 2)
    parity = torch.tensor([0.0, 1.0], device=device)
    base = torch.arange(rows, device=device)[:, None] * states
    diagonal = factor.diagonal()
    gain = (steps / diagonal).square().tolist()
    price = penalty.tolist()
    size, inverse = steps.tolist(), (1 / steps).tolist()
    cost = torch.full((rows, states), _NEVER, device=device)
    cost[:, 0] = 0.0
    left = weight[:, None, :].repeat(1, states, 1)  # what each survivor still has to express
    codes = torch.empty(columns, rows, states, dtype=torch.int8, device=device)
    parents = torch.empty(columns, rows, states, dtype=torch.uint8, device=device)
    for start in range(0, columns, _SPAN):
        end = min(start + _SPAN, columns)
        width = end - start
        # Corrected weights of the span, then the errors made in it: both follow the survivors.
        near = torch.cat([left[:, :, :width], left.new_zeros(rows, states, width)], 2)
        ancestor = torch.arange(states, device=device).expand(rows, states)
        for i, j in enumerate(range(start, end)):
            x = near[:, :, i] * inverse[j]
            code, point = _candidates(x, grid, parity, states)
            miss = x[..., None] - point
            total = cost[..., None] + gain[j] * miss.square()
            if price[j]:
                total = total + price[j] * point.square()
            ways = total.view(rows, -1)[:, into]
            best, which = ways.min(2)
            chosen = into.expand(rows, -1, -1).gather(2, which[..., None])[..., 0]
            parent = chosen >> 1
            cost = best
            codes[j] = code.view(rows, -1).gather(1, chosen)
            parents[j] = parent
            error = miss.view(rows, -1).gather(1, chosen) * (size[j] / float(diagonal[j]))
            if states > 1:
                near = near.view(rows * states, -1)[(base + parent).flatten()]
                near = near.view(rows, states, -1)
                ancestor = ancestor.gather(1, parent)
            near[:, :, width + i] = error
            near[:, :, i + 1 : width] -= error[..., None] * factor[j, j + 1 : end]
        rest = left[:, :, width:]
        if rest.size(2):
            if states > 1:
                flat = (base + ancestor).flatten()
                rest = rest.reshape(rows * states, -1)[flat]
            errors = near[:, :, width:].reshape(rows * states, width)
            left = torch.addmm(
                rest.reshape(rows * states, -1), errors, factor[start:end, end:], alpha=-1
            )
            left = left.view(rows, states, -1)
    return _walk_back(codes, parents, cost.argmin(1))


def _candidates(x: Tensor, grid: Tensor, parity: Tensor, states: int) -> tuple[Tensor, Tensor]:
    """The nearest code of each parity and its point, (rows, states, 2) each."""
    x = x[..., None]
    if states == 1:
        code = (2 * ((x - parity) * 0.5).round() + parity).clamp(-LARGEST, LARGEST)
        return code, code
    # Even grid: the points 2k. Odd grid: k = 0, and beyond it 2k - sign(k).
    # Zero takes the side of the positive: a code of its parity may not be 0.
    sign = torch.where(x < 0, -1.0, 1.0)
    # The odd grid as seen from |x|: codes m at 2m - 1, so that m is nearest to (|x| + 1) / 2.
    shifted = torch.where(grid > 0, (x.abs() + 1) * 0.5, x.abs() * 0.5)
    code = 2 * ((shifted - parity) * 0.5).round() + parity
    # On the odd grid an even code below 1.5 is 0, and an odd one is at least 1.
    small = (grid > 0) & (code < 1 + parity)
    code = torch.where(small, parity.expand_as(code), code)
    zero = (grid > 0) & (parity == 0) & (x.abs() < 1.5)
    code = torch.where(zero, torch.zeros_like(code), code)
    code = torch.where(code > LARGEST - 1, LARGEST - 1 + parity, code)
    return sign * code, sign * (2 * code - grid * (code > 0))


def _walk_back(codes: Tensor, parents: Tensor, state: Tensor) -> Tensor:
    """The codes (rows, columns) on the paths that end in these states (rows,)."""
    found = torch.empty(codes.shape[:2], dtype=torch.int8, device=codes.device)
    state = state[:, None]
    for j in reversed(range(len(codes))):
        found[j] = codes[j].gather(1, state)[:, 0]
        state = parents[j].gather(1, state).long()
    return found.T.contiguous()
