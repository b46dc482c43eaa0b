"""How weights start: a pure function of role, shape and seed."""

import math

import torch
from torch import Tensor

from segpt.spec.train import Scaling

from .leaves import Matrix, Table, Vector, weights
from .model import Model


@torch.no_grad()
def initialise(model: Model, scaling: Scaling, seed: int) -> None:
    """Fill every weight from its role; the same seed gives the same model on any device."""
    generator = torch.Generator().manual_seed(seed)
    for weight in weights(model):
        match weight.leaf:
            case Vector(init=init):
                value = torch.tensor(init, dtype=torch.float32)
                rows = value.view(-1, *[1] * (weight.tensor.dim() - 1)) if value.dim() else value
                weight.tensor.copy_(rows.expand(weight.tensor.shape))
            case Table():
                noise = torch.randn(weight.tensor.shape, generator=generator)
                weight.tensor.copy_(noise * scaling.table)
            case Matrix(diagonal=float(spread)):
                noise = torch.randn(min(weight.tensor.shape), generator=generator)
                weight.tensor.zero_().diagonal().copy_(spread * noise)
            case Matrix(zero=zero):
                noise = torch.randn(weight.tensor.shape, generator=generator)
                weight.tensor.copy_(torch.zeros_like(noise) if zero else _spread(noise, scaling))


def _spread(noise: Tensor, scaling: Scaling) -> Tensor:
    rows, columns = noise.shape
    if scaling.matrix == "normal" or min(rows, columns) < 64:
        return noise / math.sqrt(columns)
    # orthonormal rows or columns, whichever are fewer (Saxe et al., arXiv 1312.6120)
    wide = noise if rows <= columns else noise.T
    q, r = torch.linalg.qr(wide.T)
    q = (q * r.diagonal().sign()).T
    return q if rows <= columns else q.T
