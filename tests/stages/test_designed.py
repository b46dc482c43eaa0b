"""The stage where steps are designed: budgets of the packed file, the same bytes, resuming."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segpt.artifact.container import pack, unpack
from segpt.config.base import decode, encode
from segpt.config.layout import Role, layout, parameters
from segpt.config.quant import DEFAULT_RULES, QuantSpec, Rule
from segpt.config.quant_report import QuantReport
from segpt.errors import CheckError, CheckpointError
from segpt.model.params import weights
from segpt.quant.stepped import entropy
from segpt.stages import unfinished
from segpt.stages.calibrate import share
from segpt.stages.open_model import from_quantized
from segpt.stages.quantize import HeldOut, PartProgress, Resumption, quantize
from segpt.values import Checkpoint, Float16Weight, Quantized, QuantizeProgress, TrellisWeight
from tests.reports import quality_of
from tests.stages.one_quantizer import digests
from tests.stages.random_models import blocks, checkpoint

SCRIPT, ROOT = Path(__file__).with_name("one_quantizer.py"), Path(__file__).parents[2]
FAST: dict[str, Any] = {"search": 0, "tune_steps": 0, "calibration_tokens": 2048}


def held_out(vocab: int) -> HeldOut:
    return HeldOut(blocks(vocab, seed=2), 1 + np.arange(vocab) % 4)


def run(source: Checkpoint, **spec: Any) -> Quantized:
    return quantize(source, QuantSpec(**FAST | spec), blocks(source.spec.vocab))


def rate(quantized: Quantized) -> float:
    stepped = [w for w in quantized.weights.values() if isinstance(w, TrellisWeight)]
    return sum(map(entropy, stepped)) / sum(w.shape[0] * w.shape[1] for w in stepped)


def lands(found: Quantized, budget: int) -> None:
    """The packed file is as large as it may be, and holds what was measured."""
    packed = pack(found)
    assert 0.995 * budget <= packed.size <= budget
    assert unpack(packed).weights == found.weights


def budget_for(source: Checkpoint, bits: float) -> int:
    return int(parameters(source.spec) * bits / 8)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "bits", "spec"), [
    ({"width": 64, "hidden": 224}, 2.2, {}),
    ({"width": 32, "hidden": 160}, 3.0, {"method": "rd", "search": 1, "tune_steps": 2}),
    (
        {"vocab": 700, "width": 32, "depth": 1, "unseen": 40},
        3.5,
        {"tune_steps": 2, "search": 1},
    ),
    ({"tied": False, "width": 64, "depth": 1, "hidden": 256, "route": "(0)*3"}, 4.6, {}),
])  # fmt: skip
def test_a_budget_is_used_up_and_never_exceeded(
    model: dict[str, Any], bits: float, spec: dict[str, Any]
) -> None:
    source = checkpoint(**model)
    budget = budget_for(source, bits)
    lands(run(source, budget=budget, **spec), budget)


MODELS: tuple[dict[str, Any], ...] = (
    {"vocab": 64, "width": 128, "depth": 3, "hidden": 320},
    {"vocab": 1024, "width": 160, "depth": 2, "hidden": 256, "unseen": 100},
    {"vocab": 257, "width": 128, "depth": 1, "hidden": 1024, "tied": False, "route": "(0)*4"},
    {"vocab": 16, "width": 96, "depth": 5, "hidden": 288, "tied": False},
    {"vocab": 4096, "width": 64, "depth": 2, "hidden": 256, "route": "0 (1)*2"},
)
SPECS: tuple[tuple[float, dict[str, Any]], ...] = (
    (2.2, {}),
    (3.1, {"tune_steps": 8, "search": 1}),
    (4.2, {"tune_steps": 8, "method": "rd"}),
    (5.2, {"states": 16, "tune_steps": 3}),
)


@pytest.mark.campaign
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("bits", "spec"), SPECS)
def test_budgets_of_many_models(model: dict[str, Any], bits: float, spec: dict[str, Any]) -> None:
    source = checkpoint(**model, seed=int(10 * bits))
    assert parameters(source.spec) > 300_000
    budget = budget_for(source, bits)
    found = run(source, budget=budget, **spec)
    if (size := pack(found).size) < 0.995 * budget:  # then finer steps there are none
        assert bits > 5
        assert pack(run(source, budget=2 * budget, **spec)).size < 1.005 * size
    else:
        lands(found, budget)


@pytest.mark.slow
@pytest.mark.parametrize("share", [6.5, 32])
def test_more_bytes_than_the_finest_steps_take(share: float) -> None:
    source = checkpoint(depth=1)
    budget = budget_for(source, share)
    found = quantize(source, QuantSpec(**FAST, budget=budget), blocks(120), held_out(120))
    assert pack(found).size <= budget
    assert rate(found) > 5.3
    assert quality_of(found).kl_mean < 1e-3


@pytest.mark.slow
def test_a_budget_that_nothing_fits_is_refused_with_what_to_do() -> None:
    saved: list[QuantizeProgress] = []
    source = checkpoint()
    with pytest.raises(CheckError, match=r"over the budget of 1,000; give more bytes") as error:
        quantize(
            source,
            QuantSpec(**FAST, budget=1000),
            blocks(120),
            resumption=Resumption(save=saved.append),
        )
    assert error.value.exit_code == 1
    assert not saved


@pytest.mark.slow
@pytest.mark.parametrize("spec", [
    {"rate": 3.0}, {"rate": 4.5, "tune_steps": 3}, {"rate": 2.5, "method": "rd", "search": 1}
])  # fmt: skip
def test_a_rate_is_met(spec: dict[str, Any]) -> None:
    assert rate(run(checkpoint(), **spec)) == pytest.approx(spec["rate"], abs=0.01)


@pytest.mark.slow
def test_the_report_says_what_each_weight_takes_and_loses() -> None:
    source = checkpoint(tied=False)
    rules = (*DEFAULT_RULES, Rule(role="matrix", bits=16, layers="1"))
    spec = QuantSpec(**FAST, rate=3.0, rules=rules)
    found = quantize(source, spec, blocks(120), held_out(120))
    report = json.loads(json.dumps(encode(found.report), allow_nan=False))
    assert decode(QuantReport, report) == found.report
    assert list(report["weights"]) == [w.name for w in layout(source.spec)]
    for name, entry in report["weights"].items():
        coded = found.weights[name]
        if isinstance(coded, Float16Weight):
            assert entry["bits_per_weight"] == 16
            assert entry["damage"] is None
            assert entry["role"] == "vector" or entry["layer"] == "1"
            continue
        assert isinstance(coded, TrellisWeight)
        assert (entry["states"], entry["step"]) == (8, coded.step)
        assert entry["bits_per_weight"] == entropy(coded) / entry["parameters"]
        assert 0 < entry["damage"] < 1
        assert 0 < entry["error"] < 0.5
        assert 0 < entry["output_error"] < 0.1
        assert not entry["fallback"]
    assert set(report["roles"]) == {"table", "head", "matrix", "vector"}
    assert set(report["layers"]) == {"0", "1"}
    for key, groups in (("role", report["roles"]), ("layer", report["layers"])):
        for group, row in groups.items():
            entries = [e for e in report["weights"].values() if e[key] == group]
            assert row["parameters"] == sum(e["parameters"] for e in entries)
            assert row["damage"] == pytest.approx(sum(e["damage"] or 0 for e in entries))
    assert report["fallbacks"] == []
    predicted = sum(row["damage"] for row in report["roles"].values())
    assert 0.5 * predicted < report["quality"]["kl_mean"] < 2 * predicted


@pytest.mark.slow
def test_shared_rows_need_the_text_to_say_what_was_seen() -> None:
    source = checkpoint(unseen=40)
    seen = np.arange(120) < 80
    spec = QuantSpec(**FAST, rate=3.0)
    with_text = quantize(source, spec, blocks(120), seen=seen).weights["table"]
    without = quantize(source, spec, blocks(120)).weights["table"]
    assert isinstance(with_text, TrellisWeight)
    assert with_text.stored is not None
    assert with_text.stored.tolist() == seen.tolist()
    assert isinstance(without, TrellisWeight)
    assert without.stored is None


@pytest.mark.slow
def test_progress_goes_forward_to_the_end() -> None:
    spec = QuantSpec(**FAST | {"rate": 3.0, "tune_steps": 2, "search": 1, "report_tokens": 512})
    steps: list[PartProgress] = []
    quantize(checkpoint(), spec, blocks(120), held_out(120), report=steps.append)
    fractions = [share(step, spec) for step in steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert {step.task for step in steps} == {
        "calibrate", "fit", "search", "tune", "round", "measure"
    }  # fmt: skip


@pytest.mark.parametrize("method", ["trellis", "rd"])
def test_values_that_float16_cannot_hold_are_refused_by_name(method: Any) -> None:
    source = checkpoint()
    name = "visits.0.0.mix"
    changed = source.weights[name].copy()
    changed[0] = 1e5
    odd = dataclasses.replace(source, weights={**source.weights, name: changed})
    with pytest.raises(CheckpointError, match=rf"{name}.*too large for float16"):
        run(odd, method=method, rate=3.0)


@pytest.mark.slow
def test_layers_of_nothing_are_coded() -> None:
    """As they are before training: no curvature, and no weights."""
    source = checkpoint(depth=1)
    nothing = {
        name: value * 0 if name.endswith(("out", "down")) else value
        for name, value in source.weights.items()
    }
    found = run(dataclasses.replace(source, weights=nothing), budget=5_500, tune_steps=2)
    assert pack(found).size <= 5_500
    for name, coded in found.weights.items():
        assert np.isfinite(coded.decoded()).all()
        if name.endswith(("out", "down")):
            assert not coded.decoded().any()


@pytest.mark.slow
def test_every_process_makes_the_same_bytes() -> None:
    """This one, and another with two threads and other hashes."""
    spec = {**FAST, "budget": 10_000, "tune_steps": 2, "search": 1}
    threads = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), json.dumps(spec)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "2"} | threads,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == digests(spec)


class StopError(Exception):
    """An interruption."""


@pytest.mark.slow
@pytest.mark.parametrize("spec", [
    {"budget": 10_000, "tune_steps": 2, "search": 1},
    {"rate": 3.0, "method": "rd", "tune_steps": 2},
    {"method": "gptq"},
])  # fmt: skip
def test_an_interrupted_call_goes_on_from_disk_to_the_same_end(
    tmp_path: Path, spec: dict[str, Any]
) -> None:
    source = checkpoint(tied=False)
    settings, saved = QuantSpec(**FAST | spec), list[QuantizeProgress]()

    def call(**more: Any) -> Quantized:
        return quantize(source, settings, blocks(120), held_out(120), **more)

    whole = call(resumption=Resumption(save=saved.append))
    origin = {"checkpoint": source.fingerprint}
    for partial in saved[:3]:
        unfinished.save_partial(tmp_path / "partial", partial, origin)
        found = call(resumption=Resumption(unfinished.read_partial(tmp_path / "partial", origin)))
        assert found == whole
        assert found.fingerprint == whole.fingerprint
        assert found.report == whole.report
        assert pack(found).data == pack(whole).data


@pytest.mark.slow
def test_an_interruption_while_tuning_loses_one_part() -> None:
    source = checkpoint()
    spec = QuantSpec(**FAST | {"rate": 3.0, "tune_steps": 3})
    saved: list[QuantizeProgress] = []

    def report(progress: PartProgress) -> None:
        if progress.task == "tune" and progress.done == 5:
            raise StopError

    with pytest.raises(StopError):
        quantize(source, spec, blocks(120), report=report, resumption=Resumption(save=saved.append))
    assert [partial.done for partial in saved] == [1]
    assert quantize(source, spec, blocks(120), resumption=Resumption(saved[0])) == run(
        source, rate=3.0, tune_steps=3
    )


def digest_on(found: Quantized, device: str) -> str:
    """Of the weights of the model on a device, brought back."""
    model = from_quantized(found, device)
    data = b"".join(w.tensor.detach().cpu().numpy().tobytes() for w in weights(model))
    return hashlib.sha256(data).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_decoded_weights_are_the_same_everywhere(device: str) -> None:
    source = checkpoint(tied=False, unseen=20)
    spec = QuantSpec(**FAST, rate=3.0)
    found = quantize(source, spec, blocks(120), seen=np.arange(120) < 100)
    restored = unpack(pack(found))
    names = [w.name for w in layout(found.spec)]
    data = b"".join(restored.weights[name].decoded().tobytes() for name in names)
    assert digest_on(found, device) == hashlib.sha256(data).hexdigest()


@pytest.mark.cuda
def test_a_budget_holds_on_a_gpu() -> None:
    source = checkpoint(width=96, hidden=256)
    budget = budget_for(source, 3.3)
    spec = QuantSpec(**FAST | {"budget": budget, "tune_steps": 2, "search": 1})
    found = quantize(source, spec, blocks(120), held_out(120), device="cuda")
    lands(found, budget)
    on_cpu = quantize(source, spec, blocks(120), held_out(120))
    kl = [quality_of(q).kl_mean for q in (found, on_cpu)]
    assert kl[0] == pytest.approx(kl[1], rel=0.1)


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    run(checkpoint(depth=1), rate=3.0)
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_tuning_changes_vectors_and_what_is_not_coded_yet() -> None:
    source = checkpoint()
    plain, tuned = (run(source, rate=3.0, tune_steps=count) for count in (0, 3))
    for weight in layout(source.spec):
        one, two = plain.weights[weight.name], tuned.weights[weight.name]
        if weight.role is Role.VECTOR:
            assert isinstance(two, Float16Weight)
            assert np.allclose(one.decoded(), two.decoded(), atol=0.05)
        else:
            assert isinstance(two, TrellisWeight)
    assert plain.weights["table"] == tuned.weights["table"]
    assert plain.weights != tuned.weights
