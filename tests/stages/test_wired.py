"""A model with lanes, loops and skips of every form, through the whole line."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.artifact.container import pack, unpack
from segpt.config.expand import expand
from segpt.config.layout import Role, layout
from segpt.config.quant import QuantSpec
from segpt.config.recipe import read_recipe
from segpt.config.schedule import Steps
from segpt.model.params import weights
from segpt.stages.checkpoint_io import read_checkpoint, save_checkpoint
from segpt.stages.open_model import from_checkpoint, from_quantized, without_unjoined_visits
from segpt.stages.quantize import quantize
from segpt.train.mesh import Mesh
from segpt.train.trainer import Trainer
from segpt.values import Checkpoint, Float16Weight, Quantized, Tokenizer
from tests.reports import report_of

VOCAB, CONTEXT = 40, 32


def batch(step: int) -> NDArray[np.int64]:
    return np.random.default_rng(step).integers(0, VOCAB, (8, CONTEXT + 1))


def trained(steps: int) -> Checkpoint:
    """The checkpoint of so many of 20 steps."""
    spec = expand(
        {
            "vocab": VOCAB,
            "width": 32,
            "context": CONTEXT,
            "depth": 3,
            "route": "0 (1)*2@0.5 2",
            "skips": {"kind": "mirror", "form": "add", "per": "scalar"},
            "join": ["loop_embedding", "loop_gain"],
            "layer": {
                "gain": "input",
                "norm_scale": "visit",
                "join": [{"kind": "mix_input", "per": "scalar"}],
                "mixer": {"heads": 1, "kv_heads": 1, "head_dim": 32, "query_key": ["norm"]},
                "feed": {"hidden": 64},
            },
            "override": [
                {"layers": "0", "set": {"norms": "feed", "gain": "none"}},
                {"layers": "1", "set": {"wiring": "lanes"}},
                {"layers": "2", "set": {"wiring": {"kind": "lanes", "merge": "learned"}}},
            ],
        }
    )
    how = dataclasses.replace(read_recipe("demo").train, length=Steps(count=20), batch=8)
    run = Trainer(spec, how, Mesh(0, 1, torch.device("cpu")))
    for step in range(steps):
        run.train_step(batch(step))
    return Checkpoint(
        spec=spec,
        weights=run.averaged_weights(),
        tokenizer=Tokenizer("bytes", VOCAB),
        step=steps,
        progress=run.progress,
        documents=np.zeros(0, np.uint64),
        origin={},
    )


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return trained(20)


def test_a_checkpoint_is_read_back(checkpoint: Checkpoint, tmp_path: Any) -> None:
    save_checkpoint(tmp_path / "saved", checkpoint)
    read = read_checkpoint(tmp_path / "saved")
    assert read.spec == checkpoint.spec
    ids = torch.from_numpy(batch(100)[:, :-1])
    with torch.no_grad():
        assert torch.equal(from_checkpoint(read)(ids), from_checkpoint(checkpoint)(ids))


def test_a_checkpoint_from_before_the_loop_is_settled() -> None:
    early = trained(8)
    ids = torch.from_numpy(batch(100)[:, :-1])
    small = without_unjoined_visits(early)
    assert (len(early.spec.visits), len(small.spec.visits)) == (4, 3)
    assert [v.norm_scale for v in small.spec.visits] == [1, 2**-0.5, 4**-0.5]
    with torch.no_grad():
        whole = from_checkpoint(dataclasses.replace(early, progress=1.0))
        assert torch.equal(from_checkpoint(small)(ids), whole.set_progress(early.progress)(ids))


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
def test_it_survives_quantization_and_packing(checkpoint: Checkpoint, how: dict[str, Any]) -> None:
    text = [batch(step) for step in range(10)]
    found = quantize(checkpoint, QuantSpec(calibration_tokens=1024, **how), text)
    places = {weight.name: weight for weight in layout(checkpoint.spec)}
    assert found.weights.keys() == places.keys()
    halves = {name for name, coded in found.weights.items() if isinstance(coded, Float16Weight)}
    assert halves == {name for name, w in places.items() if w.role is Role.VECTOR}
    assert not report_of(found).fallbacks
    read: Quantized = unpack(pack(found))
    assert read.spec == found.spec == without_unjoined_visits(checkpoint).spec
    before, after = from_quantized(found), from_quantized(read)
    for one, other in zip(weights(before), weights(after), strict=True):
        assert torch.equal(one.tensor, other.tensor), one.name
