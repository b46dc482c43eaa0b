"""Training with every Triton kernel at once, in the interpreter, as with the references."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segpt import kernels
from segpt.config.kernels import Kernels
from segpt.config.recipe import read_recipe
from segpt.config.train import TrainSpec
from segpt.kernels import OPS
from segpt.kernels.registry import Backend, Later
from segpt.model.params import weights
from segpt.train.mesh import Mesh
from segpt.train.trainer import Trainer

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.slow

STEPS = 5
# All kinds of layers, loops, skips and lanes of golf16; widths that no tile divides.
SMALL = (
    *("model.width=48", "model.context=20", "model.vocab=97", "tokenizer.vocab=97"),
    *("model.layer.feed.hidden=72", "model.layer.mixer.heads=2", "model.layer.mixer.kv_heads=1"),
    *("model.layer.mixer.head_dim=16", "train.batch=1", "train.accumulation=1"),
    "train.optimizer.matrix.iterations=2",  # five take the interpreter most of a minute
    *("train.compile=off", "train.length.count=10", "train.precision=float32"),
)


class Forced(Backend[Any, Any]):
    """A Triton back end on a CPU; it counts its calls, and takes float32 where a GPU would not."""

    name, priority = "interpreted", 99

    def __init__(self, backend: Backend[Any, Any]) -> None:
        self.backend, self.calls = backend, 0

    def refusal(self, call: Any) -> str | None:
        refusal = self.backend.refusal(call)
        return None if refusal is not None and "tensor cores" in refusal else refusal

    def run(self, call: Any) -> Any:
        self.calls += 1
        return self.backend.run(call)


@contextmanager
def interpreted() -> Iterator[dict[str, Forced]]:
    """Every operation runs its Triton back end, as far as that takes the call."""
    forced: dict[str, Forced] = {}
    for name, op in OPS.items():
        for backend in op.backends:
            if isinstance(backend, Later) and backend.name == "triton":
                forced[name] = Forced(backend._load())
    for name, instead in forced.items():
        OPS[name].register(instead)
    try:
        with kernels.use("auto"):
            yield forced
    finally:
        for name, instead in forced.items():
            OPS[name].backends.remove(instead)


def trained(model: Any, cfg: TrainSpec) -> tuple[list[float], list[dict[str, Tensor]], Trainer]:
    """The losses and gradients of some steps at which every visit has joined."""
    trainer = Trainer(model, cfg, Mesh(0, 1, torch.device("cpu")))
    trainer.step = 5
    generator = np.random.default_rng(0)
    losses, gradients = [], []
    for _ in range(STEPS):
        batch = generator.integers(model.vocab, size=(cfg.batch, model.context + 1))
        losses.append(float(trainer.train_step(batch).loss))
        slopes = {w.name: w.tensor.grad for w in weights(trainer.model)}
        gradients.append({name: g.clone() for name, g in slopes.items() if g is not None})
    return losses, gradients, trainer


def test_golf16_trains_alike() -> None:
    recipe = read_recipe("golf16", list(SMALL))
    with kernels.use("reference"):
        losses, gradients, _ = trained(recipe.model, recipe.train)
    with interpreted() as forced:
        found, slopes, _ = trained(recipe.model, recipe.train)
    unused = {name for name, backend in forced.items() if not backend.calls}
    in_recipes = {field.name for field in fields(Kernels)}
    assert unused & in_recipes == {"token_nats", "cached_attention"}  # what only scores ask for
    assert found == pytest.approx(losses, rel=1e-4)
    for step, (mine, expected) in enumerate(zip(slopes, gradients, strict=True)):
        assert mine.keys() == expected.keys()
        largest = max(float(slope.abs().max()) for slope in expected.values())
        for name, slope in expected.items():
            difference = mine[name] - slope
            assert float(difference.abs().max()) <= 1e-4 * largest, (step, name)
            # Later, what rounding changed has been trained on, and small gradients differ by more.
            if step < 2:
                assert float(difference.norm()) <= 1e-4 * float(slope.norm()), (step, name)
