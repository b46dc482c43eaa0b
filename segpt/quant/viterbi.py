"""Codes by trellis search, each survivor with its own GPTQ error feedback.

GPTQ rounds column by column and lets later columns make up for each error (arXiv 2210.17323). A
trellis chooses the grid of a column by the codes before it, so the best path is not the nearest
code at each step: Viterbi's algorithm keeps the best path into every state. The paths have made
different errors, so every one carries its own corrected weights ("per-survivor processing",
Raheli et al. 1995). All rows run at once; so one implementation serves CPU and CUDA. On a CPU,
where numba is installed, :mod:`segpt.quant.compiled_search` goes through the columns instead,
with the same choices.
"""

import numpy as np
import torch
from torch import Tensor

from segpt.trellis import machine

from . import compiled_search
from .compiled_search import LARGEST

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
    loops = compiled_search.choose(weight.numel()) if weight.device.type == "cpu" else None
    if loops is not None:
        alone = [*zip(factor, steps, penalty, strict=True)]
        looped = [
            torch.stack([_looped(loops, w, *alone[k], states=states) for k, w in enumerate(band)])
            for band in bands
        ]
        return torch.cat(looped, 1)
    return torch.cat([_encode(band, factor, steps, states, penalty) for band in bands], 1)


@torch.inference_mode()
def _encode(weight: Tensor, factor: Tensor, steps: Tensor, states: int, penalty: Tensor) -> Tensor:
    """Codes (weights, rows, columns) of a stack, span by span of columns."""
    search = _Search(weight, factor, steps, states, penalty)
    for start in range(0, weight.size(2), _SPAN):
        search.take_span(start, min(start + _SPAN, weight.size(2)))
    return search.cheapest().view(weight.shape)


@torch.inference_mode()
def _looped(
    loops: compiled_search.SearchLoops,
    weight: Tensor,
    factor: Tensor,
    steps: Tensor,
    penalty: Tensor,
    *,
    states: int,
) -> Tensor:
    """Codes (rows, columns) of a weight, as :func:`_encode` finds them, by compiled loops."""
    assert loops.span is not None  # or torch would search
    assert loops.walk_back is not None
    rows, columns = weight.shape
    diagonal = factor.diagonal()
    size = (steps.double() / diagonal.double()).float()
    scales = torch.stack([1 / steps, (steps / diagonal).square(), size, penalty], 1)
    first, second = _ways(states)
    grid = torch.from_numpy(machine(states).grid) if states > 1 else torch.tensor([-1])
    table = torch.stack([first, second, grid.long()]).numpy()
    cost = torch.full((rows, states), _NEVER)
    cost[:, 0] = 0.0
    left = weight.reshape(rows, 1, columns).repeat(1, states, 1)
    codes = np.empty((columns, rows, states), np.int8)
    parents = np.empty((columns, rows, states), np.uint8)
    first_of_row = torch.arange(rows)[:, None] * states
    for start in range(0, columns, _SPAN):
        end = min(start + _SPAN, columns)
        per_column = torch.cat([scales[start:end], factor[start:end, start:end]], 1)
        errors = torch.empty(rows, states, end - start)
        ancestor = torch.empty(rows, states, dtype=torch.int64)
        loops.span(
            left.numpy(),
            cost.numpy(),
            per_column.numpy(),
            table,
            codes[start:end],
            parents[start:end],
            errors.numpy(),
            ancestor.numpy(),
        )
        if end < columns:
            rest = left.view(rows * states, -1)[:, end - start :]
            rest = rest.index_select(0, (first_of_row + ancestor).flatten())
            made = errors.view(rows * states, -1)
            left = rest.addmm_(made, factor[start:end, end:], alpha=-1).view(rows, states, -1)
    path = np.empty((rows, columns), np.int8)
    loops.walk_back(codes, parents, cost.argmin(1).numpy(), path)
    return torch.from_numpy(path)


def _ways(states: int) -> tuple[Tensor, Tensor]:
    """The two ways into every state (states,) each, as 2 * state + parity of the code."""
    following = torch.from_numpy(machine(states).following).flatten()
    first, second = following.argsort(stable=True).view(states, 2).T.contiguous().unbind()
    return first, second


