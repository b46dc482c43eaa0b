"""A run on text: what it reads and in which order, and how it begins, stops and goes on."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segpt.config.environment import Versions
from segpt.config.recipe import read_recipe
from segpt.config.rules import Rules, broken
from segpt.config.run_about import BestStep, Coverage
from segpt.data.tokenizer import BYTES, load
from segpt.data.tokens import ids
from segpt.errors import CheckpointError, DataError, InterruptError, SpecError, TrainError
from segpt.eval.surprisal import position_nats
from segpt.stages.checkpoint_io import read_checkpoint
from segpt.stages.open_model import from_checkpoint
from segpt.stages.prepare import prepare
from segpt.train.loop import StepMetrics
from segpt.train.mesh import Mesh
from segpt.values import Checkpoint, Text, Tokens, arrays_digest
from tests.stages.running import train

RECIPE = """
name: tiny
about: a model for tests
tokenizer: {kind: bytes}
model:
  vocab: 257
  width: 32
  context: 32
  depth: 2
  route: "0 (1)*2@0.5"
  layer:
    mixer: {heads: 2, kv_heads: 1, head_dim: 16, query_key: [norm]}
    feed: {hidden: 64}
train:
  length: {kind: steps, count: 10}
  batch: 4
  average: {decay: 0.9}
  log_every: 1
  validate_every: 5
  validate_tokens: 500
  save_every: 5
