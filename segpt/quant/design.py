"""Steps by design: fine where an error costs much, coarse where it costs little.

GPTQ's loss is the sum of (error / U[j, j])^2 over columns, U being the factor of the inverse
curvature, so at high rate the errors that cost least for their bits have steps in proportion to
U[j, j] ("reverse water-filling", Cover and Thomas, section 10.3.3). At the rates of interest, and
with an estimated curvature, a power below 1 does better. The curvature is in nats for all weights
alike, so that one factor, the *scale*, sets the rate of a whole model.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segpt import trellis
from segpt.config.layout import Role, layout
from segpt.config.quant import QuantSpec
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.values import EXPONENTS, TrellisWeight

from .gptq import RETRIES, inverse_factor
from .sensitivity import Sensitivity
from .viterbi import LARGEST, encode

# A trellis reaches the rate of a uniform grid with this fraction of its step.
_TRELLIS_STEP = 0.62
_BAND = 32  # rows that are coded at once, before later rows are corrected
_OUTPUT_DAMPING = 0.05
_FLOOR = 0.02  # of the mean: rows that calibration hardly saw matter at least so much
_WIDER = 24  # by how much a row's exponent may rise above its design, to hold the row
_REACH = 48  # of row and column exponents about their mean: six octaves
# The furthest point that may be wanted, as a fraction of the furthest one that has a code: the
# corrections that come with the errors of earlier columns need room.
_ROOM = 0.9
_FINEST, _COARSEST = 2.0**-60, 2.0**40  # steps that stay normal float32 with any exponents
_UNKNOWN = 0.25  # of the root mean square: the coarsest step where the curvature has no factor
_ALIKE = 0.3  # rows share one if at most this fraction of their energy is lost by it
_FEWEST_SHARED = 8


class Design(NamedTuple):
    """How one weight is to be stored, up to the scale common to all.

    Attributes:
        factor: (columns, columns) float32, upper triangular, of the inverse curvature.
        level: the step at scale 1 where both exponents are 0.
        rows: (stored rows,) exponents of the steps in eighths of an octave.
        columns: (columns,) likewise.
        centre: (columns,) float16 values that stored rows are relative to, or None.
        stored: (all rows,) bool, or None if all rows are stored.
        shared: (columns,) float16, the row for those that are not stored, or None.
        order: (stored rows,) in which rows are coded, or None if they do not matter together.
        mixing: (stored rows, stored rows) float32, upper triangular in that order, of the inverse
            of how outputs matter together; None without an order.
        fallback: whether the curvature had no factor, so that errors are not fed back.
    """

    factor: Tensor
    level: float
    rows: Tensor
    columns: Tensor
    centre: Tensor | None
    stored: Tensor | None
    shared: Tensor | None
    order: Tensor | None
    mixing: Tensor | None
    fallback: bool

    def scaled(self, multiplier: float) -> "Design":
        return self._replace(level=self.level * multiplier)


def design(
    weight: Tensor,
    sensitivity: Sensitivity,
    role: Role,
    *,
    by_row: float = 0.5,
    by_column: float = 0.5,
    damping: float = 0.01,
    two_sided: bool = True,
    seen: Tensor | None = None,
) -> Design:
    """Choose the steps of ``weight`` (rows, columns), up to the scale of the model.

    Args:
        weight: the weight.
        sensitivity: of the weight.
        role: tables and heads may be centred, and their rows that no text has trained shared.
        by_row: steps rise with this power of the inverse root of a row's sensitivity.
        by_column: steps rise with this power of U[j, j].
        damping: fraction of the mean of the curvature's diagonal that is added to it.
        two_sided: let rows make up for the errors of rows coded before them.
        seen: (rows,) bool, which tokens occur in training text, for a table or head.
    """
    rows = sensitivity.rows.to(weight.device).nan_to_num(0.0, 0.0, 0.0)
    centre = stored = shared = None
    if role in (Role.TABLE, Role.HEAD):
        stored, shared = _shared(weight, seen)
        kept = weight if stored is None else weight[stored]
        rows = rows if stored is None else rows[stored]
        centre = _centre(kept)
    factor, fallback = _factor(sensitivity.curvature, damping)
    diagonal = factor.diagonal().double()
    middle = float(diagonal.log().mean().exp())
    mean = float(rows.mean())
    matters = rows + _FLOOR * mean if mean > 0 else torch.ones_like(rows)
    freedom = matters**-0.5
    order = mixing = None
    if two_sided and sensitivity.outputs is not None and mean > 0:
        order = rows.argsort(descending=True, stable=True)
        mixing, alone = _factor(sensitivity.outputs[order][:, order], _OUTPUT_DAMPING)
        order, mixing = (None, None) if alone else (order, mixing)
        if order is not None and mixing is not None:
            freedom[order] = mixing.diagonal().double()
    return Design(
        factor,
        middle,
        _exponents(freedom.log2() * by_row),
        _exponents(diagonal.log2() * by_column),
        centre,
        stored,
        shared,
        order,
        mixing,
        fallback,
    )


def designs(
    model: Model,
    found: Mapping[str, Sensitivity],
    spec: QuantSpec,
    seen: Tensor | None = None,
) -> dict[str, Design]:
    """The :func:`design` of every weight of a model whose sensitivity is given, by name.

    ``seen`` (vocab,) is true for the tokens that calibration met.
    """
    hashed = {w.name for w in layout(model.spec) if w.role is Role.TABLE and not w.by_token}
    return {
        w.name: design(
            w.tensor.detach(),
            found[w.name],
            w.role,
            by_row=spec.by_row,
            by_column=spec.by_column,
            damping=spec.damping,
            two_sided=spec.two_sided,
            seen=None if w.name in hashed else seen,
        )
        for w in weights(model)
        if w.name in found
    }


def scale_for(model: Model, plans: Mapping[str, Design], rate: float) -> float:
    """About the scale at which Gaussian weights take ``rate`` bits each."""
    bits = total = 0.0
    for weight in weights(model):
        if (plan := plans.get(weight.name)) is not None:
            spread = float(weight.tensor.detach().square().mean().sqrt()) or 1e-9
            bits += weight.tensor.numel() * (2.05 + np.log2(spread / plan.level))
            total += weight.tensor.numel()
    return float(2 ** (bits / total - rate))


def to_stepped(
    weight: Tensor, plan: Design, scale: float, states: int, penalty: float = 0.0
) -> TrellisWeight:
    """Code a weight (rows, columns) at a scale of the model.

    Args:
        weight: the weight.
        plan: of :func:`design`.
        scale: what the levels of all weights are multiplied by.
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
        alone = task.plan.order is None or task.plan.mixing is None
        groups.setdefault(number if alone else task.kept.shape, []).append(number)
    found: dict[int, Tensor] = {}
    for numbers in groups.values():
        codes = _encode([tasks[number] for number in numbers], states)
        found |= dict(zip(numbers, codes, strict=True))
    return [task.stepped(found[number], states) for number, task in enumerate(tasks)]


