"""Steps by design: fine where an error costs much, coarse where it costs little.

GPTQ's loss is the sum of (error / U[j, j])^2 over columns, U being the factor of the inverse
curvature, so at high rate the errors that cost least for their bits have steps in proportion to
U[j, j] ("reverse water-filling", Cover and Thomas, section 10.3.3). At the rates of interest, and
with an estimated curvature, a power below 1 does better. The curvature is in nats for all weights
alike, so that one factor, the *scale*, sets the rate of a whole model.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segpt.config.layout import Role, layout
from segpt.config.quant import QuantSpec
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.values import EXPONENTS

from .gptq import RETRIES, inverse_factor
from .sensitivity import Sensitivity

_OUTPUT_DAMPING = 0.05
_FLOOR = 0.02  # of the mean: rows that calibration hardly saw matter at least so much
REACH = 48  # of row and column exponents about their mean: six octaves
_ALIKE = 0.3  # rows share one if at most this fraction of their energy is lost by it
_FEWEST_SHARED = 8


class Design(NamedTuple):
    """How one weight is to be stored, up to the scale common to all.

    Attributes:
        inverse_factor: U, (columns, columns) float32, upper triangular: U^T U is the inverse of
            the curvature.
        base_step: the step at scale 1 where both exponents are 0.
        rows: (stored rows,) exponents of the steps in eighths of an octave.
        columns: (columns,) likewise.
        centre: (columns,) float16 values that stored rows are relative to, or None.
        stored: (all rows,) bool, or None if all rows are stored.
        shared: (columns,) float16, the row for those that are not stored, or None.
        order: (stored rows,) in which rows are coded, or None if they do not matter together.
        row_factor: (stored rows, stored rows) float32, the same in that order for how outputs
            matter together; None without an order.
        fallback: whether the curvature had no factor, so that errors are not fed back.
    """

    inverse_factor: Tensor
    base_step: float
    rows: Tensor
    columns: Tensor
    centre: Tensor | None
    stored: Tensor | None
    shared: Tensor | None
    order: Tensor | None
    row_factor: Tensor | None
    fallback: bool

    def scaled(self, multiplier: float) -> "Design":
        """The same, with steps that are wider by a factor."""
        return self._replace(base_step=self.base_step * multiplier)


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
    step_size = matters**-0.5  # of each row, up to a factor, at a power of 1
    order = row_factor = None
    if two_sided and sensitivity.outputs is not None and mean > 0:
        order = rows.argsort(descending=True, stable=True)
        row_factor, alone = _factor(sensitivity.outputs[order][:, order], _OUTPUT_DAMPING)
        order, row_factor = (None, None) if alone else (order, row_factor)
        if order is not None and row_factor is not None:
            step_size[order] = row_factor.diagonal().double()
    return Design(
        factor,
        middle,
        _exponents(step_size.log2() * by_row),
        _exponents(diagonal.log2() * by_column),
        centre,
        stored,
        shared,
        order,
        row_factor,
        fallback,
    )


def designs(
    model: Model,
    sensitivities: Mapping[str, Sensitivity],
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
            sensitivities[w.name],
            w.role,
            by_row=spec.by_row,
            by_column=spec.by_column,
            damping=spec.damping,
            two_sided=spec.two_sided,
            seen=None if w.name in hashed else seen,
        )
        for w in weights(model)
        if w.name in sensitivities
    }


def scale_for(model: Model, plans: Mapping[str, Design], rate: float) -> float:
    """About the scale at which Gaussian weights take ``rate`` bits each."""
    bits = total = 0.0
    for weight in weights(model):
        if (plan := plans.get(weight.name)) is not None:
            spread = float(weight.tensor.detach().square().mean().sqrt()) or 1e-9
            bits += weight.tensor.numel() * (2.05 + np.log2(spread / plan.base_step))
            total += weight.tensor.numel()
    return float(2 ** (bits / total - rate))


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
    return (EXPONENTS * centred).round().clamp(-REACH, REACH).to(torch.int32)
