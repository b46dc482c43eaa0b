"""What a model multiplies in: float32 unless something else is asked for by name, and on record."""

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.config.base import encode
from segpt.config.conditions import ReadingConditions
from segpt.config.precision import of_measuring, of_training
from segpt.config.quant import QuantSpec
from segpt.config.sample import SampleSpec
from segpt.config.score import Frozen, LowRank, Phased, Policy, ScoreSpec, Sgd
from segpt.data.tokenizer import BYTES
from segpt.errors import InterruptError
from segpt.kernels.precision import computed, computing, exact_float32
from segpt.leaderboard.check import _method
from segpt.quant.hessian import hessians
from segpt.stages.open_model import from_checkpoint
from segpt.stages.quantize import quantize
from segpt.stages.sample import sample
from segpt.stages.score import Breaks, score
from segpt.values import Arrays, Checkpoint, Score, Text

from .random_models import checkpoint

ADAPTERS = LowRank(rank=2, chunk=16, rate=0.02, documents=2)
POLICIES: dict[str, Policy] = {
    "frozen": Frozen(),
    "sgd": Sgd(chunk=32, rate=0.1),
    "low rank": ADAPTERS,
    "phased": Phased(adapters=ADAPTERS, fractions=(0.5,), chunk=32),
}
TEXT = Text("a text", lambda: iter([b"What is said once, ", b"and then, ", 4 * b"is said often. "]))


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    return checkpoint(vocab=BYTES.vocab)


def test_what_auto_comes_to() -> None:
    assert [of_training("auto", d) for d in ("cuda", "cuda:1", "cpu")] == [
        "bfloat16",
        "bfloat16",
        "float32",
    ]
    assert of_training("float32", "cuda") == "float32"
    assert of_training("bfloat16", "cpu") == "bfloat16"
    assert [of_measuring(p) for p in ("auto", "float32", "bfloat16")] == [
        "float32",
        "float32",
        "bfloat16",
    ]


def by_target(result: Score) -> NDArray[np.float64]:
    assert result.by_target is not None
    return result.by_target


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_score_says_what_it_was_computed_in(model: Checkpoint, policy: Policy) -> None:
    spec = ScoreSpec(stride=6, batch=4, policy=policy)
    usual = score(model, TEXT, spec)
    named = score(model, TEXT, dataclasses.replace(spec, precision="float32"))
    half = score(model, TEXT, dataclasses.replace(spec, precision="bfloat16"))
    assert np.array_equal(by_target(usual), by_target(named))
    stored = {encode(usual.conditions).get("precision"), encode(named.conditions).get("precision")}
    assert stored == {None}  # as ever
    assert encode(half.conditions)["precision"] == "bfloat16"
    assert not np.array_equal(by_target(half), by_target(usual))
    assert half.bpb == pytest.approx(usual.bpb, rel=0.01)


def test_a_score_in_bfloat16_is_repeated_from_its_conditions(model: Checkpoint) -> None:
    half = score(model, TEXT, ScoreSpec(stride=6, batch=4, precision="bfloat16"))
    stored = encode(half.conditions)
    again = ReadingConditions.read(stored).spec(half.policy)
    assert again.precision == "bfloat16"
    assert np.array_equal(by_target(score(model, TEXT, again)), by_target(half))
    plain = score(model, TEXT, ScoreSpec(stride=6, batch=4))
    assert ReadingConditions.read(encode(plain.conditions)).spec(plain.policy).precision == "auto"


def test_a_score_in_bfloat16_goes_on_where_it_stopped(model: Checkpoint) -> None:
    spec = ScoreSpec(
        mode="rolling", boundaries="document", batch=1, policy=ADAPTERS, precision="bfloat16"
    )
    saved: list[Arrays] = []
    asked = iter([False, True])
    with pytest.raises(InterruptError):
        score(model, TEXT, spec, breaks=Breaks(lambda: next(asked), saved.append))
    # The bits of keys and values, which numpy has no type for.
    assert any(array.dtype == np.int16 for array in saved[-1].values())
    resumed = score(model, TEXT, spec, breaks=Breaks(resume=saved[-1]))
    assert np.array_equal(by_target(resumed), by_target(score(model, TEXT, spec)))


def test_only_the_model_is_rounded(model: Checkpoint) -> None:
    opened = from_checkpoint(model)
    ids = torch.randint(0, BYTES.vocab, (4, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), computing("bfloat16", "cpu"):
        hidden = opened.hidden(ids).x
        moments = hessians(opened, [ids.numpy()])
        product = torch.ones(2, 2) @ torch.full((2, 2), 1.001)
    assert hidden.dtype == torch.bfloat16
    assert computed() == "float32"
    assert product.dtype == torch.float32
    rows = hidden.flatten(0, 1).float()  # which the head reads
    assert torch.equal(moments["table"], (rows.T @ rows).double() / ids.numel())


def test_quantizing_and_sampling_in_bfloat16(model: Checkpoint) -> None:
    ids = np.random.default_rng(0).integers(0, BYTES.vocab, (4, 33))
    spec = QuantSpec(method="gptq", calibration_tokens=64)
    usual, half = (
        quantize(model, dataclasses.replace(spec, precision=p), [ids]) for p in ("auto", "bfloat16")
    )
    assert usual.fingerprint != half.fingerprint
    assert "precision" not in encode(spec)
    told = sample(model, [b"a"], SampleSpec(tokens=3, temperature=0), precision="bfloat16")
    assert told.tokens == 3


def test_the_same_way_in_two_precisions_is_two_ways(model: Checkpoint) -> None:
    from segpt.leaderboard.entry import ScoreLine

    def line(precision: str) -> ScoreLine:
        spec = ScoreSpec(stride=6, batch=4, precision=precision)  # type: ignore[arg-type]
        made = score(model, TEXT, spec)
        names = {field.name for field in dataclasses.fields(ScoreLine)}
        about = {"text": made.conditions.text, "bpb": made.bpb}
        return ScoreLine(**{k: v for k, v in (made.plain() | about).items() if k in names})

    assert _method(line("auto")) == _method(line("float32")) != _method(line("bfloat16"))


def test_float32_on_a_gpu_is_float32() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        with exact_float32("cpu"):
            assert torch.get_float32_matmul_precision() == "high"
        with computing("float32", "cuda:0"):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cuda.matmul.allow_tf32
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
