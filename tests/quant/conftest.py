"""A tiny model that has a bit of everything, looped and with no matrix at zero."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from segpt.model.build import build
from segpt.model.leaves import weights
from segpt.model.model import Model
from segpt.model.scaling import initialise
from segpt.spec.layout import Role
from segpt.spec.model import expand
from segpt.spec.train import Scaling

MakeModel = Callable[..., Model]


@pytest.fixture
def tiny() -> MakeModel:
    """``tiny(**changes)`` builds a model from the recipe below with changed keys."""

    def make(**changes: Any) -> Model:
        recipe: dict[str, Any] = {
            "vocab": 64,
            "width": 32,
            "context": 16,
            "depth": 2,
            "head": {"tied": True, "softcap": 30.0},
            "layer": {
                "mixer": {
                    "heads": 2,
                    "kv_heads": 1,
                    "head_dim": 16,
                    "query_key": ["norm", {"kind": "rope", "dims": 8}],
                    "output": [{"kind": "head_gate", "inputs": 4}],
                },
                "feed": {"hidden": 48},
            },
        }
        model = build(expand(recipe | changes))
        initialise(model, Scaling(), seed=0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in weights(model):
                if weight.role is Role.MATRIX:
                    rows, columns = weight.tensor.shape
                    noise = torch.randn(rows, columns, generator=generator)
                    weight.tensor.copy_(noise / columns**0.5)
        return model.eval()

    return make
