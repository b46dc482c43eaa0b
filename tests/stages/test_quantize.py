"""The whole stage on tiny random models, with the bits that rules give."""

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.config.base import decode, encode, fingerprint
from segpt.config.expand import expand
from segpt.config.layout import Role, Weight, layout
from segpt.config.model import ModelSpec
from segpt.config.quant import Method, QuantSpec, Rule
from segpt.config.quant_report import QuantReport
from segpt.errors import CheckpointError, DataError, SpecError
from segpt.quant.gptq import gptq
from segpt.quant.grid import scales
from segpt.quant.hessian import hessians
from segpt.stages.open_model import from_checkpoint, from_quantized
from segpt.stages.quantize import HeldOut, PartProgress, Resumption, quantize
from segpt.values import (
    Checkpoint,
    Float16Weight,
    Quantized,
    QuantizeProgress,
    Tokenizer,
    UniformWeight,
)
from tests.reports import quality_of, report_of

VOCAB, CONTEXT = 96, 24
SIZES = 1 + np.arange(VOCAB) % 4


def model_spec(**changes: Any) -> ModelSpec:
    recipe: dict[str, Any] = {
        "vocab": VOCAB,
        "width": 48,
        "context": CONTEXT,
        "depth": 2,
        "route": "0 (1)*2",
        "join": ["mix_input"],
        "skips": "mirror",
        "head": {"tied": True, "softcap": 30.0},
        "layer": {
            "mixer": {
                "heads": 3,
                "kv_heads": 1,
                "head_dim": 16,
                "query_key": ["norm", {"kind": "rope", "dims": 8}, {"kind": "gain", "init": 2.0}],
                "output": [{"kind": "head_gate", "inputs": 8}],
            },
            "feed": {"hidden": 96},
        },
    }
    return expand(recipe | changes)


def checkpoint(seed: int = 0, progress: float = 1.0, **changes: Any) -> Checkpoint:
    spec = model_spec(**changes)
    generator = np.random.default_rng(seed)

    def value(weight: Weight) -> NDArray[np.float32]:
        spread = 0.1 if weight.role is Role.VECTOR else weight.shape[-1] ** -0.5
        offset = 1.0 if weight.role is Role.VECTOR else 0.0
        return generator.normal(offset, spread, weight.shape).astype(np.float32)

    return Checkpoint(
        spec=spec,
        weights={w.name: value(w) for w in layout(spec)},
        tokenizer=Tokenizer("bytes", VOCAB),
        step=10,
        progress=progress,
        documents=np.array([1, 2, 3], np.uint64),
        origin={"tokens": "0123456789abcdef"},
    )


def blocks(seed: int, count: int = 8, rows: int = 8) -> list[NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, VOCAB, (rows, CONTEXT + 1)) for _ in range(count)]


def held_out() -> HeldOut:
    return HeldOut(blocks(2), SIZES)


def everything(bits: int, method: str = "gptq", **changes: Any) -> QuantSpec:
    """The same bits for all but vectors."""
    roles: tuple[Any, ...] = ("table", "matrix", "head")
    rules = tuple(Rule(role=role, bits=bits, **changes) for role in roles)
    kind: Any = method
    return QuantSpec(method=kind, rules=(*rules, Rule(role="vector", bits=16)))


GPTQ = QuantSpec(method="gptq")


def run(source: Checkpoint, spec: QuantSpec = GPTQ) -> Quantized:
    return quantize(source, spec, blocks(1), held_out())


@pytest.mark.slow
def test_the_quality_report_orders_bits_and_methods() -> None:
    source = checkpoint()
    quality = {
        (bits, method): quality_of(run(source, everything(bits, method)))
        for bits, method in [
            (8, "gptq"), (6, "gptq"), (4, "gptq"), (4, "nearest"), (3, "gptq"), (3, "nearest")
        ]
    }  # fmt: skip
    assert quality[8, "gptq"].top1_agreement > 0.95
    assert quality[8, "gptq"].kl_mean < 0.003
    divergences = [quality[bits, "gptq"].kl_mean for bits in (8, 6, 4, 3)]
    assert divergences == sorted(divergences)
    for bits in (3, 4):
        assert quality[bits, "gptq"].kl_mean < 0.9 * quality[bits, "nearest"].kl_mean
    for found in quality.values():
        assert found.tokens == 8 * 8 * CONTEXT
        assert found.kl_p99 > found.kl_mean > 0
        assert found.bpb_before == pytest.approx(
            found.loss_before * found.tokens / math.log(2) / found.bytes
        )
        assert found.bpb_after != found.bpb_before


