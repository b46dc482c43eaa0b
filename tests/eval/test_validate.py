"""The loss on held-out blocks is the plain mean over all their targets."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from segpt.errors import ScoreError
from segpt.eval.validate import validate
from segpt.model.model import Model

MakeModel = Callable[..., Model]
MakeStream = Callable[..., NDArray[np.uint32]]


def test_validation_is_the_mean_over_all_targets(tiny: MakeModel, stream: MakeStream) -> None:
    model, rows = tiny(), stream(84).astype(np.int64).reshape(5, 17)
    sizes = np.array([0, *range(1, 32)], dtype=np.int64)

    def blocks() -> Iterator[NDArray[np.int64]]:
        yield rows[:3]
        yield rows[3:]

    tokens = torch.from_numpy(rows)
    with torch.no_grad():
        logits = model(tokens[:, :-1]).flatten(0, 1)
    expected = float(F.cross_entropy(logits, tokens[:, 1:].flatten()))
    size = sizes[rows[:, 1:]].sum()
    nats, bpb = validate(model, blocks(), sizes)
    assert nats == pytest.approx(expected, rel=1e-6)
    assert bpb == pytest.approx(expected * 80 / (math.log(2) * size), rel=1e-6)


def test_training_goes_on_after_validation(tiny: MakeModel, stream: MakeStream) -> None:
    model, rows = tiny(), stream(33).astype(np.int64).reshape(2, 17)
    validate(model, [rows], np.ones(32, dtype=np.int64))
    torch.autograd.backward(model(torch.from_numpy(rows)).sum())
    assert model.table.weight.grad is not None


def test_nothing_to_validate_on_is_refused(tiny: MakeModel) -> None:
    with pytest.raises(ScoreError, match="hold out more text"):
        validate(tiny(), [], np.ones(32, dtype=np.int64))
