"""The large recipes take a training step at reduced width."""

import numpy as np
import pytest
import torch

from segpt.model.leaves import weights
from segpt.spec.layout import parameters
from segpt.spec.recipe import read_recipe
from segpt.train.loop import Run
from segpt.train.mesh import Mesh

REDUCED = (
    "model.width=64",
    "model.vocab=97",
    "model.context=16",
    "model.layer.mixer.heads=4",
    "model.layer.mixer.kv_heads=2",
    "model.layer.feed.hidden=128",
    "train.batch=4",
    "train.accumulation=2",
)


@pytest.mark.parametrize(("recipe", "size"), [("golf16", 35_944_536), ("seed004", 25_175_076)])
def test_one_step_moves_every_weight_that_has_joined(recipe: str, size: int) -> None:
    assert parameters(read_recipe(recipe).model) == size
    reduced = read_recipe(recipe, [*REDUCED, "train.length={kind: steps, count: 4}"])
    run = Run(reduced.model, reduced.train, Mesh(0, 1, torch.device("cpu")))
    before = {w.name: w.tensor.detach().clone() for w in weights(run.model)}
    batch = np.random.default_rng(0).integers(97, size=(4, 17))
    for _ in range(4):  # the loops join at 35 percent; a skip of its own input learns late
        loss, norm = run.advance(batch)
        assert torch.isfinite(loss)
        assert torch.isfinite(norm)
    still = {w.name for w in weights(run.model) if torch.equal(w.tensor, before[w.name])}
    assert not still
