"""A model with gates, windows that grow and a head of its own, through the whole line."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.artifact.container import pack, sections, unpack
from segpt.config.expand import expand
from segpt.config.layout import Role, layout
from segpt.config.quant import QuantSpec
from segpt.config.recipe import read_recipe
from segpt.config.schedule import Steps
from segpt.model.cache import KVCache
from segpt.stages.checkpoint_io import read_checkpoint, save_checkpoint
from segpt.stages.open_model import from_checkpoint, from_quantized, without_unjoined_visits
from segpt.stages.quantize import HeldOut, quantize
from segpt.train.mesh import Mesh
from segpt.train.trainer import Trainer
from segpt.values import Checkpoint, Quantized, Tokenizer, TrellisWeight
from tests.reports import quality_of

VOCAB, ROWS, CONTEXT, UNSEEN = 61, 64, 32, 9
QUICK: dict[str, Any] = {"search": 0, "tune_steps": 2, "calibration_tokens": 1024}


def batch(step: int) -> NDArray[np.int64]:
    """Rows that repeat an order of five tokens of their own."""
    draw = np.random.default_rng(step)
    rows = [
        np.resize(draw.permutation(VOCAB - UNSEEN)[:5], CONTEXT + 1) + np.zeros(1, int)
        for _ in range(8)
    ]
    return np.stack(rows)


def trained(steps: int, until: int) -> Checkpoint:
    mixer = {
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "scale": 0.2,
        "query_key": [{"kind": "rope", "dims": 16, "rates": "half"}, "norm", "gain"],
        "value": [{"kind": "value_residual", "scaled": True, "first": "mixed"}],
        "output": [
            {"kind": "exclude_self", "gated": True},
            {"kind": "head_gate", "inputs": None, "per": "element"},
        ],
    }
    spec = expand(
        {
            "vocab": VOCAB,
            "width": 48,
            "context": CONTEXT,
            "depth": 3,
            "route": "0 (1:)*2",
            "windows": {"long": 16, "short": 8, "by": "visit"},
            "growth": {"full": 16, "multiple": 4, "shape": "cubic"},
            "head": {
                "tied": False,
                "zero": True,
                "multiple": 16,
                "gain": True,
                "scale": 0.5,
                "softcap": {"kind": "asymmetric", "init": 20.0},
            },
            "layer": {"mixer": mixer, "feed": {"hidden": 64}},
            "override": [{"layers": "2", "set": {"mixer": None}}],
        }
    )
    how = dataclasses.replace(read_recipe("demo").train, length=Steps(count=steps), batch=8)
    run = Trainer(spec, how, Mesh(0, 1, torch.device("cpu")))
    losses = [float(run.train_step(batch(step))[0]) for step in range(until)]
    assert losses[-1] < losses[0] - 0.1
    return Checkpoint(
        spec=spec,
        weights=run.averaged_weights(),
        tokenizer=Tokenizer("bytes", VOCAB),
        step=until,
        progress=run.progress,
        documents=np.array([1, 2, 3], np.uint64),
        origin={"tokens": "0123456789abcdef"},
    )


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return trained(80, 80)


@pytest.fixture(scope="module")
def unfinished() -> Checkpoint:
    """At half of its run the cubic is half way, too."""
    return trained(120, 60)


def quantized(source: Checkpoint, **spec: Any) -> Quantized:
    texts = [batch(step) for step in range(100, 110)]
    seen = np.arange(VOCAB) < VOCAB - UNSEEN
    held_out = HeldOut(texts[:2], np.ones(VOCAB, np.int64))
    return quantize(source, QuantSpec(**QUICK | spec), texts, held_out, seen=seen)


@pytest.mark.slow
def test_windows_grow_as_steps_are_taken(unfinished: Checkpoint) -> None:
    how = dataclasses.replace(read_recipe("demo").train, length=Steps(count=100), batch=8)
    run = Trainer(unfinished.spec, how, Mesh(0, 1, torch.device("cpu")))
    widest = []
    for step in range(101):
        run.step = step
        widest.append(run.coming().windows[0] or 0)
    assert widest == sorted(widest)
    assert sorted(set(widest)) == [4, 8, 12, 16]
    assert run.spec.growth is not None
    assert run.spec.growth.widths == 5
    assert run.model.set_progress(1.0).windows == (16, 8, 16, 8, 16)


@pytest.mark.slow
def test_every_part_has_learned(checkpoint: Checkpoint) -> None:
    starts = {"scale": 1.0, "alpha": 0.0, "gate": 0.0, "caps": 20.0, "gain": 1.0, "matrix": 0.0}
    for name, value in checkpoint.weights.items():
        if (start := starts.get(name.rpartition(".")[2])) is not None:
            assert np.abs(value - start).max() > 1e-4, name
    head = checkpoint.weights["head.matrix"]
    assert head.shape == (ROWS, 48)
    assert not head[VOCAB:].any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        {"method": "trellis", "rate": 4.0},
        {"method": "rd", "rate": 4.0, "search": 1},
        {"method": "gptq"},
        {"method": "nearest"},
    ],
    ids=lambda spec: "-".join(map(str, spec.values())),
)
def test_it_is_quantized_packed_and_read_back(checkpoint: Checkpoint, spec: dict[str, Any]) -> None:
    found = quantized(checkpoint, **spec)
    names = {w.name for w in layout(checkpoint.spec) if w.role is not Role.VECTOR}
    stepped = {name for name, weight in found.weights.items() if isinstance(weight, TrellisWeight)}
    assert stepped == (names if "rate" in spec else set())
    assert not found.weights["head.matrix"].decoded()[VOCAB:].any()
    artifact = pack(found)
    back = unpack(artifact)
    assert back.weights == found.weights
    assert sum(section.bytes for section in sections(artifact)) == artifact.size
    ids = torch.from_numpy(batch(200)[:, :-1])
    with torch.no_grad():
        assert torch.equal(from_quantized(found)(ids), from_quantized(back)(ids))
    assert found.report is not None
    assert quality_of(found).kl_mean < 0.1


def test_a_checkpoint_keeps_the_windows_it_was_trained_with(
    unfinished: Checkpoint, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "saved", unfinished)
    back = read_checkpoint(tmp_path / "saved")
    assert back.spec == unfinished.spec
    assert back.progress == 0.5
    now = without_unjoined_visits(back)
    assert now.spec.windows() == (8, 4, 8, 4, 8)
    assert unfinished.spec.windows() == (16, 8, 16, 8, 16)
    ids = torch.from_numpy(batch(200)[:, :-1])
    cache: KVCache = {}
    with torch.no_grad():
        wanted = from_checkpoint(back)(ids)
        again = unpack(pack(quantized(back, method="nearest")))
        assert again.spec == now.spec
        assert torch.equal(from_checkpoint(now)(ids), wanted)
        model = from_checkpoint(back)
        pieces = [model(ids[:, i : i + 4], cache, i) for i in range(0, CONTEXT, 4)]
    torch.testing.assert_close(torch.cat(pieces, 1), wanted, rtol=0, atol=1e-5)
