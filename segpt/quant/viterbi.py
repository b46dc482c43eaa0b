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
    Several weights of one shape may be stacked; all that follows has their dimension first, then.
    Small ones take little more time together than one of them alone, and get the same codes.

    Args:
        weight: (rows, columns) float32, rows already divided by their own scale.
        factor: (columns, columns) upper triangular, of the inverse Hessian.
        steps: (columns,) the step of each column.
        states: of the machine, see :mod:`segpt.trellis`; 1 is a uniform grid.
        penalty: (columns,) what a squared point costs in bits, times lambda.
    """
    if penalty is None:
        penalty = torch.zeros_like(steps)
    if weight.dim() == 2:
        return encode(weight[None], factor[None], steps[None], states, penalty=penalty[None])[0]
    bands = torch.split(weight, max(1, _ROWS // len(weight)), 1)
    return torch.cat([_encode(band, factor, steps, states, penalty) for band in bands], 1)


@torch.inference_mode()
def _encode(weight: Tensor, factor: Tensor, steps: Tensor, states: int, penalty: Tensor) -> Tensor:
    count, height, columns = weight.shape
    rows = count * height
    device = weight.device
    m = machine(states)
    grid = torch.from_numpy(m.grid).to(device).float()
    # The two ways into every state, as 2 * state + parity of the code; with one state, both.
    into = torch.from_numpy(m.following).to(device).flatten().argsort(stable=True).view(states, 2)
    first, second = into.T.contiguous()
    both = torch.cat([first, second])
    base = torch.arange(rows, device=device)[:, None] * states
    diagonal = factor.diagonal(dim1=1, dim2=2)
    gain = _by_column((steps / diagonal).square(), height)
    inverse = _by_column(1 / steps, height)
    size = _by_column((steps.double() / diagonal.double()).float(), height)
    price = _by_column(penalty, height) if penalty.any() else None
    cost = torch.full((rows, states), _NEVER, device=device)
    cost[:, 0] = 0.0
    # What each survivor still has to express.
    left = weight.reshape(rows, 1, columns).repeat(1, states, 1)
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
            sign, size_of_x = torch.where(x < 0, -1.0, 1.0), x.abs()
            code, point = _candidates(size_of_x, grid, x if states == 1 else None)
            miss = (x if states == 1 else size_of_x)[..., None] - point
            total = miss.square().mul_(gain[j][..., None]).add_(cost[..., None])
            if price is not None:
                total += point.square().mul_(price[j][..., None])
            ways = total.view(rows, -1).index_select(1, both)
            one, other = ways[:, :states], ways[:, states:]
            cost = torch.minimum(one, other)
            chosen = torch.where(other < one, second, first)
            parent = chosen >> 1
            if states > 1:
                code.mul_(sign[..., None])
                miss.mul_(sign[..., None])
            codes[j] = code.view(rows, -1).gather(1, chosen)
            parents[j] = parent
            error = miss.view(rows, -1).gather(1, chosen).mul_(size[j])
            if states > 1:
                near = near.view(rows * states, -1).index_select(0, (base + parent).flatten())
                near = near.view(rows, states, -1)
                ancestor = ancestor.gather(1, parent)
            near[:, :, width + i] = error
            if i + 1 < width:
                later = near.view(count, height, states, -1)[..., i + 1 : width]
                later -= (
                    error.view(count, height, states, 1) * factor[:, None, None, j, j + 1 : end]
                )
        rest = left[:, :, width:]
        if rest.size(2):
            if states > 1:
                flat = (base + ancestor).flatten()
                rest = rest.reshape(rows * states, -1).index_select(0, flat)
            rest = rest.reshape(count, height * states, -1)
            errors = near[:, :, width:].reshape(count, height * states, width)
            # One product for each weight: how a stack is added up would depend on its height.
            products = [
                torch.addmm(rest[k], errors[k], factor[k, start:end, end:], alpha=-1)
                for k in range(count)
            ]
            left = torch.stack(products).view(rows, states, -1)
    return _walk_back(codes, parents, cost.argmin(1)).view(count, height, columns)


def _by_column(values: Tensor, height: int) -> tuple[Tensor, ...]:
    """What each row (rows, 1) of a stack takes of values (weights, columns), column by column."""
    return values.T.repeat_interleave(height, 1)[..., None].contiguous().unbind()


def _candidates(size: Tensor, grid: Tensor, signed: Tensor | None) -> tuple[Tensor, Tensor]:
    """The nearest code of each parity and its point, (rows, states, 2) each, without their sign.

    Args:
        size: (rows, states), how far from zero.
        grid: (states,), 0 for the even grid with its points at 2k, 1 for the odd one: 0, and beyond
            it 2k - sign(k).
        signed: (rows, 1), on the uniform grid, whose codes come with their sign.
    """
    parity = torch.tensor([0.0, 1.0], device=size.device)
    if signed is not None:
        code = (2 * ((signed[..., None] - parity) * 0.5).round() + parity).clamp(-LARGEST, LARGEST)
        return code, code
    # The odd grid as seen from zero: codes m at 2m - 1, so that m is nearest to (size + 1) / 2.
    quarter = torch.add(0.25 * grid, size, alpha=0.25)
    code = (quarter[..., None] - 0.5 * parity).round_().mul_(2).add_(parity)
    # An even code is at least 0 and an odd one at least 1; on the odd grid 1.5 is nearer to 0.
    code = code.clamp_(parity, LARGEST - 1 + parity)
    code[..., 0].masked_fill_((size < 1.5) & (grid > 0), 0.0)
    return code, 2 * code - torch.minimum(code, grid[:, None])


def _walk_back(codes: Tensor, parents: Tensor, state: Tensor) -> Tensor:
    """The codes (rows, columns) on the paths that end in these states (rows,)."""
    found = torch.empty(codes.shape[:2], dtype=torch.int8, device=codes.device)
    state = state[:, None]
    for j in reversed(range(len(codes))):
        found[j] = codes[j].gather(1, state)[:, 0]
        state = parents[j].gather(1, state).long()
    return found.T.contiguous()
