"""A run on a mix of four texts: shares at every step, no sample twice, and exact resuming."""

import json
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from segpt.config.recipe import read_recipe
from segpt.data.mix import Mix, MixedSource
from segpt.data.tokenizer import BYTES, train_bpe
from segpt.data.validation import ValidationSets
from segpt.errors import CheckpointError, DataError, InterruptError, TrainError
from segpt.stages.calibrate import drawn, seen
from segpt.stages.checkpoint_io import read_checkpoint
from segpt.stages.prepare import prepare
from segpt.train.mesh import Mesh
from segpt.values import Checkpoint, Text, Tokens, arrays_digest
from tests.stages.running import train

pytestmark = pytest.mark.slow

RECIPE = """
name: tiny
about: a model for tests
tokenizer: {kind: bytes}
model:
  vocab: 257
  width: 16
  context: 16
  depth: 1
  layer:
    mixer: {heads: 2, kv_heads: 1, head_dim: 8, query_key: [norm]}
    feed: {hidden: 32}
train:
  length: {kind: steps, count: 12}
  batch: 5
  unique: true
  log_every: 1
  validate_every: 6
  validate_tokens: 200
  save_every: 1
  keep: 99
"""
SHARES = dict(zip("abcd", (Fraction(n, 11) for n in (5, 3, 2, 1)), strict=True))
Start = Callable[..., Checkpoint]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def texts(folder: Path) -> dict[str, tuple[Tokens, Tokens]]:
    def text_of(name: str) -> Text:
        documents = [f"{name} {i} comes before {i + 1}. ".encode() * 3 for i in range(20)]
        return Text(name, partial(iter, documents))

    return {n: prepare(text_of(n), text_of(f"{n} held"), BYTES, folder / n) for n in "abcd"}


@pytest.fixture
def mix(texts: dict[str, tuple[Tokens, Tokens]]) -> Mix:
    return Mix(tuple(MixedSource(n, texts[n][0], share) for n, share in SHARES.items()))


@pytest.fixture
def sets(texts: dict[str, tuple[Tokens, Tokens]]) -> ValidationSets:
    return ValidationSets(texts["b"][1], "first", {"c": texts["c"][1], "d": texts["d"][1]})


@pytest.fixture
def start(folder: Path, mix: Mix, sets: ValidationSets, tmp_path: Path) -> Start:
    def run(*settings: str, out: str = "run", **options: Any) -> Checkpoint:
        recipe = read_recipe(str(folder / "tiny.yaml"), settings)
        text, held_out = options.pop("text", mix), options.pop("held_out", sets)
        mesh = Mesh(0, 1, torch.device("cpu"))
        path = train(recipe, text, held_out, tmp_path / out, mesh, **options)
        return read_checkpoint(path, state=True)

    return run


def digest(checkpoint: Checkpoint) -> str:
    assert checkpoint.state is not None
    state = {name: value for name, value in checkpoint.state.items() if name != "elapsed"}
    return arrays_digest(state) + arrays_digest(checkpoint.weights)


def metrics_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_shares_hold_at_every_step_and_nothing_repeats(start: Start, tmp_path: Path) -> None:
    start()
    saved = sorted((tmp_path / "run").glob("step-*"))
    assert len(saved) == 12
    for step, path in enumerate(saved, 1):
        read = read_checkpoint(path).about.read
        assert read is not None
        assert read.blocks == 5 * step
        assert set(read.times) <= {"0", "1"}
        assert read.distinct == read.tokens == 80 * step
        for source in read.sources:
            assert abs(source.blocks - SHARES[source.name] * 5 * step) < 1


def test_a_run_that_stops_twice_goes_on_bit_for_bit(start: Start, tmp_path: Path) -> None:
    whole = start(out="whole")
    for again in ("first", "again"):
        stops = iter([False, False, True])
        with pytest.raises(InterruptError):
            start(out=again, stop=partial(next, stops))
        stops = iter([False, False, False, True])
        half = read_checkpoint(tmp_path / again / "step-00000003", state=True)
        with pytest.raises(InterruptError):
            start(out=again, resume=half, stop=partial(next, stops))
        later = read_checkpoint(tmp_path / again / "step-00000007", state=True)
        assert digest(start(out=again, resume=later)) == digest(whole)