NARROW = {  # calibration texts that leave inputs, or directions of them, unseen
    "one token": np.full((8, CONTEXT + 1), 5),
    "three tokens": np.tile(np.arange(3), (8, 9))[:, : CONTEXT + 1],
    "one sequence": blocks(3, count=1, rows=1)[0],
    "three sequences": blocks(3, count=1, rows=3)[0],
}


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("text", NARROW)
def test_a_narrow_calibration_text_does_no_harm(text: str, bits: int) -> None:
    mixer = {"heads": 3, "kv_heads": 1, "head_dim": 16, "query_key": [{"kind": "rope", "dims": 8}]}
    feed = {"hidden": 96, "act": "relu2"}  # whose units are often silent
    damage = {"gptq": 0.0, "nearest": 0.0}
    for seed in range(3):
        source = checkpoint(seed, layer={"mixer": mixer, "feed": feed})
        for method in damage:
            coded = quantize(source, everything(bits, method), [NARROW[text]], held_out())
            damage[method] += quality_of(coded).kl_mean
    assert damage["gptq"] < 1.05 * damage["nearest"]  # two roundings differ by chance, too


@pytest.mark.slow
def test_weights_follow_the_layout_and_decode_to_the_measured_model() -> None:
    source = checkpoint()
    found = run(source)
    assert list(found.weights) == [w.name for w in layout(source.spec)]
    for weight in layout(source.spec):
        coded = found.weights[weight.name]
        assert coded.shape == weight.shape
        assert isinstance(coded, Float16Weight if weight.role is Role.VECTOR else UniformWeight)
    table = found.weights["table"]
    assert isinstance(table, UniformWeight)
    assert table.bits == 8
    with torch.no_grad():
        tokens = torch.from_numpy(blocks(2)[0])
        logits = from_quantized(found)(tokens[:, :-1]).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
    one = quantize(source, GPTQ, blocks(1), HeldOut(blocks(2)[:1], SIZES))
    assert float(loss) == pytest.approx(quality_of(one).loss_after, rel=1e-5)


def test_provenance() -> None:
    source, spec = checkpoint(), QuantSpec(method="nearest")
    found = quantize(source, spec)
    assert found.origin == {
        "tokens": "0123456789abcdef",
        "checkpoint": source.fingerprint,
        "quantize": fingerprint(spec),
    }
    assert found.tokenizer == source.tokenizer
    assert found.documents is source.documents
    assert report_of(found).quality is None
    assert quantize(source, spec).fingerprint == found.fingerprint


def test_the_report_names_every_weight_with_its_rule_as_plain_json() -> None:
    source = checkpoint(head={"tied": False, "softcap": None})
    rules = (
        *QuantSpec().rules,
        Rule(role="matrix", bits=4, layers="-1", clip=3.0, group=16),
        Rule(role="head", bits=16),
    )
    spec = QuantSpec(method="gptq", rules=rules)
    found = run(source, spec)
    report = json.loads(json.dumps(encode(found.report), allow_nan=False))
    assert decode(QuantReport, report) == found.report
    assert list(report["weights"]) == [w.name for w in layout(source.spec)]
    for weight in layout(source.spec):
        entry, rule = report["weights"][weight.name], spec.rule(weight, 2)
        assert (entry["role"], entry["bits"], entry["group"], entry["parameters"]) == (
            weight.role.value,
            rule.bits,
            rule.group,
            weight.size,
        )
        assert entry["k"] == (None if rule.bits == 16 else rule.k)
        assert not entry["fallback"]
        assert entry["damage"] is None
        layer = weight.name.split(".")[1] if weight.name.startswith("layers.") else None
        assert entry["layer"] == layer
        assert 0 <= entry["error"] < 0.05
        gptq_used = weight.role is Role.MATRIX
        assert entry["damping"] == (0.01 if gptq_used else None)
    assert report["weights"]["layers.1.feed.body.up"]["bits"] == 4
    assert report["weights"]["layers.0.feed.body.up"]["bits"] == 6
    assert isinstance(found.weights["head.matrix"], Float16Weight)
    assert report["fallbacks"] == []


