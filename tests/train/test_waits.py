"""A step of training does not wait for the device: what runs on a GPU runs ahead of the program."""

import dataclasses

import numpy as np
import pytest
import torch

from segpt.config.recipe import read_recipe
from segpt.train.loop import training
from segpt.train.mesh import Mesh
from segpt.train.trainer import Trainer
from tests.waits import Waits

CONTEXT = 32
# Where a step may wait, and why.
EVERY_STEP = {
    ("kernels/attention/torch.py", "_same_document"): "asked on a CPU only",
    ("train/optim/adam.py", "<listcomp>"): "the numbers of steps, which are tensors",
}
LOGGED_STEP = {
    ("train/loop.py", "check_finite"): "a run whose loss is not finite ends",
    ("train/loop.py", "metrics"): "what is logged is read once",
}
OPTIONS = [
    "model.depth=2",
    "train.z_loss=0.0001",
    "train.recompute=1",
    "train.accumulation=2",
    "train.optimizer.matrix.neurons={}",
]
CASES = {
    "demo": (),
    "demo with everything": OPTIONS,
    "documents": ("model.documents=true", "model.start=0"),
    "imu1-small": (),
    "frontier-small": (),
    "golf16-small": (),
    "seed004-small": (),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_step_waits_for_nothing(case: str) -> None:
    recipe = read_recipe(case.split(" ")[0] if "-" in case else "demo", list(CASES[case]))
    own = {"batch": 2 * recipe.train.accumulation, "log_every": 3, "save_every": 100}
    cfg = dataclasses.replace(recipe.train, **own, validate_every=100)  # type: ignore[arg-type]
    trainer = Trainer(recipe.model, cfg, Mesh(0, 1, torch.device("cpu")))
    draw = np.random.default_rng(0)
    waits = Waits()
    seen = []

    def stop() -> bool:
        seen.append(waits.functions)
        return False

    with waits:
        events = training(
            trainer,
            lambda _: draw.integers(0, recipe.model.vocab, (trainer.size, CONTEXT + 1)),
            should_stop=stop,
        )
        next(events)  # at the third step
    assert len(seen) == 3
    first, second, third = seen[0], seen[1] - seen[0], waits.functions - seen[1]
    for step in (first, second):
        assert step.keys() <= EVERY_STEP.keys(), waits.places
    logged = third.keys() - EVERY_STEP.keys()
    assert logged == LOGGED_STEP.keys(), waits.places
    assert all(third[place] <= 1 for place in logged), waits.places


def test_what_waits_is_seen() -> None:
    from segpt.kernels.attention.torch import _same_document

    with Waits() as waits:
        _same_document(torch.zeros(2, 3))
        float(torch.ones(()))  # a test may
    assert dict(waits.functions) == {("kernels/attention/torch.py", "_same_document"): 1}
