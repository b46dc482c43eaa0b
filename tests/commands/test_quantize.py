"""``segpt quantize``: methods, budgets, reports, and going on after an interruption."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from numpy.typing import NDArray
from torch import Tensor

from segpt.artifact.container import load, pack, unpack
from segpt.config.base import encode
from segpt.model.model import Model
from segpt.quant import sensitivity
from segpt.quant.sensitivity import Sensitivity
from segpt.stages import quantized_io, run_directory, unfinished
from segpt.values import QuantizeProgress, TrellisWeight, UniformWeight
from tests.reports import report_of

pytestmark = pytest.mark.slow

Command = Callable[..., Result]
Batch = NDArray[np.int64] | Tensor
FAST = ("quantize.search=0", "quantize.tune_steps=1", "quantize.report_tokens=256")
SETTINGS = [word for setting in FAST for word in ("--set", setting)]


@pytest.fixture
def quantize(
    line: dict[str, Any],
    workplace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    segpt: Command,
) -> Command:
    """Quantize the trained model of a fresh copy of the workplace, beside it."""
    assert line["train"]["steps"] == 30
    for name in ("runs", "tiny.yaml", "train.jsonl", "held.jsonl"):
        source = workplace / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return lambda *args: segpt("quantize", "--out", "out", *SETTINGS, *args)


def done(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def refused(result: Result, *words: str, code: int = 2) -> None:
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("segpt:")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]
    assert not Path("out").exists()


def test_rows_of_text_are_as_long_as_the_user_says(
    quantize: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: set[int] = set()
    measured = sensitivity.sensitivities

    def watched(model: Model, batches: Iterable[Batch], seed: int = 0) -> dict[str, Sensitivity]:
        kept = list(batches)
        lengths.update(batch.shape[1] for batch in kept)
        return measured(model, kept, seed)

    monkeypatch.setattr("segpt.stages.quantize.sensitivities", watched)
    found = done(quantize("--json", "--method", "trellis", "--bits", "3", "--context", "8"))
    assert lengths == {8}
    assert "chunks of 8" in found["bpb_of"] or " 8 " in found["bpb_of"]
    report = quantized_io.read_quantized(Path("out")).report
    assert report is not None
    assert report.spec is not None
    assert report.spec["context"] == 8


def test_by_default_the_budget_of_the_recipe_is_the_limit(quantize: Command) -> None:
    found = done(quantize("--json", "--set", "pack.budget=8000"))
    assert (found["method"], found["budget"]) == ("trellis", 8000)
    assert found["bytes"] <= 8000
    quantized = quantized_io.read_quantized(Path("out"))
    assert pack(quantized).size == found["bytes"] > 7900
    assert {w.states for w in quantized.weights.values() if isinstance(w, TrellisWeight)} == {8}
    assert report_of(quantized).budget == 8000
    assert not Path("out.partial").exists()


def test_json_and_report_say_what_it_costs(quantize: Command) -> None:
    found = done(quantize("--json", "--budget", 9000))
    assert found["out"] == "out"
    assert found["rules"] == found["fallbacks"] == []
    assert set(found["roles"]) == {"table", "matrix", "vector"}
    assert set(found["layers"]) == {"0", "1"}
    for row in [*found["roles"].values(), *found["layers"].values()]:
        assert {"parameters", "bits_per_weight", "error", "damage"} <= row.keys()
    assert found["roles"]["table"]["damage"] > 0
    measured = {"bpb_before", "bpb_after", "kl_mean", "kl_p99", "top1_agreement", "tokens"}
    assert measured | {"bits_per_weight", "bytes", "budget", "method"} <= found.keys()
    report = encode(quantized_io.read_quantized(Path("out")).report)
    assert report["roles"] == found["roles"]
    assert report["layers"] == found["layers"]
    assert report["weights"]["layers.0.feed.body.up"]["damage"] > 0
    assert report["quality"]["kl_mean"] == found["kl_mean"]


def test_people_read_the_same(quantize: Command) -> None:
    result = quantize("--budget", 9000)
    assert result.exit_code == 0, result.output
    for words in ("method trellis", "table", "matrix", "bits per weight", "bytes packed", "KL"):
        assert words in result.stdout


def test_bits_alone_mean_gptq(quantize: Command) -> None:
    found = done(quantize("--json", "--bits", 6))
    assert (found["method"], found["budget"]) == ("gptq", None)
    assert "matrix: 6 bits, clip 12.85 sigma, a scale per row" in found["rules"]
    weights = quantized_io.read_quantized(Path("out")).weights
    matrix = weights["layers.0.feed.body.up"]
    assert isinstance(matrix, UniformWeight)
    assert matrix.bits == 6


@pytest.mark.parametrize(("method", "states"), [("trellis", 8), ("rd", 1)])
def test_bits_of_a_method_are_the_mean(quantize: Command, method: str, states: int) -> None:
    found = done(quantize("--json", "--method", method, "--bits", 3))
    assert (found["method"], found["budget"]) == (method, None)
    rows = [found["roles"][role] for role in ("table", "matrix")]
    bits = sum(row["parameters"] * row["bits_per_weight"] for row in rows)
    assert bits / sum(row["parameters"] for row in rows) == pytest.approx(3, abs=0.02)
    table = quantized_io.read_quantized(Path("out")).weights["table"]
    assert isinstance(table, TrellisWeight)
    assert table.states == states


def test_rows_that_the_text_never_needs_are_shared(quantize: Command) -> None:
    """Text of letters and digits trains few of the 257 bytes."""
    done(quantize("--json", "--budget", 9000))
    table = quantized_io.read_quantized(Path("out")).weights["table"]
    assert isinstance(table, TrellisWeight)
    assert table.stored is not None
    assert [letter for letter in "esum0189.,#AZ~" if table.stored[ord(letter)]] == [*"esum0189."]
    assert len(table.codes) == table.stored.sum() < 60


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--method", "gptq", "--budget", 9000), ("gptq has no budget", "method trellis or rd")),
        (("--method", "nearest", "--budget", 9000), ("nearest has no budget",)),
        (("--bits", 4, "--budget", 9000), ("a budget or a rate, not both",)),
        (("--set", "quantize.states=5"), ("quantize", "states are 4, 8 or 16")),
        (("--resume",), ("nothing to resume", "out.partial", "leave out --resume")),
    ],
)
def test_what_cannot_be_is_refused(quantize: Command, args: Any, words: Any) -> None:
    refused(quantize(*args), *words)


def test_a_budget_that_nothing_fits_fails_the_check(quantize: Command) -> None:
    result = quantize("--budget", 900)
    refused(result, "over the budget of 900", "give more bytes", code=1)


@pytest.fixture
def interrupted(quantize: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """``interrupted(parts, *args)`` presses Ctrl-C when so many parts are saved."""
    save = unfinished.save_partial

    def call(parts: int, *args: object) -> Result:
        def then_stop(path: Path, partial: QuantizeProgress, origin: dict[str, str]) -> None:
            save(path, partial, origin)
            if partial.done == parts:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(unfinished, "save_partial", then_stop)
            return quantize(*args)

    return call


METHODS = (("--budget", 9000), ("--method", "rd", "--bits", 4), ("--bits", 5))


@pytest.mark.parametrize("args", METHODS)
def test_an_interrupted_call_goes_on_with_resume(
    quantize: Command, interrupted: Callable[..., Result], args: Any
) -> None:
    whole = done(quantize("--json", *args))
    before = quantized_io.read_quantized(Path("out"))
    shutil.rmtree("out")
    for parts in (1, 2):
        more = ["--resume"] * (parts == 2)
        result = interrupted(parts, *args, *more)
        assert result.exit_code == 130
        assert "Traceback" not in result.output
        assert not Path("out").exists()
        assert run_directory.kind_of(Path("out.partial")) == "partial"
    assert done(quantize("--json", *args, "--resume")) == whole
    after = quantized_io.read_quantized(Path("out"))
    assert after == before
    assert after.report == before.report
    assert not Path("out.partial").exists()


def test_resuming_something_else_is_refused(
    quantize: Command, interrupted: Callable[..., Result]
) -> None:
    assert interrupted(1, "--budget", 9000).exit_code == 130
    for args in (("--budget", 9001), ("--bits", 4), ("--set", "quantize.damping=0.02")):
        refused(quantize("--resume", *args), "other settings", "leave out --resume")
    earlier = min(Path("runs").glob("*/step-*"))
    refused(quantize(earlier, "--budget", 9000, "--resume"), "another checkpoint")
    assert quantize("--budget", 9000).exit_code == 0  # begins anew
    assert not Path("out.partial").exists()


def test_the_packed_file_is_the_one_that_was_measured(quantize: Command, segpt: Command) -> None:
    found = done(quantize("--json", "--budget", 9000))
    packed = done(segpt("pack", "out", "--out", "model.segpt", "--budget", 9000, "--json"))
    assert packed["bytes"] == found["bytes"]
    restored = unpack(load(Path("model.segpt")))
    assert restored.weights == quantized_io.read_quantized(Path("out")).weights