def test_bits_per_weight_are_measured() -> None:
    found = run(checkpoint())
    roles = report_of(found).roles
    table = found.weights["table"]
    assert isinstance(table, UniformWeight)
    shares = np.unique(table.codes, return_counts=True)[1] / table.codes.size
    expected = -(shares * np.log2(shares)).sum() + 16 * VOCAB / table.codes.size
    assert roles["table"].bits_per_weight == pytest.approx(expected)
    assert roles["vector"].bits_per_weight == 16
    assert 3.2 < roles["matrix"].bits_per_weight - 16 / 48 < 3.5
    assert report_of(found).parameters == sum(r.parameters for r in roles.values())
    bits = sum(r.parameters * r.bits_per_weight for r in roles.values())
    assert report_of(found).bits_per_weight == pytest.approx(bits / report_of(found).parameters)


@pytest.mark.parametrize("bits", [1, 9, 12, 15])
def test_other_bits_are_refused(bits: int) -> None:
    with pytest.raises(SpecError, match="bits"):
        Rule(role="matrix", bits=bits)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_bits_mean_what_they_say(bits: int) -> None:
    found = quantize(checkpoint(), everything(bits, "nearest"))
    for coded in found.weights.values():
        if isinstance(coded, UniformWeight):
            assert coded.bits == bits
            assert len(np.unique(coded.codes)) <= 2**bits - 1
    table = found.weights["table"]
    assert isinstance(table, UniformWeight)
    assert len(np.unique(table.codes)) > 2 ** (bits - 1) / 4


def test_a_role_without_rule_is_refused() -> None:
    rules = tuple(rule for rule in QuantSpec().rules if rule.role != "matrix")
    with pytest.raises(SpecError, match=r"layers\.0\.mixer\.body\.query"):
        run(checkpoint(), QuantSpec(rules=rules))


def test_an_unknown_weight_is_refused() -> None:
    source = checkpoint()
    odd = dataclasses.replace(source, weights={**source.weights, "mlp_scale": np.ones(3)})
    with pytest.raises(CheckpointError, match="mlp_scale"):
        run(odd)


def test_small_vectors_survive() -> None:
    source = checkpoint()
    name = "visits.0.0.mix"
    small = {**source.weights, name: np.full((2, 48), 1e-3, np.float32)}
    found = run(dataclasses.replace(source, weights=small))
    assert np.allclose(found.weights[name].decoded(), 1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "value"),
    [("visits.0.0.mix", 1e5), ("layers.0.mixer.body.key", 1e9), ("table", math.nan)],
)
def test_values_that_cannot_be_stored_are_refused_by_name(name: str, value: float) -> None:
    source = checkpoint()
    changed = source.weights[name].copy()
    changed[1, 1] = value
    source = dataclasses.replace(source, weights={**source.weights, name: changed})
    with pytest.raises(CheckpointError, match=name):
        quantize(source, QuantSpec(method="nearest"))


def test_gptq_sees_every_visit_of_a_looped_layer() -> None:
    source, spec = checkpoint(), everything(4)
    text = blocks(1)
    found = quantize(source, spec, text)
    name = "layers.1.feed.body.down"
    weight = torch.from_numpy(source.weights[name])
    scale = scales(weight, 4, 4.0)

    def codes(model_at: float) -> NDArray[np.int8]:
        looped = checkpoint(route="0 (1)*2@0.5", progress=model_at)
        model = from_checkpoint(dataclasses.replace(looped, weights=source.weights))
        hessian = hessians(model, [block[:, :-1] for block in text])[name]
        return gptq(weight, hessian, scale, 4).codes.numpy()

    coded = found.weights[name]
    assert isinstance(coded, UniformWeight)
    assert np.array_equal(coded.codes, codes(1.0))
    assert not np.array_equal(coded.codes, codes(0.0))


