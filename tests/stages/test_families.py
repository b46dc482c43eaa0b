"""Models of the shapes of other families, through the whole line."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.artifact.container import pack, sections, unpack
from segpt.coding.token_predictor import TokenPredictor
from segpt.config.expand import expand
from segpt.config.layout import Role, layout
from segpt.config.model import ModelSpec
from segpt.config.quant import QuantSpec
from segpt.config.recipe import read_recipe
from segpt.config.sample import SampleSpec
from segpt.config.schedule import Steps
from segpt.config.score import Boundaries, Frozen, LowRank, Policy, ScoreSpec, Sgd
from segpt.errors import DataError, SpecError
from segpt.eval.ledger import EncodedText
from segpt.eval.sample import generate
from segpt.eval.tally import score_stream
from segpt.eval.windows import plan
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.quant.sensitivity import sensitivities
from segpt.quant.tune import divergence
from segpt.stages.checkpoint_io import read_checkpoint, save_checkpoint
from segpt.stages.open_model import from_checkpoint, from_quantized
from segpt.stages.quantize import HeldOut, quantize
from segpt.stages.resolve_spec import Reading, score_spec
from segpt.train.mesh import Mesh
from segpt.train.trainer import Trainer
from segpt.values import Checkpoint, Float16Weight, Quantized, Tokenizer, TrellisWeight
from tests.model.conftest import BIASED, SHIFTED
from tests.reports import quality_of

pytestmark = pytest.mark.slow

VOCAB, CONTEXT, UNSEEN = 61, 32, 9
QUICK: dict[str, Any] = {"search": 0, "tune_steps": 2, "calibration_tokens": 1024}
POSITIONS = {"embed": [{"kind": "token", "norm": False}, {"kind": "position", "count": 40}]}
SPECS: dict[str, ModelSpec] = {
    "shifted": expand(SHIFTED | POSITIONS | {"vocab": VOCAB, "context": CONTEXT, "start": 0}),
    "biased": expand(BIASED | {"vocab": VOCAB, "context": CONTEXT, "start": 0}),
}


def batch(step: int) -> NDArray[np.int64]:
    """Rows that repeat an order of five tokens of their own."""
    draw = np.random.default_rng(step)
    rows = [np.resize(1 + draw.permutation(VOCAB - UNSEEN - 1)[:5], CONTEXT + 1) for _ in range(8)]
    return np.stack(rows).astype(np.int64)


def train(spec: ModelSpec, steps: int = 80) -> Checkpoint:
    how = dataclasses.replace(read_recipe("demo").train, length=Steps(count=steps), batch=8)
    run = Trainer(spec, how, Mesh(0, 1, torch.device("cpu")))
    losses = [float(run.train_step(batch(step))[0]) for step in range(steps)]
    assert losses[-1] < losses[0] - 0.1
    return Checkpoint(
        spec=spec,
        weights=run.averaged_weights(),
        tokenizer=Tokenizer("bytes", VOCAB),
        step=steps,
        progress=run.progress,
        documents=np.array([1, 2, 3], np.uint64),
        origin={"tokens": "0123456789abcdef"},
    )


@pytest.fixture(scope="module", params=SPECS)
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    return train(SPECS[request.param])


@pytest.fixture(scope="module")
def shifted() -> Checkpoint:
    return train(SPECS["shifted"], 20)


def quantized(source: Checkpoint, **spec: Any) -> Quantized:
    texts = [batch(step) for step in range(100, 110)]
    seen = np.arange(VOCAB) < VOCAB - UNSEEN
    held_out = HeldOut(texts[:2], np.ones(VOCAB, np.int64))
    return quantize(source, QuantSpec(**QUICK | spec), texts, held_out, seen=seen)


def test_every_part_has_learned(checkpoint: Checkpoint) -> None:
    for weight in layout(checkpoint.spec):
        start = 1.0 if weight.name.endswith("gain") else 0.0
        assert np.abs(checkpoint.weights[weight.name] - start).max() > 1e-4, weight.name


def test_a_checkpoint_comes_back_from_disk(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "saved", checkpoint)
    back = read_checkpoint(tmp_path / "saved")
    assert back.spec == checkpoint.spec
    assert back.fingerprint == checkpoint.fingerprint


@pytest.mark.parametrize(
    "spec",
    [
        {"method": "trellis", "rate": 4.0},
        {"method": "rd", "rate": 4.0},
        {"method": "gptq"},
        {"method": "nearest"},
    ],
    ids=lambda spec: "-".join(map(str, spec.values())),
)
def test_it_is_quantized_packed_and_read_back(checkpoint: Checkpoint, spec: dict[str, Any]) -> None:
    coded = quantized(checkpoint, **spec)
    for weight in layout(checkpoint.spec):
        kind = Float16Weight if weight.role is Role.VECTOR else TrellisWeight
        if "rate" in spec or kind is Float16Weight:
            assert isinstance(coded.weights[weight.name], kind), weight.name
    artifact = pack(coded)
    back = unpack(artifact)
    assert back.spec == checkpoint.spec
    assert back.weights == coded.weights
    assert sum(section.bytes for section in sections(artifact)) == artifact.size
    ids = torch.from_numpy(batch(200)[:, :-1])
    with torch.no_grad():
        assert torch.equal(from_quantized(coded)(ids), from_quantized(back)(ids))
    assert quality_of(coded).kl_mean < 0.1


def test_what_errors_are_predicted_to_cost_is_about_what_they_cost(checkpoint: Checkpoint) -> None:
    """KL of a model with noise in one weight, against the damage that its sensitivity predicts."""
    teacher = from_checkpoint(checkpoint)
    texts = [batch(step)[:, :-1] for step in range(300, 315)]
    sensitive = sensitivities(teacher.requires_grad_(), texts)
    mixer, feed = "layers.0.mixer.body", "layers.1.feed.body"
    names = ["table", f"{mixer}.value", f"{mixer}.out", f"{feed}.up", f"{feed}.down"]
    names += ["embed.1.rows"] if checkpoint.spec.positions else []
    for name in names:
        student = from_checkpoint(checkpoint)
        tensor = next(w.tensor for w in weights(student) if w.name == name)
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
        change = 0.05 * tensor.detach().square().mean().sqrt() * noise
        with torch.no_grad():
            tensor.add_(change)
            cost = sum(float(divergence(teacher, student, text)) for text in texts) / len(texts)
        assert 0.4 < sensitive[name].damage(change) / cost < 2.5, name


def stream(targets: int) -> EncodedText:
    ids = np.random.default_rng(3).integers(0, VOCAB, targets + 1).astype(np.uint32)
    ids[0] = 0
    starts = np.flatnonzero(ids[:-1] == 0)
    return EncodedText(ids, np.ones(targets, np.int64), starts, targets, "bytes")


def one_by_one(model: Model, ids: NDArray[np.uint32], context: int, stride: int) -> Any:
    """-log p of each target, (targets,), from windows that are read alone from their first on."""
    nats = np.zeros(len(ids) - 1)
    windows = plan(len(nats), context, stride)
    for begin, start, end in zip(windows.begin, windows.start, windows.end, strict=True):
        tokens = torch.from_numpy(ids[begin:end].astype(np.int64))[None]
        with torch.no_grad():
            logs = model(tokens)[0, start - begin :].double().log_softmax(-1).numpy()
        nats[start:end] = -logs[np.arange(end - start), ids[start + 1 : end + 1]]
    return nats


@pytest.mark.parametrize(("context", "stride"), [(CONTEXT, 3), (CONTEXT, CONTEXT), (20, 7)])
def test_windows_that_overlap_are_read_as_if_alone(
    checkpoint: Checkpoint, context: int, stride: int
) -> None:
    model, text = from_checkpoint(checkpoint), stream(150)
    spec = ScoreSpec(stride=stride, batch=5, context=context)
    tally = score_stream(model, text, spec, context)
    wanted = one_by_one(model, text.ids, context, stride)
    assert np.abs(tally.nats - wanted).max() < 1e-5


@pytest.mark.parametrize(
    "policy", [Sgd(chunk=24, rate=0.2), LowRank(rank=2, chunk=8, rate=0.02, documents=3)]
)
def test_it_learns_while_it_is_scored_and_compresses_alike(
    checkpoint: Checkpoint, policy: Policy
) -> None:
    model, text = from_checkpoint(checkpoint), stream(120)
    boundaries: Boundaries = "document" if policy.per_document else "stream"
    spec = ScoreSpec(stride=6, batch=1, policy=policy, boundaries=boundaries)
    nats = score_stream(model, text, spec, CONTEXT).nats
    plain = score_stream(model, text, dataclasses.replace(spec, policy=Frozen()), CONTEXT).nats
    assert np.abs(nats - plain).max() > 1e-4
    predictor = TokenPredictor(model, spec, 0, text.targets)
    for target, token in enumerate(text.ids[1:].tolist()):
        assert abs(-predictor.distribution()[token] - nats[target]) < 1e-4, target
        predictor.push(token)


def test_what_reads_beyond_learned_positions_is_refused(shifted: Checkpoint) -> None:
    model, text = from_checkpoint(shifted), stream(100)
    with pytest.raises(SpecError, match=r"the 40 positions.*--mode strided"):
        score_stream(model, text, ScoreSpec(mode="rolling"), CONTEXT)
    with pytest.raises(SpecError, match=r"windows of 41 tokens.*--context 40"):
        score_stream(model, text, ScoreSpec(context=41, stride=8), 41)
    with pytest.raises(SpecError, match="--mode strided"):
        score_spec(shifted.spec, reading=Reading(mode="rolling"))
    assert score_spec(shifted.spec).mode == "strided"
    assert score_spec(SPECS["biased"]).mode == "rolling"
    longer = score_stream(model, text, ScoreSpec(context=40, stride=8), 40).nats
    assert np.abs(longer - one_by_one(model, text.ids, 40, 8)).max() < 1e-5


def test_text_is_written_up_to_the_last_position(shifted: Checkpoint) -> None:
    model, sample = from_checkpoint(shifted), SampleSpec(tokens=60, temperature=0.0)
    forced = torch.full((VOCAB,), -1e9)
    forced[7] = 0.0  # so that no document ends
    model.logits = lambda x: forced.expand(*x.shape[:-1], VOCAB)  # type: ignore[method-assign]
    written: list[int] = []
    with pytest.raises(DataError, match="learned 40 positions"):
        written.extend(token.token for token in generate(model, [[1, 2]], sample, start=0))
    assert written == [7] * 38
    fewer = dataclasses.replace(sample, tokens=38)
    assert len(list(generate(model, [[1, 2]], fewer, start=0))) == 38
