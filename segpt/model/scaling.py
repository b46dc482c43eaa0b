"""How weights start and how fast they learn: pure functions of role, shape and seed."""

import math

import torch
from torch import Tensor

from segpt.config.layout import Role, Weight, layout
from segpt.config.model import ModelSpec
from segpt.config.optimizer import Optimizer, Rule
from segpt.config.train import Scaling

from .model import Model
from .params import Matrix, Table, Vector, weights


def multiplier(weight: Weight, scaling: Scaling, rule: Rule) -> float:
    """What the rate of a weight is multiplied by, from its role and fan-in (arXiv 2203.03466).

    Args:
        weight: its place in the layout.
        scaling: without ``mup`` it is 1 for all.
        rule: what updates the weight, which says how its updates grow with the width.
    """
    mup = scaling.mup
    if mup is None or weight.role is Role.VECTOR:
        return 1.0
    wider = weight.shape[-1] / mup.base_width
    if weight.role is Role.TABLE:
        return float(mup.table * wider**mup.table_power)
    if weight.role is Role.HEAD:
        return float(mup.head * wider**mup.head_power)
    match rule.grows_with:
        case "fan-in":
            return float(wider**mup.matrix_power)
        case "larger side":
            return float((max(weight.shape[-2:]) / mup.base_width) ** -0.5)
        case None:
            return 1.0


def multipliers(spec: ModelSpec, scaling: Scaling, optimizer: Optimizer) -> dict[str, float]:
    """The :func:`multiplier` of each weight of a model, by name."""
    return {w.name: multiplier(w, scaling, optimizer.rule(w)) for w in layout(spec)}


@torch.no_grad()
def initialise(model: Model, scaling: Scaling, seed: int) -> None:
    """Fill every weight from its role; the same seed gives the same model on any device."""
    generator = torch.Generator().manual_seed(seed)
    for weight in weights(model):
        match weight.param:
            case Vector(init=init):
                value = torch.tensor(init, dtype=torch.float32)
                rows = value.view(-1, *[1] * (weight.tensor.dim() - 1)) if value.dim() else value
                weight.tensor.copy_(rows.expand(weight.tensor.shape))
            case Table(zero=zero):
                noise = _normal(weight.tensor, scaling.cut, generator)
                deviation = _table_deviation(scaling, weight.tensor.size(1))
                weight.tensor.copy_(torch.zeros_like(noise) if zero else noise * deviation)
            case Matrix(diagonal=float(spread)):
                noise = torch.randn(min(weight.tensor.shape), generator=generator)
                weight.tensor.zero_().diagonal().copy_(spread * noise)
            case Matrix(std=float(std)):
                weight.tensor.copy_(std * torch.randn(weight.tensor.shape, generator=generator))
            case Matrix(zero=zero, rows=rows, output=output):
                noise = _noise(weight.tensor, scaling, generator)
                if zero and not (output and scaling.outputs == "random"):
                    weight.tensor.zero_()
                else:
                    weight.tensor.copy_(_spread(noise, scaling, weight.role))
                if rows is not None:
                    weight.tensor[rows:] = 0


def _normal(like: Tensor, cut: float | None, generator: torch.Generator) -> Tensor:
    """Normal numbers in the shape of ``like``, without what lies beyond ``cut``."""
    if cut is None:
        return torch.randn(like.shape, generator=generator)
    share = torch.rand(like.shape, generator=generator, dtype=torch.float64)
    inner = math.erf(cut / math.sqrt(2))
    return (torch.erfinv(inner * (2 * share - 1)) * math.sqrt(2)).float()


def _noise(like: Tensor, scaling: Scaling, generator: torch.Generator) -> Tensor:
    """Random numbers of about unit deviation in the shape of a matrix."""
    if scaling.matrix == "uniform":
        return math.sqrt(3) * (2 * torch.rand(like.shape, generator=generator) - 1)
    return _normal(like, scaling.cut, generator)


def _table_deviation(scaling: Scaling, width: int) -> float:
    deviation = scaling.table if scaling.table_by == "itself" else scaling.table / math.sqrt(width)
    if scaling.mup is None:
        return deviation
    return float(deviation * (width / scaling.mup.base_width) ** scaling.mup.table_start)


def _spread(noise: Tensor, scaling: Scaling, role: Role) -> Tensor:
    gain = scaling.gain
    if scaling.mup is not None and role is Role.HEAD:
        gain *= (noise.size(1) / scaling.mup.base_width) ** scaling.mup.head_start
    return _even(noise, scaling) if gain == 1 else gain * _even(noise, scaling)


def _even(noise: Tensor, scaling: Scaling) -> Tensor:
    """Orthogonal, or of the deviation 1/sqrt(fan-in)."""
    rows, columns = noise.shape
    if scaling.matrix != "orthogonal" or min(rows, columns) < 64:
        return noise / math.sqrt(columns)
    # orthonormal rows or columns, whichever are fewer (Saxe et al., arXiv 1312.6120)
    wide = noise if rows <= columns else noise.T
    q, r = torch.linalg.qr(wide.T)
    q = (q * r.diagonal().sign()).T
    return q if rows <= columns else q.T
