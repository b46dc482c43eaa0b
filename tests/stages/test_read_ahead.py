"""On a GPU the next batch is read and sent while a step runs: the run is the same."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt.config.recipe import read_recipe
from segpt.data.tokenizer import BYTES
from segpt.errors import InterruptError
from segpt.stages.checkpoint_io import read_checkpoint
from segpt.stages.prepare import prepare
from segpt.train import transfer
from segpt.train.mesh import Mesh
from segpt.train.trainer import Trainer
from segpt.values import Checkpoint, Text, Tokens, arrays_digest
from tests.stages.running import train

RECIPE = """
name: tiny
about: a model for tests
tokenizer: {kind: bytes}
model:
  vocab: 257
  width: 32
  context: 16
  depth: 1
  layer:
    mixer: {heads: 2, kv_heads: 1, head_dim: 16, query_key: [norm]}
    feed: {hidden: 64}
train:
  length: {kind: steps, count: 8}
  batch: 4
  accumulation: 2
  validate_every: 100
"""
RAMP = "train.schedule.ramp={milestones: [0.25, 0.5]}"
CPU = Mesh(0, 1, torch.device("cpu"))


class RecordingCopier:
    """A way to a device that copies when it is asked whether the copy is over, and not before."""

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.waiting: list[tuple[Tensor, NDArray[np.int64]]] = []

    def start(self, array: NDArray[np.int64]) -> Tensor:
        self.events.append("start")
        tensor = torch.full(array.shape, -1, dtype=torch.int64)  # unread until it is finished
        self.waiting.append((tensor, array))
        return tensor

    def finish(self, tensor: Tensor) -> None:
        self.events.append("finish")
        array = next(a for t, a in self.waiting if t is tensor)
        self.waiting = [(t, a) for t, a in self.waiting if t is not tensor]
        tensor.copy_(torch.from_numpy(array))


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a copier does and when steps begin and end, where there is one."""
    events: list[str] = []
    monkeypatch.setattr(transfer, "copier_to", lambda _: RecordingCopier(events))
    step = Trainer.train_step

    def watched(self: Trainer, batch: NDArray[np.int64], **options: Any) -> Any:
        events.append("step")
        result = step(self, batch, **options)
        events.append("launched")
        return result

    monkeypatch.setattr(Trainer, "train_step", watched)
    return events


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokens, Tokens]:
    folder = tmp_path_factory.mktemp("text")
    documents = [f"{i} comes before {i + 1}, as {i * 7 % 31} does. ".encode() for i in range(9)]
    training, validation = (
        Text(name, partial(iter, [name.encode() + document for document in documents]))
        for name in ("train", "validation")
    )
    return prepare(training, validation, BYTES, folder / "data")


def run(splits: tuple[Tokens, Tokens], place: Path, *settings: str, **options: Any) -> Checkpoint:
    (place / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    recipe = read_recipe(str(place / "tiny.yaml"), list(settings))
    return read_checkpoint(
        train(recipe, splits[0], None, place / "run", CPU, **options), state=True
    )


def digest(checkpoint: Checkpoint) -> str:
    assert checkpoint.state is not None
    state = {k: v for k, v in checkpoint.state.items() if k != "elapsed"}
    return arrays_digest({**checkpoint.weights, **state})


def test_the_next_batch_is_sent_while_a_step_runs(
    splits: tuple[Tokens, Tokens], tmp_path: Path, events: list[str]
) -> None:
    run(splits, tmp_path)
    halves = ["start", "start"]
    steps = []
    for step in range(8):
        first = ["start", "finish"] * 2 if step == 0 else ["finish", "finish"]
        steps += ["step", *first, "launched", *(halves if step < 7 else [])]
    assert events == steps  # and nothing is read that no step takes


@pytest.mark.parametrize("settings", [(), (RAMP,)], ids=["even", "ramp"])
def test_a_run_is_the_same(
    splits: tuple[Tokens, Tokens], tmp_path: Path, settings: tuple[str, ...]
) -> None:
    ahead, plain = tmp_path / "ahead", tmp_path / "plain"
    ahead.mkdir()
    plain.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "copier_to", lambda _: RecordingCopier([]))
        sent = run(splits, ahead, *settings)
    assert digest(sent) == digest(run(splits, plain, *settings))


def test_an_interrupted_run_goes_on_with_the_batch_that_was_read_ahead(
    splits: tuple[Tokens, Tokens], tmp_path: Path, events: list[str]
) -> None:
    ways = [tmp_path / name for name in ("whole", "parts")]
    for place in ways:
        place.mkdir()
    whole = run(splits, ways[0])
    asked = iter([False, False, True])
    with pytest.raises(InterruptError):
        run(splits, ways[1], stop=lambda: next(asked))
    stopped = read_checkpoint(ways[1] / "run" / "step-00000003", state=True)
    assert digest(run(splits, ways[1], resume=stopped)) == digest(whole)


def test_a_batch_of_another_size_than_expected_is_read_again() -> None:
    events: list[str] = []
    way = transfer.Transfer(torch.device("cpu"))
    way._copier = RecordingCopier(events)
    sent, other = np.zeros((4, 3), np.int64), np.ones((4, 3), np.int64)
    way.send(sent, [slice(0, 2), slice(2, 4)])
    assert (way.take(other, slice(0, 2)) == 1).all()
    assert (way.take(other, slice(2, 4)) == 1).all()
    assert events == ["start"] * 2 + ["start", "finish"] * 2


def test_a_cpu_copies_nothing() -> None:
    way, batch = transfer.Transfer(torch.device("cpu")), np.arange(12).reshape(4, 3)
    way.send(batch, [slice(0, 4)])
    assert way.copier is None
    tensor = way.take(batch, slice(1, 3))
    assert tensor.data_ptr() == batch[1:3].ctypes.data
