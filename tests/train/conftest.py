"""A tiny looped model, a stream of tokens, and runs over them."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.config.base import decode
from segpt.config.expand import expand
from segpt.config.model import ModelSpec
from segpt.config.schedule import Steps
from segpt.config.train import TrainSpec
from segpt.train.mesh import Mesh
from segpt.train.trainer import Trainer
from tests.train.running import stream

VOCAB, CONTEXT = 61, 12


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    return expand(
        {
            "vocab": VOCAB,
            "width": 32,
            "context": CONTEXT,
            "depth": 3,
            "route": "0 (1)*2@0.5 2",
            "skips": "mirror",
            "layer": {
                "wiring": "parallel",
                "join": ["mix_input"],
                "mixer": {
                    "heads": 2,
                    "kv_heads": 1,
                    "head_dim": 16,
                    "query_key": ["norm", {"kind": "rope", "dims": 8}, "gain"],
                },
                "feed": {"hidden": 64, "act": "leaky_relu2"},
            },
        }
    )


@pytest.fixture(scope="session")
def how() -> TrainSpec:
    return decode(
        TrainSpec,
        {
            "length": {"kind": "steps", "count": 20},
            "batch": 8,
            "optimizer": {"matrix": {"kind": "muon", "decay": 0.1}, "table": {"decay": 0.05}},
            "average": {"decay": 0.9},
            "log_every": 1,
            "save_every": 5,
            "validate_every": 10,
        },
    )


@pytest.fixture(scope="session")
def batches() -> Callable[[int], NDArray[np.int64]]:
    """A learnable stream: each token mostly follows from the one before."""

    return stream(VOCAB, 8, CONTEXT)


@pytest.fixture
def make(spec: ModelSpec, how: TrainSpec) -> Callable[..., Trainer]:
    """A fresh run; keywords change fields of the training spec, ``steps`` its length."""

    def build(**changes: object) -> Trainer:
        if "steps" in changes:
            changes["length"] = Steps(count=int(str(changes.pop("steps"))))
        changed = dataclasses.replace(how, **changes)  # type: ignore[arg-type]
        return Trainer(spec, changed, Mesh(0, 1, torch.device("cpu")))

    return build
