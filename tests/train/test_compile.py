"""What a compiled run asks of torch, and where it says why it cannot."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.errors import TrainError
from segpt.train.mesh import Mesh
from segpt.train.trainer import Trainer, compile_model

Make = Callable[..., Trainer]
Batches = Callable[[int], NDArray[np.int64]]


class AskedError(Exception):
    """torch.compile was called."""


def test_graphs_need_cuda(make: Make, batches: Batches) -> None:
    run = make(steps=1, compile="graphs")
    with pytest.raises(TrainError, match=r"graphs records CUDA graphs.* train\.compile=auto"):
        compile_model(run, batches(0), lambda _: None)


@pytest.mark.parametrize(("choice", "mode"), [("graphs", "reduce-overhead"), ("auto", None)])
def test_graphs_are_recorded_on_cuda(
    make: Make,
    batches: Batches,
    choice: str,
    mode: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compiled(function: Any, **options: Any) -> None:
        assert options == {"mode": mode}
        raise AskedError

    run = make(steps=1, compile=choice)
    run.mesh = Mesh(0, 1, torch.device("cuda:0"))
    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(AskedError):
        compile_model(run, batches(0), lambda _: None)


def test_a_step_of_several_micro_batches_is_one_to_the_graphs(
    make: Make, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Begun in every micro-batch, graphs would write over gradients that are still added to.
    begun: list[bool] = []

    def begin() -> None:
        begun.append(all(p.grad is None for p in run.model.parameters()))

    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", begin)
    run = make(steps=2, compile="graphs", accumulation=2)
    for step in range(2):
        run.train_step(batches(step))
    assert begun == [True, True]
    make(steps=1, compile="off").train_step(batches(0))
    assert len(begun) == 2
