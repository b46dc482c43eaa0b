"""A tiny model that has a bit of everything, looped and with no matrix at zero; text for it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.config.expand import expand
from segpt.config.layout import Role
from segpt.config.train import Scaling
from segpt.model.build import build
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.model.scaling import initialise

MakeModel = Callable[..., Model]
Text = list[NDArray[np.int64]]


@pytest.fixture(scope="session")
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


def _chain(seed: int, count: int) -> Text:
    draw = np.random.default_rng(seed)
    following = np.random.default_rng(0).dirichlet(np.full(64, 0.1), 64).cumsum(1)
    found = []
    for _ in range(count):
        block = np.empty((32, 17), np.int64)
        block[:, 0] = draw.integers(0, 64, 32)
        for t in range(1, 17):
            below = following[block[:, t - 1]] < draw.random((32, 1))
            block[:, t] = below.sum(1).clip(max=63)
        found.append(block)
    return found


@pytest.fixture(scope="session")
def chain() -> Callable[[int, int], Text]:
    """``chain(seed, count)`` draws blocks (32, 17) from one Markov chain over 64 tokens."""
    return _chain


@pytest.fixture(scope="session")
def trained(tiny: MakeModel) -> MakeModel:
    """``trained(**changes)`` is such a model after a few steps on the chain; not to be changed."""
    made: dict[str, Model] = {}

    def make(**changes: Any) -> Model:
        if (key := repr(changes)) not in made:
            made[key] = _train(tiny(**changes))
        return made[key]

    return make


def _train(model: Model) -> Model:
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for block in _chain(1, 150):
        tokens = torch.from_numpy(block)
        logits = model(tokens[:, :-1]).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model