class _Search:
    """Viterbi's algorithm over the columns of all rows of a stack at once.

    In every row each state of the machine has a survivor: the cheapest path into it so far. Two
    paths lead into a state, an even code from some state and an odd one from some state, of which
    the cheaper survives::

        column        j - 1              j
        state a    cost, weights --even--+
                                         +--> the cheaper of both: cost, weights, error
        state b    cost, weights --odd---+

    A survivor takes along its own cost, and its own weights: with E_j the error that it makes in
    column j, as GPTQ scales it, w_k <- w_k - E_j factor[j, k] for every later column k. Within a
    span of columns that is done after each of them, beyond it once for all of them.

    Of its tensors ``cost`` is (rows, states), ``left`` (rows, states, columns that are left), the
    corrected weights, and ``codes`` and ``parents`` (columns, rows, states), the code of each
    survivor in each column and the state that it came from.
    """

    def __init__(
        self, weight: Tensor, factor: Tensor, steps: Tensor, states: int, penalty: Tensor
    ) -> None:
        self.count, self.height, columns = weight.shape
        self.states, self.factor = states, factor
        self.factor_rows = factor[:, None, None].unbind(3)
        rows, device, m = self.count * self.height, weight.device, machine(states)
        grid = torch.from_numpy(m.grid).to(device).float()
        self.candidates = _Candidates(None if states == 1 else grid, device)
        self.first, self.second = (ways.to(device) for ways in _ways(states))
        self.ways = torch.cat([self.first, self.second])
        self.first_of_row = torch.arange(rows, device=device)[:, None] * states
        diagonal = factor.diagonal(dim1=1, dim2=2)
        self.gain = _by_column((steps / diagonal).square()[..., None], self.height)
        self.inverse = _by_column(1 / steps, self.height)
        self.error_size = _by_column((steps.double() / diagonal.double()).float(), self.height)
        self.price = _by_column(penalty[..., None], self.height) if penalty.any() else None
        self.cost = torch.full((rows, states), _NEVER, device=device)
        self.cost[:, 0] = 0.0
        self.left = weight.reshape(rows, 1, columns).repeat(1, states, 1)
        self.codes = torch.empty(columns, rows, states, dtype=torch.int8, device=device)
        self.parents = torch.empty(columns, rows, states, dtype=torch.uint8, device=device)
        self.code_rows, self.parent_rows = self.codes.unbind(), self.parents.unbind()

    def take_span(self, start: int, end: int) -> None:
        """Take columns ``start`` to ``end`` one by one, and correct all after them at once."""
        width, rows = end - start, len(self.cost)
        # (rows, states, 2 width): the weights of the span, then the errors made in it. They are
        # one tensor because both follow the survivors.
        carried = torch.cat(
            [self.left[:, :, :width], self.left.new_zeros(rows, self.states, width)], 2
        )
        # The state at the beginning of the span that each survivor came from.
        ancestor = torch.arange(self.states, device=carried.device).expand(rows, self.states)
        for i, j in enumerate(range(start, end)):
            parent, error = self.take_column(j, carried.select(2, i))
            if self.states > 1:
                carried = self._of_states(carried, parent)
                ancestor = ancestor.gather(1, parent)
            carried.select(2, width + i).copy_(error)
            if i + 1 < width:
                by_weight = self.count, self.height, self.states
                left = width - 1 - i
                later = carried.view(*by_weight, -1).narrow(3, i + 1, left)
                later -= error.view(*by_weight, 1) * self.factor_rows[j].narrow(3, j + 1, left)
        self._correct(start, end, carried[:, :, width:], ancestor)

    def take_column(self, j: int, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Find the survivors of column j.

        Args:
            j: the column.
            weights: (rows, states), of the survivors of the column before.

        Returns:
            (rows, states) the state that each survivor came from, and (rows, states) the error
            that it makes here, as GPTQ scales it.
        """
        rows, uniform = len(weights), self.states == 1
        x = weights * self.inverse[j]
        # Machines mirror at zero, so their points are sought by size; a uniform grid does not.
        size = x if uniform else x.abs()
        code, point = self.candidates.nearest(size)
        miss = size[..., None] - point
        if not uniform:
            sign = torch.where(x < 0, -1.0, 1.0)[..., None]
            code.mul_(sign)
            miss.mul_(sign)
        total = miss.square().mul_(self.gain[j]).add_(self.cost[..., None])
        if self.price is not None:
            total += point.square().mul_(self.price[j])
        both = total.view(rows, -1).index_select(1, self.ways)
        by_first = both.narrow(1, 0, self.states)
        by_second = both.narrow(1, self.states, self.states)
        self.cost = torch.minimum(by_first, by_second)
        way = torch.where(by_second < by_first, self.second, self.first)
        parent = way >> 1  # a way is 2 * state + parity
        self.code_rows[j].copy_(code.view(rows, -1).gather(1, way))
        self.parent_rows[j].copy_(parent)
        return parent, miss.view(rows, -1).gather(1, way).mul_(self.error_size[j])

    def cheapest(self) -> Tensor:
        """The codes (rows, columns) on the cheapest path of each row."""
        return _walk_back(self.codes, self.parents, self.cost.argmin(1))

    def _of_states(self, x: Tensor, state: Tensor) -> Tensor:
        """``x`` (rows, states, ...) of the survivors that are in ``state`` (rows, states)."""
        flat = (self.first_of_row + state).flatten()
        return x.reshape(len(x) * self.states, -1).index_select(0, flat).view(*x.shape[:2], -1)

    def _correct(self, start: int, end: int, errors: Tensor, ancestor: Tensor) -> None:
        """Correct the weights after a span for the errors (rows, states, width) made in it."""
        rest = self.left[:, :, end - start :]
        if not rest.size(2):
            return
        if self.states > 1:
            rest = self._of_states(rest, ancestor)
        paths = self.count, self.height * self.states
        rest, errors = rest.reshape(*paths, -1), errors.reshape(*paths, end - start)
        # One product for each weight: how a stack is added up would depend on its height.
        products = [
            torch.addmm(rest[k], errors[k], self.factor[k, start:end, end:], alpha=-1)
            for k in range(self.count)
        ]
        self.left = torch.stack(products).view(len(self.cost), self.states, -1)


def _by_column(values: Tensor, height: int) -> tuple[Tensor, ...]:
    """What each row (rows, 1) of a stack takes of values (weights, columns), column by column.

    Values (weights, columns, 1) give (rows, 1, 1).
    """
    return values.transpose(0, 1).repeat_interleave(height, 1)[..., None].contiguous().unbind()


class _Candidates:
    """The nearest code of each parity, and its point.

    What depends on the grid alone is made once: searches are many small steps.
    """

    def __init__(self, grid: Tensor | None, device: torch.device) -> None:
        """Take a grid (states,).

        It is 0 for the even grid with its points at 2k, 1 for the odd one: 0, and beyond it
        2k - sign(k); None for the uniform grid, where a code is its point.
        """
        self.parity = torch.tensor([0.0, 1.0], device=device)
        self.half, self.most = 0.5 * self.parity, LARGEST - 1 + self.parity
        self.grid = None if grid is None else grid[:, None]
        if grid is not None:
            self.quarter, self.odd = 0.25 * grid, grid > 0

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and points, (rows, states, 2) each.

        ``x`` (rows, states) is how far from zero; with its sign on the uniform grid.
        """
        parity = self.parity
        if self.grid is None:
            code = (2 * ((x[..., None] - parity) * 0.5).round() + parity).clamp(-LARGEST, LARGEST)
            return code, code
        # The odd grid as seen from zero: codes m at 2m - 1, so that m is nearest to (size + 1) / 2.
        quarter = torch.add(self.quarter, x, alpha=0.25)
        code = (quarter[..., None] - self.half).round_().mul_(2).add_(parity)
        # An even code is at least 0 and an odd one at least 1; on the odd grid 1.5 is nearer to 0.
        code = code.clamp_(parity, self.most)
        code[..., 0].masked_fill_((x < 1.5) & self.odd, 0.0)
        return code, 2 * code - torch.minimum(code, self.grid)


def _walk_back(codes: Tensor, parents: Tensor, state: Tensor) -> Tensor:
    """The codes (rows, columns) on the paths that end in these states (rows,)."""
    path = torch.empty(codes.shape[:2], dtype=torch.int8, device=codes.device)
    state = state[:, None]
    for j in reversed(range(len(codes))):
        path[j] = codes[j].gather(1, state)[:, 0]
        state = parents[j].gather(1, state).long()
    return path.T.contiguous()