class _Task(NamedTuple):
    """A weight that is to be coded.

    Attributes:
        plan: its design, whose rows may have been widened.
        level: the step where both exponents are 0.
        kept: (stored rows, columns), in units of the rows' own scales.
        steps: (columns,) the step of each column.
        price: (columns,) what a squared point costs, or None.
    """

    plan: Design
    level: float
    kept: Tensor
    steps: Tensor
    price: Tensor | None

    def stepped(self, codes: Tensor, states: int) -> TrellisWeight:
        plan = self.plan
        return TrellisWeight(
            states=states,
            codes=codes.cpu().numpy(),
            step=self.level,
            rows=_int8(plan.rows),
            columns=_int8(plan.columns),
            centre=None if plan.centre is None else plan.centre.cpu().numpy(),
            stored=None if plan.stored is None else plan.stored.cpu().numpy(),
            shared=None if plan.shared is None else plan.shared.cpu().numpy(),
        )


def _task(weight: Tensor, plan: Design, scale: float, states: int, penalty: float) -> _Task:
    kept = weight.float() if plan.stored is None else weight[plan.stored].float()
    if plan.centre is not None:
        kept = kept - plan.centre.float()
    relative = _powers(plan.columns)
    level = plan.level * scale * (_TRELLIS_STEP if states > 1 else 1.0)
    if plan.fallback:
        usual = (kept / _powers(plan.rows)[:, None] / relative).square().mean().sqrt()
        level = min(level, _UNKNOWN * float(usual))
    # A row that would need points beyond the last code gets wider steps; then, if need be, all.
    furthest = (kept.abs() / relative).amax(1) / (_ROOM * LARGEST * (2 if states > 1 else 1))
    level = max(level, float((furthest / _powers(plan.rows + _WIDER)).max()))
    level = float(np.float32(min(max(level, _FINEST), _COARSEST)))
    wider = (EXPONENTS * (furthest / level).log2()).ceil().clamp_min(-_REACH).to(plan.rows)
    rows = torch.minimum(torch.maximum(plan.rows, wider), plan.rows + _WIDER)
    kept = kept / _powers(rows)[:, None]
    steps = level * relative
    price = None
    if penalty:
        # A Gaussian code of deviation s takes x^2 / (2 s^2) nats at x, in steps.
        spread = (kept.square().mean(0).sqrt() / steps).clamp_min(1e-3)
        usual = (steps / plan.factor.diagonal()).log().mean().exp().square()
        price = penalty * usual / (2 * math.log(2) * spread.square())
    return _Task(plan._replace(rows=rows), level, kept, steps, price)


