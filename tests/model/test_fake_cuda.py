"""The whole path on tensors that say they are on CUDA: nothing is left on the CPU by mistake."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from segpt.config.precision import Computed
from segpt.config.recipe import read_recipe
from segpt.kernels import use
from segpt.kernels.precision import computing
from segpt.model.cache import KVCache
from segpt.model.model import Model
from segpt.model.overlap import Overlap
from segpt.model.params import weights
from segpt.train.loss import token_loss
from segpt.train.mesh import Mesh
from segpt.train.trainer import Trainer
from tests.fake_cuda import CUDA, fake_cuda

pytestmark = pytest.mark.slow

RECIPES = {
    "demo": (),
    "daisy-small": (),
    "frontier-small": (),
    "golf16-small": (),
    "imu1-small": (),
    "imu1-decay-small": (),
    "imu1-midtrain-small": (),
    "lapp0-small": (),
    "seed004-small": (),
    "documents": ("model.documents=true", "model.start=0"),
    "fast": ("model.layer.feed.fast={chunk: 8, rate: 0.05, taps: 3}",),
}
TIME = 32
PRECISIONS: tuple[Computed, ...] = ("float32", "bfloat16")


OFTEN = ("demo", "golf16-small", "documents", "fast")  # the others take minutes together
CASES = [
    *[
        pytest.param((name, "auto"), id=name, marks=[pytest.mark.campaign] * (name not in OFTEN))
        for name in RECIPES
    ],
    pytest.param(("demo", "reference"), id="demo by definition"),
]


@pytest.fixture(params=CASES)
def run(request: pytest.FixtureRequest) -> Iterator[Trainer]:
    """A run on CUDA, within which its kernels are Triton's and torch's, or the definitions."""
    name, kernels = request.param
    recipe = read_recipe(name if "-" in name else "demo", list(RECIPES[name]))
    cfg = dataclasses.replace(recipe.train, batch=4, accumulation=1)
    with fake_cuda(), use(kernels):
        yield Trainer(recipe.model, cfg, Mesh(0, 1, CUDA))


def tokens(rows: int = 4, time: int = TIME) -> Tensor:
    return torch.zeros(rows, time, dtype=torch.int64, device=CUDA)


def on_cuda(*values: Tensor, dtype: torch.dtype) -> None:
    assert {(value.device, value.dtype) for value in values} == {(CUDA, dtype)}


def test_the_whole_path_but_for_the_backward_pass(run: Trainer) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        check_training(run, dtype)
    check_reduction(run)
    run.model.set_progress(1.0).eval()
    for precision in PRECISIONS:
        with computing(precision, "cuda:0"):
            check_reading(run.model, getattr(torch, precision))


def check_training(run: Trainer, dtype: torch.dtype) -> None:
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        hidden = run.coming().hidden(tokens(), statistics=True)
        loss = token_loss(run.model, hidden.x, tokens(), 1e-4)
    on_cuda(hidden.x, dtype=dtype)
    on_cuda(*loss, *hidden.outputs.statistics.values(), dtype=torch.float32)


def check_reduction(run: Trainer) -> None:
    for weight in weights(run.model):
        weight.tensor.grad = torch.zeros_like(weight.tensor)
    on_cuda(run.reduce(), dtype=torch.float32)
    run.average.update(0.5)
    on_cuda(*run.average.weights().values(), dtype=torch.float32)


def check_reading(model: Model, dtype: torch.dtype) -> None:
    """What scores and samples run: windows, steps with a cache, windows that share tokens."""
    on_cuda(model.hidden(tokens(), last=3).x, dtype=dtype)
    cache: KVCache = {}
    for time in (TIME, 1, 7):  # one after the other, as in a rolling score
        step = model.hidden(tokens(2, time), cache, 0, 1, 16).x
        on_cuda(step, dtype=dtype)
    on_cuda(model.logits(step), dtype=torch.float32)
    kept = [t for layer in cache.values() for t in layer.tensors().values()]
    assert {t.device for t in kept} <= {CUDA}
    private = model.private_prefix
    if private is None:
        return
    count = 3 * private + TIME + 8
    where = torch.zeros(3, TIME, dtype=torch.int64, device=CUDA)
    overlap = Overlap(where, torch.zeros(count, dtype=torch.int64, device=CUDA))
    shared = model.hidden(tokens(1, count), last=4, overlap=overlap).x
    on_cuda(shared, dtype=dtype)
    assert shared.shape[:2] == (3, 4)


def test_a_tensor_on_the_cpu_is_seen() -> None:
    with fake_cuda(), pytest.raises(RuntimeError, match="device"):
        tokens() + torch.zeros(4, TIME, dtype=torch.int64)
