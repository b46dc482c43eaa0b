"""Codes of weights in the steps of their designs, errors fed back along columns and rows."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt import trellis
from segpt.values import EXPONENTS, TrellisWeight

from . import compiled_search
from .compiled_search import LARGEST
from .design import REACH, Design
from .viterbi import encode

# A trellis reaches the rate of a uniform grid with this fraction of its step.
_TRELLIS_STEP = 0.62
_BAND = 32  # rows that are coded at once, before later rows are corrected
_WIDER = 24  # by how much a row's exponent may rise above its design, to hold the row
# The furthest point that may be wanted, as a fraction of the furthest one that has a code: the
# corrections that come with the errors of earlier columns need room.
_ROOM = 0.9
_FINEST, _COARSEST = 2.0**-60, 2.0**40  # steps that stay normal float32 with any exponents
_UNKNOWN = 0.25  # of the root mean square: the coarsest step where the curvature has no factor


def to_stepped(
    weight: Tensor, plan: Design, scale: float, states: int, penalty: float = 0.0
) -> TrellisWeight:
    """Code a weight (rows, columns) at a scale of the model.

    Args:
        weight: the weight.
        plan: of :func:`design`.
        scale: what the steps of all weights are multiplied by.
        states: of the trellis machine; 1 is a uniform grid.
        penalty: lambda of rate-distortion optimised rounding, in units of a step's own cost.
    """
    return all_to_stepped([(weight, plan, scale)], states, penalty)[0]


def all_to_stepped(
    items: Sequence[tuple[Tensor, Design, float]], states: int, penalty: float = 0.0
) -> list[TrellisWeight]:
    """:func:`to_stepped` of many weights (rows, columns), with the same results.

    Weights that are coded a few rows at a time go together with those of their shape: a search
    over so few numbers takes as long for several weights as for one.
    """
    tasks = [_task(*item, states, penalty) for item in items]
    groups: dict[object, list[int]] = {}
    for number, task in enumerate(tasks):
        group = number if task.by_rows is None else task.kept.shape
        groups.setdefault(group, []).append(number)
    codes: dict[int, Tensor] = {}
    for numbers in groups.values():
        together = [tasks[number] for number in numbers]
        codes |= dict(zip(numbers, _encode(together, states), strict=True))
    return [task.stepped(codes[number], states) for number, task in enumerate(tasks)]


class _Task(NamedTuple):
    """A weight that is to be coded.

    Attributes:
        plan: its design.
        base_step: the step where both exponents are 0.
        rows: (stored rows,) the exponents of ``plan``, higher where a row needs wider steps.
        kept: (stored rows, columns), what is coded, each row in units of its own scale.
        steps: (columns,) the step of each column, in these units.
        price: (columns,) what a squared point costs, or None.
    """

    plan: Design
    base_step: float
    rows: Tensor
    kept: Tensor
    steps: Tensor
    price: Tensor | None

    @property
    def by_rows(self) -> tuple[Tensor, Tensor] | None:
        """The order of rows and their factor, if rows make up for each other's errors."""
        order, factor = self.plan.order, self.plan.row_factor
        return None if order is None or factor is None else (order, factor)

    def stepped(self, codes: Tensor, states: int) -> TrellisWeight:
        plan = self.plan
        return TrellisWeight(
            states=states,
            codes=codes.cpu().numpy(),
            step=self.base_step,
            rows=_int8(self.rows),
            columns=_int8(plan.columns),
            centre=None if plan.centre is None else plan.centre.cpu().numpy(),
            stored=None if plan.stored is None else plan.stored.cpu().numpy(),
            shared=None if plan.shared is None else plan.shared.cpu().numpy(),
        )


def _task(weight: Tensor, plan: Design, scale: float, states: int, penalty: float) -> _Task:
    """What is coded of a weight, and in which steps.

    The step of weight (i, j) is base_step 2^((rows[i] + columns[j]) / 8): the base step is one
    number, and the exponents are int8.
    """
    kept = weight.float() if plan.stored is None else weight[plan.stored].float()
    if plan.centre is not None:
        kept = kept - plan.centre.float()
    columns = _powers(plan.columns)
    # The step with which each row just holds its weight that is furthest out, (stored rows,).
    points = LARGEST * (2 if states > 1 else 1)
    holding = (kept.abs() / columns).amax(1) / (_ROOM * points)
    designed = plan.base_step * scale * (_TRELLIS_STEP if states > 1 else 1.0)
    base_step = _base_step(kept, plan, designed, holding)
    needed = (EXPONENTS * (holding / base_step).log2()).ceil().clamp_min(-REACH).to(plan.rows)
    rows = torch.minimum(torch.maximum(plan.rows, needed), plan.rows + _WIDER)
    kept = kept / _powers(rows)[:, None]
    steps = base_step * columns
    price = None
    if penalty:
        # A Gaussian code of deviation s takes x^2 / (2 s^2) nats at x, in steps.
        spread = (kept.square().mean(0).sqrt() / steps).clamp_min(1e-3)
        usual = (steps / plan.inverse_factor.diagonal()).log().mean().exp().square()
        price = penalty * usual / (2 * math.log(2) * spread.square())
    return _Task(plan, base_step, rows, kept, steps, price)


