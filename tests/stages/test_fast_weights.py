"""A model with fast weights through the whole line: trained, quantized, packed and read back."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.artifact.container import pack, unpack
from segpt.config.expand import expand
from segpt.config.layout import layout
from segpt.config.quant import QuantSpec
from segpt.config.recipe import read_recipe
from segpt.config.schedule import Steps
from segpt.model.fast import fast_parts, set_rate
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.stages.checkpoint_io import read_checkpoint, save_checkpoint
from segpt.stages.open_model import from_checkpoint, from_quantized
from segpt.stages.quantize import quantize
from segpt.train.mesh import Mesh
from segpt.train.trainer import Trainer
from segpt.values import Checkpoint, Float16Weight, Quantized, Tokenizer
from tests.reports import report_of

VOCAB, CONTEXT = 40, 32
FAST = "layers.1.feed.body.fast"


def batch(step: int) -> NDArray[np.int64]:
    """Rows that each repeat an order of ten tokens of their own."""
    draw = np.random.default_rng(step)
    orders = [draw.permutation(VOCAB)[:10] for _ in range(8)]
    return np.array([np.resize(order, CONTEXT + 1) for order in orders])


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    spec = expand(
        {
            "vocab": VOCAB,
            "width": 32,
            "context": CONTEXT,
            "depth": 2,
            "route": "0 (1)*2",
            "layer": {
                "mixer": {"heads": 1, "kv_heads": 1, "head_dim": 32, "query_key": ["norm"]},
                "feed": {"hidden": 64},
            },
            "override": [
                {"layers": "1", "set": {"feed": {"fast": {"chunk": 8, "rate": 0.05}}}},
            ],
        }
    )
    how = dataclasses.replace(read_recipe("demo").train, length=Steps(count=60), batch=8)
    run = Trainer(spec, how, Mesh(0, 1, torch.device("cpu")))
    for step in range(60):
        run.train_step(batch(step))
    return Checkpoint(
        spec=spec,
        weights=run.averaged_weights(),
        tokenizer=Tokenizer("bytes", VOCAB),
        step=60,
        progress=1.0,
        documents=np.zeros(0, np.uint64),
        origin={},
    )


@torch.no_grad()
def nats(model: Model) -> float:
    ids = torch.from_numpy(batch(1000))
    loss = torch.nn.functional.cross_entropy(
        model(ids[:, :-1])[:, 8:].flatten(0, 1), ids[:, 9:].flatten()
    )
    return float(loss)


@pytest.mark.slow
def test_training_makes_use_of_them(checkpoint: Checkpoint, tmp_path: Any) -> None:
    save_checkpoint(tmp_path / "saved", checkpoint)
    model = from_checkpoint(read_checkpoint(tmp_path / "saved"))
    learned = nats(model)
    set_rate(model, 0)
    assert learned < nats(model) - 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"method": "gptq"},
        {"method": "nearest"},
        {"method": "trellis", "rate": 5.0, "search": 0, "tune_steps": 2},
    ],
    ids=lambda how: str(how["method"]),
)
def test_they_survive_quantization_and_packing(checkpoint: Checkpoint, how: dict[str, Any]) -> None:
    text = [batch(step) for step in range(10)]
    found = quantize(checkpoint, QuantSpec(calibration_tokens=1024, **how), text)
    assert found.weights.keys() == {weight.name for weight in layout(checkpoint.spec)}
    assert isinstance(found.weights[f"{FAST}.taps"], Float16Weight)
    assert not isinstance(found.weights[f"{FAST}.projection"], Float16Weight)
    assert not report_of(found).fallbacks
    read: Quantized = unpack(pack(found))
    assert read.spec == checkpoint.spec
    before, after = from_quantized(found), from_quantized(read)
    for one, other in zip(weights(before), weights(after), strict=True):
        assert torch.equal(one.tensor, other.tensor), one.name
    assert len(fast_parts(after)) == 1
    learned = nats(after)
    assert abs(learned - nats(from_checkpoint(checkpoint))) < 0.1
    set_rate(after, 0)
    assert learned < nats(after) - 0.1
