"""Shipped recipes take steps, and their small twins go through the whole line."""

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segpt.artifact.container import pack, unpack
from segpt.config.layout import parameters
from segpt.config.recipe import Bytes, names, read_recipe
from segpt.data.corpus import builtin
from segpt.errors import InterruptError
from segpt.model.params import weights
from segpt.stages.average import average
from segpt.stages.calibrate import quantize_on
from segpt.stages.checkpoint_io import read_checkpoint
from segpt.stages.prepare import builtin_splits, make_tokenizer, prepare
from segpt.stages.resolve_spec import quant_spec, score_spec
from segpt.stages.run_directory import checkpoints
from segpt.stages.score import score
from segpt.train.mesh import Mesh
from segpt.train.trainer import Trainer
from segpt.values import Checkpoint, Text, Tokens, arrays_digest
from tests import little_text
from tests.stages.running import train

REDUCED = (
    "model.width=64",
    "model.vocab=97",
    "model.context=16",
    "model.layer.mixer.heads=4",
    "model.layer.mixer.kv_heads=2",
    "model.layer.feed.hidden=128",
    "train.batch=4",
    "train.accumulation=2",
)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "size"), [("golf16", 35_944_536), ("seed004", 25_175_076)])
def test_one_step_moves_every_weight_that_has_joined(recipe: str, size: int) -> None:
    assert parameters(read_recipe(recipe).model) == size
    reduced = read_recipe(recipe, [*REDUCED, "train.length={kind: steps, count: 4}"])
    run = Trainer(reduced.model, reduced.train, Mesh(0, 1, torch.device("cpu")))
    before = {w.name: w.tensor.detach().clone() for w in weights(run.model)}
    batch = np.random.default_rng(0).integers(97, size=(4, 17))
    for _ in range(4):  # the loops join at 35 percent; a skip of its own input learns late
        loss, norm, *_ = run.train_step(batch)
        assert torch.isfinite(loss)
        assert torch.isfinite(norm)
    still = {w.name for w in weights(run.model) if torch.equal(w.tensor, before[w.name])}
    assert not still


STAGES = ("imu1-small", "imu1-decay-small", "imu1-midtrain-small")
KEPT = ("frontier-small", "golf16-small", "imu1-small")  # which differ the most
TWINS = [name for name in names() if name.endswith("-small") and name not in STAGES[1:]]
TINY = (
    "tokenizer={kind: bytes}",
    "model.vocab=257",
    "model.width=32",
    "model.context=32",
    "model.layer.mixer.head_dim=8",
    "model.layer.feed.hidden=64",
    "train.batch=4",
    "train.validate_tokens=512",
    "quantize.calibration_tokens=1024",
    "quantize.report_tokens=256",
)
SHORT = (
    "train.length={kind: steps, count: 50}",
    "train.log_every=5",
    "train.validate_every=25",
    "train.save_every=25",
)
SHORTER = (
    "train.length={kind: steps, count: 20}",
    "train.log_every=2",
    "train.validate_every=10",
    "train.save_every=10",
)
WINDOWS = ("model.windows.long=16", "model.windows.short=8")
OF_FAMILY = {
    "imu1": ("model.layer.mixer.query_key[0].dims=8",),
    "lapp0": (
        "model.start=256",
        "model.layer.mixer.query_key[1].dims=8",
        *WINDOWS,
        "model.growth={full: 16, multiple: 4}",
    ),
    "daisy": (
        "model.start=256",
        "model.layer.mixer.query_key[1].dims=8",
        *WINDOWS,
        "model.growth={full: 16, shape: cubic, multiple: 4}",
    ),
    "frontier": ("model.start=256", "model.layer.mixer.query_key[1].dims=8"),
    "golf16": ("model.layer.mixer.query_key[1].dims=8",),
    "seed004": ("model.layer.mixer.query_key[1].dims=8",),
}


def tiny(name: str) -> list[str]:
    """Settings that make a twin small enough to train in seconds; its parts stay as they are."""
    return [*TINY, *OF_FAMILY[name.split("-")[0]], *SHORTER]


Splits = tuple[Tokens, Tokens]
Start = Callable[..., Checkpoint]


def some_of(text: Text, count: int, longest: int | None = None) -> Text:
    """The first documents of a text, the first bytes of each."""
    chosen = [document[:longest] for document in itertools.islice(text, count)]
    return Text(text.name, partial(iter, chosen))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Text, Text]:
    """Some of the built-in text, of which not all has to be collected for it."""
    with pytest.MonkeyPatch.context() as patched:
        little_text.use(little_text.library(tmp_path_factory.mktemp("python") / "lib"), patched)
        return some_of(builtin("train"), 40), some_of(builtin("validation"), 4)