def test_visits_that_have_not_joined_are_left_out() -> None:
    source = checkpoint(route="0 (1)*3@0.4,0.8", progress=0.5)
    found = run(source, everything(8))
    assert len(found.spec.visits) == 3
    assert list(found.weights) == [w.name for w in layout(found.spec)]
    assert quality_of(found).kl_mean < 0.005
    tokens = torch.from_numpy(np.concatenate(blocks(2)))

    @torch.no_grad()
    def loss(progress: float) -> float:
        logits = from_checkpoint(source).set_progress(progress)(tokens[:, :-1]).flatten(0, 1)
        return float(torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()))

    assert quality_of(found).loss_before == pytest.approx(loss(0.5), rel=1e-5)
    assert quality_of(found).loss_before != pytest.approx(loss(1.0), rel=1e-5)


def test_a_hessian_that_overflows_falls_back_and_is_recorded() -> None:
    spec = model_spec(route=":", override=[{"layers": "1", "set": {"norm_scale": 1e9}}])
    source = dataclasses.replace(checkpoint(), spec=spec, weights=checkpoint(route=":").weights)
    found = run(source)
    assert report_of(found).fallbacks == ("layers.1.feed.body.down",)
    entry = report_of(found).weights["layers.1.feed.body.down"]
    assert entry.fallback
    assert entry.grid is not None
    assert entry.grid.damping is None
    assert entry.output_error is None
    json.dumps(encode(found.report), allow_nan=False)
    plain = quantize(source, QuantSpec(method="nearest"))
    for name in ("layers.1.feed.body.down", "layers.1.feed.body.up"):
        same = plain.weights[name] == found.weights[name]
        assert same is (name == "layers.1.feed.body.down")


def test_only_the_asked_number_of_tokens_is_read() -> None:
    read: list[str] = []

    def endless(kind: str) -> Iterator[NDArray[np.int64]]:
        while True:
            read.append(kind)
            yield blocks(1, count=1)[0]

    steps: list[PartProgress] = []
    spec = QuantSpec(method="gptq", calibration_tokens=500, report_tokens=200)
    found = quantize(
        checkpoint(),
        spec,
        endless("calibrate"),
        HeldOut(endless("measure"), SIZES),
        report=steps.append,
    )
    assert read == ["calibrate"] * 3 + ["measure"] * 2  # blocks of 8 x 24
    assert quality_of(found).tokens == 9 * CONTEXT
    assert {step.task for step in steps} == {"calibrate", "round", "measure"}
    assert [s.done for s in steps if s.task == "calibrate"] == [192, 384, 500]
    last = [step for step in steps if step.task == "round"][-1]
    assert last.done == last.total == report_of(found).parameters


METHODS: tuple[Method, ...] = ("trellis", "rd", "gptq")


def test_without_text_only_nearest_works() -> None:
    for method in METHODS:
        with pytest.raises(DataError, match="calibration"):
            quantize(checkpoint(), QuantSpec(method=method))


def test_text_of_another_tokenizer_is_refused() -> None:
    for method in METHODS:
        with pytest.raises(DataError, match="vocabulary"):
            quantize(checkpoint(), QuantSpec(method=method), [np.full((1, 9), VOCAB)])


@pytest.mark.slow
def test_going_on_gives_the_same_as_not_stopping() -> None:
    source, saved = checkpoint(), list[QuantizeProgress]()
    steps: list[PartProgress] = []
    whole = quantize(source, GPTQ, blocks(1), held_out(), resumption=Resumption(save=saved.append))
    assert [partial.done for partial in saved] == list(range(1, len(whole.weights) + 1))
    for partial in saved[:: len(saved) // 3]:
        steps.clear()
        found = quantize(
            source, GPTQ, blocks(1), held_out(), report=steps.append, resumption=Resumption(partial)
        )
        assert found == whole
        assert found.report == whole.report
        assert steps[-1].task == "measure"


class StopError(Exception):
    """An interruption."""


def test_what_is_saved_is_not_coded_again() -> None:
    source, saved = checkpoint(), list[QuantizeProgress]()

    def save(partial: QuantizeProgress) -> None:
        saved.append(partial)
        if partial.done == 5:
            raise StopError

    with pytest.raises(StopError):
        quantize(source, GPTQ, blocks(1), resumption=Resumption(save=save))
    later: list[QuantizeProgress] = []
    found = quantize(source, GPTQ, blocks(1), resumption=Resumption(saved[-1], later.append))
    assert later[0].done == 6
    assert list(found.weights)[:5] == list(saved[-1].coded)