"""

Splits = tuple[Tokens, Tokens]
Start = Callable[..., Checkpoint]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def splits(folder: Path) -> Splits:
    """Sentences without end, 12,000 bytes of them, and a tenth of that to validate on."""
    documents = [f"the {i * 7 % 31} of {i} comes before {i + 1}. ".encode() * 4 for i in range(90)]
    train_text, validation = (
        Text(name, partial(iter, [name.encode() + document for document in found]))
        for name, found in (("train", documents), ("validation", documents[:9]))
    )
    return prepare(train_text, validation, BYTES, folder / "data")


@pytest.fixture
def start(folder: Path, splits: Splits, tmp_path: Path) -> Start:
    """Run the recipe after settings and return the last checkpoint; each run has a directory."""

    def run(*settings: str, out: str = "run", **options: Any) -> Checkpoint:
        recipe = read_recipe(str(folder / "tiny.yaml"), settings)
        tokens, held_out = options.pop("splits", splits)
        mesh = Mesh(0, 1, torch.device("cpu"))
        path = train(recipe, tokens, held_out, tmp_path / out, mesh, **options)
        return read_checkpoint(path, state=True)

    return run


def digest(checkpoint: Checkpoint) -> str:
    assert checkpoint.state is not None
    state = {name: value for name, value in checkpoint.state.items() if name != "elapsed"}
    return arrays_digest(state) + arrays_digest(checkpoint.weights)


def steps_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "before", "words"),
    [
        ("processes", 2, "processes 2 before and 1 now"),
        ("device", "cuda", "device cuda before and cpu now"),
        ("threads", 99, "threads 99 before and "),
        ("versions", Versions(torch="1.0"), "torch 1.0 before and "),
    ],
)
def test_a_run_that_goes_on_in_another_way_says_it_is_not_bit_exact(
    start: Start, tmp_path: Path, key: str, before: Any, words: str
) -> None:
    asked = iter([False, False, True])
    with pytest.raises(InterruptError):
        start(stop=partial(next, asked))
    half = read_checkpoint(tmp_path / "run" / "step-00000003", state=True)
    told: list[str] = []
    start(resume=half, notice=told.append)
    assert not any("bit for bit" in line for line in told)
    environment = dataclasses.replace(half.about.environment, **{key: before})
    changed = dataclasses.replace(half.about, environment=environment)
    other = dataclasses.replace(half, about=changed)
    start(resume=other, notice=told.append)
    (line,) = (line for line in told if "bit for bit" in line)
    assert words in line


def read_of(checkpoint: Checkpoint) -> Coverage:
    """What a checkpoint was trained on."""
    assert checkpoint.about.read is not None
    return checkpoint.about.read


RAMP = "train.schedule.ramp={milestones: [0.3, 0.7]}"
SETTINGS: tuple[list[str], ...] = (
    [],
    ["train.order=sequential"],
    [RAMP],
    [RAMP, "train.accumulation=2"],
)


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
def test_stopping_changes_nothing(start: Start, settings: list[str], tmp_path: Path) -> None:
    whole = start(*settings)
    for stop in (3, 7):
        asked = iter([False] * (stop - 1) + [True])
        with pytest.raises(InterruptError):
            start(*settings, out=str(stop), stop=partial(next, asked))
        half = read_checkpoint(tmp_path / str(stop) / f"step-{stop:08d}", state=True)
        assert read_of(half).digest != read_of(whole).digest
        resumed = start(*settings, out=str(stop), resume=half)
        assert digest(resumed) == digest(whole)
        assert read_of(resumed) == read_of(whole)


def test_what_is_reported_is_what_was_trained_on(start: Start, tmp_path: Path) -> None:
    # a loader that draws more than it trains on, and says neither
    read = read_of(start(RAMP))
    sizes = [4] * 3 + [8] * 4 + [16] * 3  # steps in the middle of which no, one, two are past
    tokens = np.cumsum(sizes) * 32
    assert [step["tokens"] for step in steps_of(tmp_path / "run")] == tokens.tolist()
    assert read.tokens == tokens[-1] == 32 * read.blocks
    assert sum(int(often) * n for often, n in read.times.items()) == tokens[-1]
    assert read.distinct == tokens[-1]  # less than an epoch


def test_several_epochs_are_told_apart(start: Start, splits: Splits) -> None:
    tokens, _ = splits
    blocks = (tokens.count - 1) // 32
    read = read_of(start(f"train.batch={blocks}", "train.length.count=2", "train.order=sequential"))
    rest = (tokens.count - 1) % 32
    assert rest
    assert read.times == {"0": rest, "2": 32 * blocks}
    assert read.left_out == 2 * rest


@pytest.mark.slow
def test_in_sequence_the_text_is_read_as_it_lies(start: Start, splits: Splits) -> None:
    read = read_of(start("train.order=sequential"))
    assert read.in_order
    assert not read_of(start(out="other")).in_order
    state = start("train.order=sequential", out="again").state
    assert state is not None
    assert np.unpackbits(state["ledger|taken"])[:40].all()  # 10 steps of 4 blocks
    assert not np.unpackbits(state["ledger|taken"])[40:].any()


@pytest.mark.slow
def test_a_text_too_short_to_be_read_once_is_refused_before_training(
    start: Start, splits: Splits, tmp_path: Path
) -> None:
    # files that begin again when they are used up, so that samples repeat unnoticed
    tokens, _ = splits
    blocks = (tokens.count - 1) // 32
    steps = blocks // 32 + 1
    missing = (32 * steps - blocks) * 32
    once = ("train.unique=true", "train.order=sequential", "train.batch=32")
    with pytest.raises(DataError, match=f"needs {missing:,} more"):
        start(*once, f"train.length.count={steps}")
    assert not (tmp_path / "run").exists()
    assert start(*once, f"train.length.count={steps - 1}").step == steps - 1
    again = start("train.batch=32", f"train.length.count={steps}", out="more")
    assert read_of(again).times["2"] > 0  # which is fine otherwise


def test_a_run_in_seconds_ends_where_its_text_does(start: Start, splits: Splits) -> None:
    tokens, _ = splits
    blocks = (tokens.count - 1) // 32
    once = ("train.unique=true", "train.order=sequential", "train.batch=64")
    done = start(*once, "train.length={kind: seconds, count: 600}")
    assert done.step == blocks // 64
    assert set(read_of(done).times) <= {"0", "1"}


def test_a_checkpoint_from_before_the_ledger_is_resumed(start: Start, tmp_path: Path) -> None:
    whole = start()
    half = read_checkpoint(tmp_path / "run" / "step-00000005", state=True)
    assert half.state is not None
    state = {
        name: value
        for name, value in half.state.items()
        if not name.startswith("ledger|") and name not in ("blocks", "validations")
    }
    resumed = start(out="old", resume=dataclasses.replace(half, state=state))
    assert read_of(resumed) == read_of(whole)
    assert arrays_digest(resumed.weights) == arrays_digest(whole.weights)


@pytest.mark.slow
def test_a_warm_start_takes_all_its_own_steps(start: Start) -> None:
    # a step counter that goes on from the checkpoint leaves no step to take in a shorter run
    long = start("train.length.count=40", out="long")
    first = dataclasses.replace(long, step=500)
    reports: list[StepMetrics] = []
    warm = start("train.schedule.warmup=0.2", init=first, report=reports.append)
    assert [r.step for r in reports] == list(range(1, 11))
    assert warm.step == 10
    assert warm.about.tokens == 10 * 4 * 32
    assert arrays_digest(warm.weights) != arrays_digest(long.weights)
    # its own schedule from the start, a fresh optimizer, and an average that begins anew
    assert reports[0].rate == pytest.approx(0.5)
    assert warm.state is not None
    assert warm.state["updates"] == 10
    assert warm.state["adam.step|table"] == 10
    assert reports[0].loss < 4.5 < math.log(257)  # weights that have learnt


def test_a_warm_start_says_what_it_began_with(start: Start, folder: Path, tmp_path: Path) -> None:
    other = Text("train", partial(iter, [b"another text, about nothing. " * 90]))
    held_out = Text("validation", partial(iter, [b"unlike it. " * 90]))
    new = prepare(other, held_out, BYTES, tmp_path / "data")
    first = start(out="first")
    asked = iter([False] * 4 + [True])
    with pytest.raises(InterruptError):
        start(out="second", init=first, splits=new, stop=partial(next, asked))
    half = read_checkpoint(tmp_path / "second" / "step-00000005", state=True)
    second = start(out="second", resume=half, splits=new)
    assert first.documents is not None
    for checkpoint in (half, second):
        assert checkpoint.documents is not None
        assert checkpoint.origin["init"] == first.fingerprint
        # text that was seen before is still seen
        assert {*first.documents, *new[0].documents} == {*checkpoint.documents}
    assert "init" not in first.origin


def test_a_warm_start_leaves_the_weights_it_began_with(start: Start, tmp_path: Path) -> None:
    first = start()
    zero = {f"train.optimizer.{role}.rate=0" for role in ("matrix", "table", "head", "vector")}
    same = start(*zero, "train.length.count=1", out="same", init=first)
    assert arrays_digest(same.weights) == arrays_digest(first.weights)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.layer.feed.hidden=48", ["4 weights", "layers.0.feed.body.down", "(32, 48)"]),
        ("model.depth=3", ["weights", "missing there"]),
    ],
)
def test_weights_of_another_shape_are_refused(
    start: Start, setting: str, words: Sequence[str]
) -> None:
    first = start()
    route = [] if "hidden" in setting else ["model.route='0 1 2'"]
    with pytest.raises(CheckpointError) as raised:
        start(setting, *route, out="other", init=first)
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_weights_for_other_tokens_are_refused(start: Start) -> None:
    first = start()
    other = dataclasses.replace(first.tokenizer, payload=b"other")
    with pytest.raises(CheckpointError, match="another tokenizer"):
        start(out="other", init=dataclasses.replace(first, tokenizer=other))


def test_documents_open_with_the_token_of_the_tokenizer(start: Start) -> None:
    settings = ["model.embed=[token, smear]", "model.documents=true", "train.length.count=2"]
    assert start(*settings, "model.start=256").spec.start == 256
    with pytest.raises(TrainError, match=r"open with token 256, .* token 5; set model\.start=256"):
        start(*settings, "model.start=5", out="other")


@pytest.mark.slow
def test_a_run_that_stops_early_can_go_on_to_its_horizon(start: Start, tmp_path: Path) -> None:
    whole = start("train.length.count=16")
    short = start("train.length.count=6", "train.horizon=16", out="short")
    assert (short.step, short.progress) == (6, 6 / 16)
    rates = [step["rate"] for step in steps_of(tmp_path / "short")]
    assert rates == [step["rate"] for step in steps_of(tmp_path / "run")][:6]
    further = start("train.length.count=12", "train.horizon=16", out="short", resume=short)
    last = start("train.length.count=16", out="short", resume=further)
    assert (further.step, last.step) == (12, 16)
    for name, value in whole.weights.items():
        assert np.array_equal(value, last.weights[name]), name
    assert read_of(last) == read_of(whole)


def test_other_schedules_are_not_gone_on_with(start: Start) -> None:
    done = start()
    for settings in (["train.length.count=20"], ["train.horizon=20"], ["train.batch=8"]):
        with pytest.raises(TrainError, match=r"other recipe.*--init"):
            start(*settings, resume=done)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (["train.horizon=9"], "end before the run of 10"),
        (["train.horizon=9", "train.length={kind: seconds, count: 5}"], "needs a length in steps"),
        (["train.best_after=-1"], "number of validations"),
        (["train.global_batch_size=8"], "unknown key 'global_batch_size'"),
        (["train.order=random"], "sequential, shuffled"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    folder: Path, settings: list[str], match: str
) -> None:
    with pytest.raises(SpecError, match=match):
        read_recipe(str(folder / "tiny.yaml"), settings)


@pytest.mark.slow
def test_the_best_checkpoint_is_kept(start: Start, tmp_path: Path) -> None:
    every = ("train.validate_every=2", "train.keep=1", "train.length.count=30")
    worse = ("train.schedule={warmup: 0.9, warmdown: 0}", "train.optimizer.table.rate=3")
    done = start(*every, *worse, "train.keep_best=true", "train.average=null")
    measured = {
        step["step"]: step["validation_bpb"]
        for step in steps_of(tmp_path / "run")
        if step["validation_bpb"] is not None
    }
    best = min(measured, key=lambda step: measured[step])
    assert best < 30
    assert done.about.best == BestStep(step=best, bpb=measured[best])
    names = {path.name for path in (tmp_path / "run").glob("step-*")}
    assert names == {f"step-{best:08d}", "step-00000030"}
    later = start(*every, *worse, "train.keep_best=true", "train.best_after=14", out="later")
    assert later.about.best is not None
    assert later.about.best.step == 30  # the fifteenth validation


def test_it_can_be_measured_before_the_first_step(start: Start, tmp_path: Path) -> None:
    plain, first = start(out="plain"), start("train.validate_first=true")
    lines = steps_of(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(11))
    assert lines[0]["validation_loss"] == pytest.approx(math.log(257), rel=0.02)
    assert arrays_digest(first.weights) == arrays_digest(plain.weights)


@pytest.mark.slow
@pytest.mark.parametrize("count", [500, 512, 7, 10**6])
def test_validation_measures_exactly_what_is_asked_for(
    start: Start, splits: Splits, tmp_path: Path, count: int
) -> None:
    # tokens that do not divide into blocks are dropped without a word
    done = start(f"train.validate_tokens={count}")
    _, held_out = splits
    stream = ids(held_out)
    most = min(count, len(stream) - 1)
    row = torch.from_numpy(stream.slice(0, most + 1).astype(np.int64))
    model, nats, size = from_checkpoint(done, "cpu"), 0.0, 0
    sizes = load(held_out.tokenizer).sizes
    with torch.no_grad():
        for begin in range(0, most, 32):
            block = row[None, begin : min(begin + 32, most) + 1]
            nats += float(position_nats(model, model.hidden(block[:, :-1]).x, block[:, 1:]).sum())
            size += int(sizes[block[0, 1:].numpy()].sum())
    last = steps_of(tmp_path / "run")[-1]
    assert last["validation_loss"] == pytest.approx(nats / most, rel=1e-5)
    assert last["validation_bpb"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)


EASY = Rules(name="easy", about="", loss=4.0, unique=True, order="sequential", seconds=600.0)
READ_ONCE = ("train.unique=true", "train.order=sequential", "train.validate_every=1")


def easy_on(held_out: Tokens, loss: float = 4.0) -> Rules:
    """Rules whose limit is of the text that is validated on."""
    tokenizers = (held_out.tokenizer.fingerprint,)
    return dataclasses.replace(EASY, loss=loss, tokenizers=tokenizers, texts=(held_out.digest,))


def test_a_run_ends_when_the_loss_of_its_rules_is_reached(
    start: Start, splits: Splits, tmp_path: Path
) -> None:
    done = start(*READ_ONCE, "train.length.count=80", rules=easy_on(splits[1]))
    losses = [step["validation_loss"] for step in steps_of(tmp_path / "run")]
    assert losses[-1] <= 4.0 < min(losses[:-1])
    assert done.step == len(losses) < 80
    rules = done.about.rules
    assert rules is not None
    findings = rules.findings
    assert (rules.name, rules.finished, broken(findings)) == ("easy", True, [])
    assert {f.rule: f.holds for f in findings} == dict.fromkeys(
        ("order", "unique", "start", "loss", "time"), True
    )
    assert f"after {done.step * 128:,} training tokens" in {f.note for f in findings}


def test_a_loss_that_is_not_reached_is_found_at_the_end_alone(
    start: Start, splits: Splits, tmp_path: Path
) -> None:
    last = start(*READ_ONCE, rules=easy_on(splits[1], loss=0.5))
    early = read_checkpoint(tmp_path / "run" / "step-00000005")
    found = [
        {f.rule: f.holds for f in checkpoint.about.rules.findings}["loss"]
        for checkpoint in (early, last)
        if checkpoint.about.rules is not None
    ]
    assert found == [None, False]