def _encode(tasks: Sequence[_Task], states: int) -> list[Tensor]:
    """Code weights (stored rows, columns) of one shape, errors fed back to both sides.

    The curvature being a Kronecker product, the best that later rows can do about errors e of
    earlier ones does not depend on columns: it is GPTQ's correction with the factor of the rows.
    Weights without an order of rows come alone.
    """
    steps = torch.stack([task.steps for task in tasks])
    factor = torch.stack([task.plan.factor for task in tasks])
    prices = [task.price for task in tasks if task.price is not None]
    penalty = torch.stack(prices) if prices else None
    orders = [task.plan.order for task in tasks if task.plan.order is not None]
    mixing = [task.plan.mixing for task in tasks if task.plan.mixing is not None]
    if not orders or not mixing:
        return [
            *encode(torch.stack([t.kept for t in tasks]), factor, steps, states, penalty=penalty)
        ]
    pairs = [*zip(tasks, orders, strict=True)]
    sizes = torch.stack([_powers(task.plan.rows)[order] for task, order in pairs])[..., None]
    left = torch.stack([task.kept[order] for task, order in pairs]) * sizes
    codes = torch.empty(left.shape, dtype=torch.int8, device=left.device)
    for start in range(0, left.size(1), _BAND):
        band, after = slice(start, start + _BAND), slice(start + _BAND, None)
        wanted = left[:, band] / sizes[:, band]
        codes[:, band] = encode(wanted, factor, steps, states, penalty=penalty)
        for number, mixed in enumerate(mixing):
            points = trellis.points(codes[number, band].cpu().numpy(), states)
            got = torch.from_numpy(points).to(left) * steps[number] * sizes[number, band]
            error = left[number, band] - got
            error = torch.linalg.solve_triangular(mixed[band, band].T, error, upper=False)
            left[number, after] -= mixed[band, after].T @ error
    found = torch.empty_like(codes)
    for number, order in enumerate(orders):
        found[number, order] = codes[number]
    return [*found]


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


def _factor(curvature: Tensor, damping: float) -> tuple[Tensor, bool]:
    """The factor of the inverse, and whether none was found: then the identity, scaled.

    The identity will do for a weight that does not matter at all, too.
    """
    curvature = curvature.double()
    known = bool(curvature.isfinite().all())
    size = float(curvature.diagonal().mean()) if known else 0.0
    if size > 0:
        for retry in range(RETRIES + 1):
            factor = inverse_factor(curvature, damping * 10**retry).float()
            if factor.isfinite().all() and (factor.diagonal() > 0).all():
                return factor, False
    identity = torch.eye(len(curvature), device=curvature.device)
    return identity * max(size, 1e-20) ** -0.5, not known or bool(curvature.any())


def _shared(weight: Tensor, seen: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Which rows to store, and the mean of the others: rows that nothing ever told apart."""
    if seen is None or int((~seen).sum()) < _FEWEST_SHARED or not seen.any():
        return None, None
    seen = seen.to(weight.device)
    seen = F.pad(seen, (0, len(weight) - len(seen)))  # rows to spare are of no token
    unseen = weight[~seen].double()
    mean = unseen.mean(0)
    alike = (unseen - mean).square().sum(1) <= _ALIKE * unseen.square().sum(1)
    if int(alike.sum()) < _FEWEST_SHARED:
        return None, None
    stored, shared = seen.clone(), unseen[alike].mean(0).half()
    stored[~seen] = ~alike
    return (stored, shared) if shared.isfinite().all() else (None, None)


def _centre(rows: Tensor) -> Tensor | None:
    """The mean row, if taking it out saves more than it takes."""
    rows = rows.double()
    mean = rows.mean(0)
    energy = float(rows.square().mean())
    share = float(mean.square().mean()) / energy if energy > 0 else 0.0
    saved = -0.5 * math.log2(max(1e-9, 1 - share)) * rows.numel()
    worthwhile = saved > 16 * len(mean) and mean.half().isfinite().all()
    return mean.half() if worthwhile else None


def _exponents(octaves: Tensor) -> Tensor:
    """Eighths of an octave about their mean, within reach."""
    centred = octaves - octaves.mean()
    return (EXPONENTS * centred).round().clamp(-_REACH, _REACH).to(torch.int32)


def _powers(exponents: Tensor) -> Tensor:
    return torch.exp2(exponents.double() / EXPONENTS).float()


def _int8(exponents: Tensor) -> NDArray[np.int8]:
    return exponents.cpu().numpy().astype(np.int8)