def test_another_mix_is_another_text(start: Start, mix: Mix, tmp_path: Path) -> None:
    start()
    half = read_checkpoint(tmp_path / "run" / "step-00000003", state=True)
    turned = Mix(mix.sources[::-1])
    with pytest.raises(TrainError, match="another text"):
        start(resume=half, text=turned)
    with pytest.raises(TrainError, match="another text"):
        start(resume=half, text=mix.sources[0].tokens)
    assert half.state is not None
    short = {name: a for name, a in half.state.items() if name != "source 1|ledger|now"}
    with pytest.raises(CheckpointError, match="the record of what was read"):
        start(resume=Checkpoint(**{**vars_of(half), "state": short}))


def vars_of(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: getattr(checkpoint, name) for name in checkpoint.__dataclass_fields__}


def test_every_set_is_measured_and_the_first_chooses(start: Start, tmp_path: Path) -> None:
    last = start("train.keep_best=true")
    measured = [line for line in metrics_of(tmp_path / "run") if line["validation_bpb"]]
    assert [line["step"] for line in measured] == [6, 12]
    for line in measured:
        assert list(line["validation_bpb_by_set"]) == ["first", "c", "d"]
        assert line["validation_bpb_by_set"]["first"] == line["validation_bpb"]
        assert len(set(line["validation_bpb_by_set"].values())) == 3
    best = last.about.best
    assert best is not None
    assert best.bpb == min(line["validation_bpb"] for line in measured)
    about = last.about.text
    assert about is not None
    assert [each.name for each in about.validations] == ["first", "c", "d"]
    assert [(each.name, Fraction(each.share)) for each in about.sources] == list(SHARES.items())
    start(out="alone", held_out=ValidationSets(last_set(about.validations[0].place)))
    alone = [line for line in metrics_of(tmp_path / "alone") if line["validation_bpb"]]
    assert [line["validation_bpb"] for line in alone] == [
        line["validation_bpb"] for line in measured
    ]
    assert all("validation_bpb_by_set" not in line for line in alone)


def last_set(place: str) -> Tokens:
    from segpt.stages.prepare import open_splits

    return open_splits(Path(place))[1]


def test_a_short_source_and_a_seen_validation_are_refused(
    start: Start, texts: dict[str, tuple[Tokens, Tokens]]
) -> None:
    with pytest.raises(DataError, match=r"needs [\d,]+ tokens more of a than"):
        start("train.length.count=99")
    with pytest.raises(DataError, match="20 documents are in both c and the validation set held"):
        start(held_out=ValidationSets(texts["b"][1], "first", {"held": texts["c"][0]}))


def test_another_tokenizer_is_refused(mix: Mix, start: Start, tmp_path: Path) -> None:
    text = Text("other", lambda: iter([b"other words, and %d" % i for i in range(300)]))
    held = Text("held", lambda: iter([b"held words, and %d" % i for i in range(300)]))
    tokens, validation = prepare(text, held, train_bpe(text, 300), tmp_path / "other")
    with pytest.raises(DataError, match="e has another tokenizer than a"):
        Mix((*mix.sources, MixedSource("e", tokens, Fraction(1))))
    with pytest.raises(DataError, match="the validation text has another tokenizer"):
        start(held_out=validation)


def test_calibration_draws_in_the_shares_of_the_mix(mix: Mix) -> None:
    first = next(drawn(mix, 16))
    assert first.shape == (16, 17)
    opened = [bytes(row[row < 256].astype("u1")) for row in first]
    counts = {name: sum(name.encode() + b" " in row for row in opened) for name in "abcd"}
    assert counts["a"] > counts["d"]
    assert seen(mix).sum() == len(set(b"abcd comes before. 0123456789")) + 1
