"""``segpt quantize`` of an imported model, which has no recipe and no text of its own."""

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from segpt.stages import checkpoint_io, import_model, quantized_io, run_directory, unfinished
from segpt.values import QuantizeProgress, TrellisWeight, UniformWeight
from tests.convert.models import model_directory

Command = Callable[..., Result]

pytestmark = pytest.mark.slow

TEXTS = ("--calibration", "calibration.jsonl", "--held-out", "held-out")
WORDS = ["the", "cat", "sat", "on", "mat", "and", "dog", "too"]
FAST = ("quantize.search=0", "quantize.tune_steps=1", "quantize.calibration_tokens=2048")
SETTINGS = [word for setting in FAST for word in ("--set", setting)]


def document(seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=60)) + f" {seed}\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama as a checkpoint, and two texts that share nothing."""
    place = tmp_path_factory.mktemp("imported")
    checkpoint = import_model.read_foreign(model_directory(place / "llama", "llama"))
    import_model.save_imported(place / "runs" / "model", checkpoint)
    lines = [json.dumps({"text": document(seed)}) + "\n" for seed in range(40)]
    (place / "calibration.jsonl").write_text("".join(lines))
    (place / "held-out").mkdir()
    for seed in range(100, 106):
        (place / "held-out" / f"{seed}.txt").write_text(document(seed))
    return place


@pytest.fixture
def quantize(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segpt: Command
) -> Command:
    """Quantize a fresh copy of the model."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return lambda *args: segpt("quantize", *args, "--out", "out", "--context", 32, *SETTINGS)


def done(result: Result) -> dict[str, object]:
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert isinstance(printed, dict)
    return printed


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("segpt:")]
    for word in words:
        assert word in line
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("args", "coding", "bits"),
    [
        (("--bits", 4), UniformWeight, 4),
        (("--bits", 6), UniformWeight, 6),
        ((), TrellisWeight, None),
    ],
)
def test_an_imported_model_is_quantized_packed_and_scored(
    quantize: Command, segpt: Command, args: tuple[object, ...], coding: type, bits: int | None
) -> None:
    quantized = done(quantize("runs/model", *TEXTS, *args, "--json"))
    assert str(quantized["bpb_of"]).endswith("tokens of the held-out split, in chunks of 32")
    assert float(str(quantized["top1_agreement"])) > 0.5
    assert abs(float(str(quantized["bpb_after"])) - float(str(quantized["bpb_before"]))) < 0.05
    value = quantized_io.read_quantized(Path("out"))
    matrix = value.weights["layers.0.feed.body.up"]
    assert isinstance(matrix, coding)
    if isinstance(matrix, UniformWeight):
        assert matrix.bits == bits
    assert {"import", "calibration"} <= value.origin.keys()
    packed = done(segpt("pack", "out", "--json"))
    assert (packed["bytes"], packed["budget"]) == (quantized["bytes"], None)
    scored = done(segpt("score", packed["out"], "held-out", "--json"))
    assert float(str(scored["bpb"])) == pytest.approx(float(str(quantized["bpb_after"])), abs=0.2)


def test_rows_of_tokens_that_do_not_calibrate_are_kept(quantize: Command) -> None:
    """Rows that are much alike are one where training text lacks them; other text says nothing."""
    checkpoint = checkpoint_io.read_checkpoint(run_directory.newest_checkpoint(Path("runs/model")))
    table = 1 + np.float32(0.01) * checkpoint.weights["table"]
    weights = {**checkpoint.weights, "table": table.astype(np.float32)}
    import_model.save_imported(Path("alike"), dataclasses.replace(checkpoint, weights=weights))
    done(quantize("alike", *TEXTS, "--json"))
    coded = quantized_io.read_quantized(Path("out")).weights["table"]
    assert isinstance(coded, TrellisWeight)
    assert len(coded.codes) == len(table)
    assert coded.stored is None


def test_texts_may_come_from_a_prepared_directory(quantize: Command, segpt: Command) -> None:
    prepare = ("calibration.jsonl", "--validation", "held-out", "--tokenizer", "bytes")
    assert segpt("data", "prepare", *prepare, "--out", "prepared").exit_code == 0
    texts = ("--calibration", "prepared", "--held-out", "prepared")
    first = done(quantize("runs/model", *texts, "--bits", 6, "--json"))
    shutil.rmtree("out")
    second = done(quantize("runs/model", *TEXTS, "--bits", 6, "--json"))
    assert first["bpb_after"] == second["bpb_after"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), ("not known", "--calibration TEXT --held-out TEXT")),
        (TEXTS[:2], ("not known", "--calibration TEXT --held-out TEXT")),
        (TEXTS[2:], ("not known", "--calibration TEXT --held-out TEXT")),
        ((*TEXTS[:2], "--held-out", "calibration.jsonl"), ("40 documents are in both",)),
        ((*TEXTS[:2], "--held-out", "nowhere.txt"), ("nowhere.txt does not exist",)),
        ((*TEXTS, "--field", "words"), ("calibration.jsonl", "'words'", "--field")),
        ((*TEXTS, "--data", "held-out"), ("leave it out", "--calibration")),
        ((*TEXTS, "--set", "train.batch=3"), ("train", "quantize.* only")),
        ((*TEXTS, "--budget", 9000, "--bits", 4, "--method", "trellis"), ("not both",)),
    ],
)
def test_what_cannot_be_is_refused(
    quantize: Command, args: tuple[object, ...], words: tuple[str, ...]
) -> None:
    refused(quantize("runs/model", *args), *words)


@pytest.mark.parametrize("args", [("--bits", 4), ()])
def test_an_interrupted_call_goes_on_without_its_options(
    quantize: Command, segpt: Command, monkeypatch: pytest.MonkeyPatch, args: tuple[object, ...]
) -> None:
    done(quantize("runs/model", *TEXTS, *args, "--json"))
    whole = quantized_io.read_quantized(Path("out"))
    shutil.rmtree("out")
    save = unfinished.save_partial

    def then_stop(path: Path, partial: QuantizeProgress, origin: dict[str, str]) -> None:
        save(path, partial, origin)
        if partial.done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(unfinished, "save_partial", then_stop)
        assert quantize("runs/model", *TEXTS, *args).exit_code == 130
    other = ("--calibration", "held-out", "--held-out", "calibration.jsonl")
    refused(segpt("quantize", "--resume", "--out", "out", *other), "leave out --resume")
    done(segpt("quantize", "--resume", "--out", "out", "--json"))
    resumed = quantized_io.read_quantized(Path("out"))
    assert resumed == whole
    assert resumed.report == whole.report
    assert not Path("out.partial").exists()