@pytest.fixture(scope="module")
def small_splits(texts: tuple[Text, Text], tmp_path_factory: pytest.TempPathFactory) -> Splits:
    """Some of the built-in text as bytes."""
    tokenizer = make_tokenizer(Bytes(), texts[0])
    return prepare(*texts, tokenizer, tmp_path_factory.mktemp("bytes") / "data")


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    """The built-in text as the twins read it."""
    out = tmp_path_factory.mktemp("pieces") / "data"
    return builtin_splits(read_recipe("imu1-small").tokenizer, out, lambda split, done: None)


def start(
    name: str, settings: list[str], splits: Splits, out: Path, stop: int | None = None, **how: Any
) -> Checkpoint:
    """Train a twin; if it is stopped after so many steps, it is resumed from there."""
    recipe, mesh = read_recipe(name, settings), Mesh(0, 1, torch.device("cpu"))
    if stop is not None:
        asked = itertools.count(1)
        with pytest.raises(InterruptError):
            train(recipe, *splits, out, mesh, stop=lambda: next(asked) == stop, **how)
        how = {"resume": read_checkpoint(checkpoints(out)[-1], state=True)}
        torch.manual_seed(stop)  # another process has another generator
    return read_checkpoint(train(recipe, *splits, out, mesh, **how), state=True)


def digest(checkpoint: Checkpoint) -> str:
    assert checkpoint.state is not None
    state = {name: value for name, value in checkpoint.state.items() if name != "elapsed"}
    return arrays_digest(state) + arrays_digest(checkpoint.weights)


def column(out: Path, name: str) -> list[float]:
    """What the metrics of a run say under ``name``, in order."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if line.get(name) is not None]


def go_through_the_line(
    name: str, settings: list[str], splits: Splits, held_out: Text, folder: Path, stop: int
) -> None:
    whole = start(name, settings, splits, folder / "whole")
    losses = column(folder / "whole", "loss")
    assert losses[-1] < min(losses[0] - 0.3, *losses[:2]), losses
    assert column(folder / "whole", "validation_bpb")[-1] < 8
    parted = start(name, settings, splits, folder / "parted", stop=stop)
    assert digest(parted) == digest(whole)
    assert column(folder / "parted", "loss")[-1] == losses[-1]

    recipe = read_recipe(name, settings)
    text = some_of(held_out, 2, longest=150)
    reading = score_spec(recipe.model, recipe=recipe)
    exact = score(whole, text, reading)
    for method in ("nearest", "gptq"):
        quantized = quantize_on(whole, quant_spec(recipe, method=method, bits=6), *splits)
        artifact = pack(quantized)
        assert artifact.size < parameters(recipe.model) + 20_000
        assert unpack(artifact).weights == quantized.weights
        found = score(artifact, text, reading)
        assert found.tokens == exact.tokens
        assert found.bpb == pytest.approx(exact.bpb, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name if name in KEPT else pytest.param(name, marks=pytest.mark.campaign) for name in TWINS],
)
def test_a_reduced_twin_learns_resumes_packs_and_scores(
    name: str, small_splits: Splits, texts: tuple[Text, Text], tmp_path: Path
) -> None:
    go_through_the_line(name, tiny(name), small_splits, texts[1], tmp_path, stop=10)


@pytest.mark.campaign
@pytest.mark.parametrize("name", TWINS)
def test_a_twin_learns_resumes_packs_and_scores(name: str, splits: Splits, tmp_path: Path) -> None:
    less = ["train.validate_tokens=4096", "quantize.report_tokens=4096"]
    held_out = builtin("validation")
    go_through_the_line(name, [*SHORT, *less], splits, held_out, tmp_path, stop=25)


def go_through_the_stages(
    settings: list[str], splits: Splits, text: Text, folder: Path, last: int = 6
) -> list[float]:
    """Train in three stages and average the end of the last: bits per byte after each of these."""
    found: list[float] = []
    before: Checkpoint | None = None
    for name in STAGES:
        before = start(name, settings, splits, folder / name, init=before)
        found.append(column(folder / name, "validation_bpb")[-1])
        assert (before.origin.get("init") is None) == (name == STAGES[0])
    saved = checkpoints(folder / STAGES[-1])
    assert len(saved) == last
    assert before is not None
    mean = average(saved, decay=0.8)
    reading = score_spec(mean.spec)
    assert score(mean, text, reading).bpb < 1.05 * score(before, text, reading).bpb
    return found


@pytest.mark.slow
def test_stages_begin_where_the_one_before_ended(
    small_splits: Splits, texts: tuple[Text, Text], tmp_path: Path
) -> None:
    lengths = ["train.length={kind: steps, count: 28}", "train.save_every=5"]
    settings = [*tiny("imu1-small"), *lengths]
    stable, decayed, trained = go_through_the_stages(settings, small_splits, texts[1], tmp_path)
    assert trained < decayed < stable


@pytest.mark.campaign
def test_the_stages_of_the_twin(splits: Splits, tmp_path: Path) -> None:
    lengths = ["train.length={kind: steps, count: 80}", "train.save_every=10"]
    held_out = some_of(builtin("validation"), 4)
    stable, decayed, trained = go_through_the_stages(lengths, splits, held_out, tmp_path)
    assert trained < decayed < stable
