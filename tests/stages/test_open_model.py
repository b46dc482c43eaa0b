"""Models from checkpoints in the middle of training."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from segpt.config.expand import expand
from segpt.config.layout import layout
from segpt.config.model import ModelSpec
from segpt.errors import CheckpointError
from segpt.stages.open_model import from_checkpoint, without_unjoined_visits
from segpt.values import Checkpoint, Tokenizer

RECIPE: dict[str, Any] = {
    "vocab": 40,
    "width": 32,
    "context": 8,
    "depth": 3,
    "join": ["mix_input"],
    "skips": "mirror",
    "head": "head",
    "layer": {
        "mixer": {"heads": 2, "kv_heads": 1, "head_dim": 16, "query_key": ["norm"]},
        "feed": {"hidden": 32},
    },
}
TOKENS = torch.arange(16).view(2, 8)


def checkpoint(progress: float, route: str = "0 (1)*3@0.4,0.8 2") -> Checkpoint:
    spec = expand(RECIPE | {"route": route})
    generator = np.random.default_rng(0)
    return Checkpoint(
        spec=spec,
        weights={
            w.name: generator.normal(0, 0.3, w.shape).astype(np.float32) for w in layout(spec)
        },
        tokenizer=Tokenizer("bytes", 40),
        step=1,
        progress=progress,
        documents=np.zeros(0, np.uint64),
        origin={},
    )


def names(spec: ModelSpec) -> list[str]:
    return [weight.name for weight in layout(spec)]


@pytest.mark.parametrize(
    ("route", "progress", "visits"),
    [
        ("0 (1)*3@0.4,0.8 2", 0.0, 3),
        ("0 (1)*3@0.4,0.8 2", 0.5, 4),
        ("0 (1)*3@0.4,0.8 2", 1.0, 5),
        ("(0)*2@0.4 1 2", 0.0, 3),  # a skip from a visit that has not joined
    ],
)
@torch.no_grad()
def test_settling_changes_names_but_no_logits(route: str, progress: float, visits: int) -> None:
    full = checkpoint(progress, route)
    model = from_checkpoint(full)
    assert not model.training
    assert len(model.active) == visits
    small = without_unjoined_visits(full)
    assert len(small.spec.visits) == visits
    assert list(small.weights) == names(small.spec)
    assert torch.equal(model(TOKENS), from_checkpoint(small)(TOKENS))


@torch.no_grad()
def test_unsettled_visits_would_change_the_logits() -> None:
    early, late = (from_checkpoint(checkpoint(p)) for p in (0.5, 1.0))
    assert not torch.allclose(early(TOKENS), late(TOKENS))


@pytest.mark.parametrize("progress", [0.5, 1.0])
def test_unknown_weights_are_refused(progress: float) -> None:
    full = checkpoint(progress)
    odd = dataclasses.replace(full, weights={**full.weights, "mlp_scale": np.ones(3)})
    with pytest.raises(CheckpointError, match="mlp_scale"):
        from_checkpoint(without_unjoined_visits(odd))