def _base_step(kept: Tensor, plan: Design, designed: float, holding: Tensor) -> float:
    """The step where both exponents are 0, a float32.

    It is the one that the design asks for, unless

    - nothing is known of the curvature: then it is no coarser than a fraction of what is usual
      among the weights (stored rows, columns), each in units of its own exponents;
    - the row that reaches furthest could not be held, however far its exponent may rise: then it
      is as wide as that row needs, which ``holding`` (stored rows,) says;
    - it is so small or so large that float32 could not hold it with any exponents.
    """
    finest = float((holding / _powers(plan.rows + _WIDER)).max())
    coarsest = math.inf
    if plan.fallback:
        relative = kept / _powers(plan.rows)[:, None] / _powers(plan.columns)
        coarsest = _UNKNOWN * float(relative.square().mean().sqrt())
    step = max(min(designed, coarsest), finest)
    return float(np.float32(min(max(step, _FINEST), _COARSEST)))


def _encode(tasks: Sequence[_Task], states: int) -> list[Tensor]:
    """Codes (stored rows, columns) of weights of one shape; those without ``by_rows`` come alone.

    Errors are fed back to both sides::

                      columns
            +-----------------------+
            |  coded before         |
            +-----------------------+
            |  band   o-----------> |   along each row: :func:`encode`, by the factor of columns
            +-----------|-----------+
            |  left     v           |   down each column: here, by the factor of rows
            +-----------------------+

    The curvature being a Kronecker product, the best that later rows can do about errors of
    earlier ones does not depend on columns: it is GPTQ's correction with the factor of the rows.
    """
    steps = torch.stack([task.steps for task in tasks])
    factor = torch.stack([task.plan.inverse_factor for task in tasks])
    prices = [task.price for task in tasks if task.price is not None]
    penalty = torch.stack(prices) if prices else None
    by_rows = [task.by_rows for task in tasks if task.by_rows is not None]
    if not by_rows:
        kept = torch.stack([task.kept for task in tasks])
        return [*encode(kept, factor, steps, states, penalty=penalty)]
    # (weights, rows, columns), rows in their order. Where errors move from row to row all rows are
    # in one unit: `sizes` is (weights, rows, 1), that of each row.
    sizes = torch.stack(
        [_powers(task.rows)[order] for task, (order, _) in zip(tasks, by_rows, strict=True)]
    )[..., None]
    left = torch.stack([task.kept[order] for task, (order, _) in zip(tasks, by_rows, strict=True)])
    left = left * sizes
    codes = torch.empty(left.shape, dtype=torch.int8, device=left.device)
    for start in range(0, left.size(1), _BAND):
        band, after = slice(start, start + _BAND), slice(start + _BAND, None)
        wanted = left[:, band] / sizes[:, band]
        codes[:, band] = encode(wanted, factor, steps, states, penalty=penalty)
        for number, (_, row_factor) in enumerate(by_rows):
            points = compiled_search.points(codes[number, band].cpu().numpy(), states)
            decoded = torch.from_numpy(points).to(left) * steps[number] * sizes[number, band]
            errors = left[number, band] - decoded
            left[number, after] -= _passed_on(errors, row_factor, band, after)
    in_place = torch.empty_like(codes)
    for number, (order, _) in enumerate(by_rows):
        in_place[number, order] = codes[number]
    return [*in_place]


def _passed_on(errors: Tensor, factor: Tensor, band: slice, after: slice) -> Tensor:
    """What later rows (later, columns) lose to make up for the errors (band, columns) of a band.

    GPTQ goes row by row. With U the factor, row i of the band has the error e_i - sum of
    U[k, i] x_k over the rows k of the band before it, which would have corrected it, had it not
    been coded together with them. What it passes on is x_i, that error over U[i, i]; so x solves
    U[band, band]^T x = e, and later rows lose U[band, after]^T x.
    """
    passed = torch.linalg.solve_triangular(factor[band, band].T, errors, upper=False)
    return factor[band, after].T @ passed


def entropy(coded: TrellisWeight) -> float:
    """About the bits that the codes take: their entropy by grid and by deviation of the column."""
    codes = coded.codes.astype(np.int64)
    grid = trellis.grids(coded.codes, coded.states)
    spread = np.sqrt(np.square(codes).mean(0) + 1e-3)
    # Quarters of an octave, from 2^-5 upwards.
    classes = np.round(4 * np.log2(spread)).astype(np.int64) + 20
    keys = (classes * 2 + grid) * 256 + codes + 128
    counts = np.bincount(keys.ravel()).astype(np.float64)
    counts = np.pad(counts, (0, -len(counts) % 256)).reshape(-1, 256)
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.ones_like(counts), where=counts > 0)
    return float(-(counts * np.log2(shares)).sum())


def _powers(exponents: Tensor) -> Tensor:
    return torch.exp2(exponents.double() / EXPONENTS).float()


def _int8(exponents: Tensor) -> NDArray[np.int8]:
    return exponents.cpu().numpy().astype(np.int8)
