"""A tiny model that has a bit of everything, and a stream for it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.model.build import build
from segpt.model.leaves import weights
from segpt.model.model import Model
from segpt.model.scaling import initialise
from segpt.spec.model import expand
from segpt.spec.train import Scaling

MakeModel = Callable[..., Model]
MakeStream = Callable[..., NDArray[np.uint32]]

VOCAB = 32


@pytest.fixture
def tiny() -> MakeModel:
    """``tiny(**changes)`` builds a model with no weight at zero; changes patch the recipe."""

    def make(*, noise: float = 0.3, **changes: Any) -> Model:
        recipe: dict[str, Any] = {
            "vocab": VOCAB,
            "width": 16,
            "context": 16,
            "depth": 2,
            "skips": "mirror",
            "head": {"tied": True, "softcap": 30.0},
            "layer": {
                "wiring": "parallel",
                "join": ["mix_input"],
                "mixer": {
                    "heads": 2,
                    "kv_heads": 1,
                    "head_dim": 8,
                    "query_key": ["norm", {"kind": "rope", "dims": 4}, {"kind": "gain"}],
                    "value": ["value_residual"],
                    "output": ["exclude_self", {"kind": "head_gate", "inputs": 4}],
                },
                "feed": {"hidden": 24},
            },
        }
        model = build(expand({**recipe, **changes}))
        initialise(model, Scaling(table=0.5), seed=1)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for weight in weights(model):
                weight.tensor.add_(
                    torch.randn(weight.tensor.shape, generator=generator), alpha=noise
                )
        return model.eval()

    return make


@pytest.fixture
def stream() -> MakeStream:
    """``stream(targets)`` draws ``targets + 1`` tokens, the same for the same seed."""

    def make(targets: int, seed: int = 0) -> NDArray[np.uint32]:
        generator = np.random.default_rng(seed)
        return generator.integers(0, VOCAB, targets + 1, dtype=np.uint32)

    return make
