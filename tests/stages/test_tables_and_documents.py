"""A model with tables beside the first and documents apart, through the whole line."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.artifact.container import pack, sections, unpack, usage
from segpt.config.expand import expand
from segpt.config.layout import Role, layout
from segpt.config.quant import QuantSpec
from segpt.config.recipe import read_recipe
from segpt.config.schedule import Steps
from segpt.model.params import weights
from segpt.quant.sensitivity import sensitivities
from segpt.quant.tune import divergence
from segpt.stages.checkpoint_io import read_checkpoint, save_checkpoint
from segpt.stages.open_model import from_checkpoint, from_quantized
from segpt.stages.quantize import HeldOut, quantize
from segpt.train.mesh import Mesh
from segpt.train.trainer import Trainer
from segpt.values import Checkpoint, Quantized, Tokenizer, TrellisWeight, UniformWeight
from tests.reports import quality_of

VOCAB, CONTEXT, START, UNSEEN = 64, 32, 1, 12
TABLES = ("table", "embed.2.rows", "value_tables.0")
QUICK: dict[str, Any] = {"search": 0, "tune_steps": 2, "calibration_tokens": 1024}


def batch(step: int) -> NDArray[np.int64]:
    """Documents of some eleven tokens, each of which repeats an order of five of its own."""
    draw, rows = np.random.default_rng(step), []
    for _ in range(8):
        row: list[int] = []
        while len(row) <= CONTEXT:
            order = 2 + draw.permutation(VOCAB - 2 - UNSEEN)[:5]
            row += [START, *np.resize(order, draw.integers(5, 16)).tolist()]
        rows.append(row[: CONTEXT + 1])
    return np.array(rows)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    value = {"kind": "value_embedding", "table": 0, "keep": 0.5, "blend": 0.5}
    spec = expand(
        {
            "vocab": VOCAB,
            "width": 32,
            "context": CONTEXT,
            "depth": 2,
            "route": "0 (1)*2",
            "start": START,
            "documents": True,
            "value_tables": 1,
            "embed": [
                {"kind": "token", "norm": False},
                {"kind": "smear", "inputs": 8},
                {"kind": "bigram", "buckets": VOCAB, "width": 8, "scale": 1.0},
                "normalise",
            ],
            "layer": {
                "mixer": {
                    "heads": 2,
                    "kv_heads": 1,
                    "head_dim": 16,
                    "query_key": ["norm", {"kind": "rope", "dims": 8}],
                    "value": ["value_norm", value],
                },
                "feed": {"hidden": 64},
            },
        }
    )
    how = dataclasses.replace(read_recipe("demo").train, length=Steps(count=60), batch=8)
    run = Trainer(spec, how, Mesh(0, 1, torch.device("cpu")))
    losses = [float(run.train_step(batch(step))[0]) for step in range(60)]
    assert losses[-1] < losses[0] - 0.2
    return Checkpoint(
        spec=spec,
        weights=run.averaged_weights(),
        tokenizer=Tokenizer("bytes", VOCAB),
        step=60,
        progress=1.0,
        documents=np.array([1, 2, 3], np.uint64),
        origin={"tokens": "0123456789abcdef"},
    )


def run(source: Checkpoint, **spec: Any) -> Quantized:
    texts = [batch(step) for step in range(100, 110)]
    seen = np.arange(VOCAB) < VOCAB - UNSEEN
    held_out = HeldOut(texts[:2], np.ones(VOCAB, np.int64))
    return quantize(source, QuantSpec(**QUICK | spec), texts, held_out, seen=seen)


@pytest.mark.slow
def test_every_part_has_learned(checkpoint: Checkpoint) -> None:
    for name in ("embed.1.gate", "embed.1.scale", "embed.2.projection", "value_tables.0"):
        assert np.abs(checkpoint.weights[name]).max() > 1e-3, name


def test_a_checkpoint_comes_back_from_disk(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "saved", checkpoint)
    back = read_checkpoint(tmp_path / "saved")
    assert back.spec == checkpoint.spec
    assert back.fingerprint == checkpoint.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        {"method": "trellis", "rate": 4.0},
        pytest.param({"method": "trellis", "rate": 4.0, "search": 1}, marks=pytest.mark.slow),
        {"method": "rd", "rate": 4.0},
        pytest.param({"method": "trellis", "budget": 9000}, marks=pytest.mark.slow),
        {"method": "gptq"},
        {"method": "nearest"},
    ],
    ids=lambda spec: "-".join(map(str, spec.values())),
)
def test_it_is_quantized_packed_and_read_back(checkpoint: Checkpoint, spec: dict[str, Any]) -> None:
    found = run(checkpoint, **spec)
    kind = TrellisWeight if "rate" in spec or "budget" in spec else UniformWeight
    names = {w.name for w in layout(checkpoint.spec) if w.role is not Role.VECTOR}
    assert {name for name, w in found.weights.items() if isinstance(w, kind)} == names
    artifact = pack(found)
    assert artifact.size <= spec.get("budget", 10**6)
    back = unpack(artifact)
    assert back.spec == checkpoint.spec
    assert back.weights == found.weights
    assert sum(section.bytes for section in sections(artifact)) == artifact.size
    tables = next(part for part in usage(artifact) if part.role is Role.TABLE)
    assert tables.weights == 3
    ids = torch.from_numpy(batch(200)[:, :-1])
    with torch.no_grad():
        one, other = from_quantized(found)(ids), from_quantized(back)(ids)
        exact = from_checkpoint(checkpoint)(ids)
    assert torch.equal(one, other)
    assert quality_of(found).kl_mean < (0.05 if kind is TrellisWeight else 0.01)
    assert not torch.equal(one, exact)


@pytest.mark.slow
def test_rows_of_unseen_tokens_are_shared_and_those_of_hashes_are_not(
    checkpoint: Checkpoint,
) -> None:
    """As many buckets as tokens: which tokens occur says nothing about them."""
    alike = dict(checkpoint.weights)
    for name in TABLES:
        alike[name] = alike[name].copy()
        alike[name][-UNSEEN:] = alike[name][-1]
    found = run(dataclasses.replace(checkpoint, weights=alike), rate=4.0).weights
    stored = {}
    for name in TABLES:
        weight = found[name]
        assert isinstance(weight, TrellisWeight)
        stored[name] = weight.stored
    for name in ("table", "value_tables.0"):
        kept = stored[name]
        assert kept is not None
        assert int(kept.sum()) == VOCAB - UNSEEN
    assert stored["embed.2.rows"] is None


@pytest.mark.slow
def test_what_tables_are_predicted_to_cost_is_about_what_they_cost(checkpoint: Checkpoint) -> None:
    """KL of a model with noise in one table, against the damage that its sensitivity predicts."""
    teacher = from_checkpoint(checkpoint)
    texts = [batch(step)[:, :-1] for step in range(300, 315)]
    found = sensitivities(teacher.requires_grad_(), texts)
    for name in TABLES:
        student = from_checkpoint(checkpoint)
        tensor = next(w.tensor for w in weights(student) if w.name == name)
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
        change = 0.05 * tensor.detach().square().mean().sqrt() * noise
        with torch.no_grad():
            tensor.add_(change)
            cost = sum(float(divergence(teacher, student, text)) for text in texts) / len(texts)
        assert 0.5 < found[name].damage(change) / cost < 2, name
