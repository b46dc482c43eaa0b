"""Averages of checkpoints: which, in what order, with what weights, and what comes out."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segpt.errors import CheckpointError
from segpt.stages import checkpoint_io, run_directory
from segpt.stages.average import average, sources
from segpt.stages.open_model import from_checkpoint
from segpt.values import Checkpoint, Tokenizer, documents_digest
from tests.stages.random_models import checkpoint


def at(step: int, **changes: Any) -> Checkpoint:
    """A checkpoint of a run whose weights differ from step to step."""
    fields = {"state": {"raw|table": np.ones(3, np.float32)}} | changes
    return dataclasses.replace(checkpoint(seed=step), step=step, **fields)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of eight checkpoints."""
    for step in range(100, 900, 100):
        checkpoint_io.save_checkpoint(
            tmp_path / "run" / run_directory.checkpoint_name(step), at(step)
        )
    return tmp_path / "run"


def save(place: Path, value: Checkpoint) -> Path:
    checkpoint_io.save_checkpoint(place, value)
    return place


@pytest.mark.parametrize("decay", [0.8, 0.5, 0.0])
def test_a_moving_average_starts_with_the_first(run: Path, decay: float) -> None:
    found = average(sources([run], 4), decay=decay)
    expected: Any = None
    for step in (500, 600, 700, 800):
        weight = at(step).weights["table"]
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    assert found.weights["table"] == pytest.approx(expected, abs=1e-6)
    assert found.weights["table"].dtype == np.float32


def test_a_mean_weighs_all_the_same(run: Path) -> None:
    found = average(sources([run], 6), decay=None)
    for name, weight in found.weights.items():
        every = [at(step).weights[name] for step in range(300, 900, 100)]
        assert weight == pytest.approx(np.mean(every, 0), abs=1e-6)


def test_checkpoints_go_in_step_order_however_they_are_given(tmp_path: Path) -> None:
    # the order of names is not that of steps
    places = [save(tmp_path / n, at(s)) for n, s in (("a", 1000), ("b", 9), ("c", 90))]
    found = sources([places[1], places[0], places[2], places[0]], 6)
    assert [p.name for p in found] == ["b", "c", "a"]
    assert sources(places, 2) == found[1:]


def test_what_comes_out_is_the_last_checkpoint_without_state(run: Path, tmp_path: Path) -> None:
    value = average(sources([run], 3))
    checkpoint_io.save_checkpoint(tmp_path / "out", value)
    again = checkpoint_io.read_checkpoint(tmp_path / "out")
    assert (again.step, again.progress) == (800, 1.0)
    assert again.about.average is not None
    assert again.about.average.steps == (600, 700, 800)
    assert again.origin["tokens"] == "0123456789abcdef"
    assert again.fingerprint == value.fingerprint
    logits = from_checkpoint(again)(torch.arange(12)[None])
    assert torch.isfinite(logits).all()
    with pytest.raises(CheckpointError, match="holds no optimizer state"):
        checkpoint_io.read_checkpoint(tmp_path / "out", state=True)


def test_documents_of_all_are_remembered(tmp_path: Path) -> None:
    lists = [np.array([1, 5], np.uint64), np.array([2, 5], np.uint64)]
    places = [
        save(tmp_path / str(i), at(i, documents=d, origin={"tokens": str(i), "seed": "1"}))
        for i, d in enumerate(lists)
    ]
    found = average(sources(places, 6))
    assert found.documents is not None
    assert found.documents.tolist() == [1, 2, 5]
    assert found.origin["documents"] == documents_digest(found.documents)
    assert found.origin["seed"] == "1"
    assert "tokens" not in found.origin  # they differ, so the average has none


def test_different_models_are_refused(tmp_path: Path) -> None:
    other = dataclasses.replace(checkpoint(hidden=96), step=20)
    places = [save(tmp_path / "a", at(10)), save(tmp_path / "b", other)]
    with pytest.raises(CheckpointError, match="hold different models"):
        average(sources(places, 6))


def test_different_tokenizers_are_refused(tmp_path: Path) -> None:
    other = at(20, tokenizer=Tokenizer("merges", 120, b"other"))
    places = [save(tmp_path / "a", at(10)), save(tmp_path / "b", other)]
    with pytest.raises(CheckpointError, match="different tokenizers"):
        average(sources(places, 6))


def test_two_runs_are_refused(run: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other" / run_directory.checkpoint_name(300), at(300))
    with pytest.raises(CheckpointError, match="are of the same step"):
        sources([run, other.parent], 6)


def test_one_checkpoint_is_refused(run: Path) -> None:
    place = run_directory.checkpoints(run)[0]
    with pytest.raises(CheckpointError, match="takes two checkpoints or more, not 1"):
        sources([place, place], 6)


@pytest.mark.slow
def test_only_one_checkpoint_is_in_memory(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    alive: list[int] = []
    kept: list[weakref.ref[Any]] = []
    read = checkpoint_io.read_checkpoint

    def watched(path: Path) -> Checkpoint:
        gc.collect()
        alive.append(sum(ref() is not None for ref in kept))
        value = read(path)
        kept.append(weakref.ref(value.weights["table"]))
        return value

    monkeypatch.setattr("segpt.stages.average.read_checkpoint", watched)
    average(sources([run], 6))
    assert len(alive) == 6
    assert max(alive) <= 1
