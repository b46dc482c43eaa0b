"""One token at a time finds what a score finds, and finds it again to the last bit."""

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.coding.token_predictor import TokenPredictor
from segpt.config.score import InPlace, ScoreSpec, Sgd
from segpt.eval.ledger import EncodedText
from segpt.eval.tally import Tally
from segpt.model.model import Model
from segpt.model.params import weights
from tests.eval.conftest import make_able, make_ledger

MakeLedger = Callable[..., EncodedText]
Tallied = Callable[..., Tally]
Able = Callable[[ScoreSpec], Model]


TARGETS, STARTS = 90, (0, 20, 21, 56)  # and where documents start


def stepped(
    model: Model, ids: NDArray[np.uint32], spec: ScoreSpec, first: int | None = None
) -> NDArray[np.float64]:
    """The distributions of all targets, or of so many of them, (targets, vocab)."""
    steps = TokenPredictor(model, spec, int(ids[0]), len(ids) - 1)
    rows = []
    for token in ids[1:][:first].tolist():
        rows.append(steps.distribution().copy())
        steps.push(token)
    return np.stack(rows)


@functools.cache
def usual_steps(spec: ScoreSpec) -> NDArray[np.float64]:
    """The distributions of the text that the tests of every way to score share."""
    return stepped(make_able(spec), make_ledger(TARGETS, STARTS).ids, spec)


@pytest.mark.slow
def test_steps_find_what_the_score_finds(
    combination: ScoreSpec, able: Able, ledger: MakeLedger, tallied: Tallied
) -> None:
    model, whole = able(combination), ledger(TARGETS, STARTS)
    rows = usual_steps(combination)
    reads = combination.reach(model.spec.context)
    found = tallied(model, whole, combination, context=reads).nats
    assert np.abs(np.exp(rows).sum(1) - 1).max() < 1e-9
    assert np.abs(found + rows[np.arange(TARGETS), whole.ids[1:]]).max() < 1e-4


@pytest.mark.slow
def test_steps_repeat_to_the_last_bit(
    combination: ScoreSpec, able: Able, ledger: MakeLedger
) -> None:
    again = stepped(able(combination), ledger(TARGETS, STARTS).ids, combination)
    assert np.array_equal(again, usual_steps(combination))


@pytest.mark.slow
def test_steps_know_nothing_of_what_comes(
    combination: ScoreSpec, able: Able, ledger: MakeLedger
) -> None:
    """A decoder has no later tokens: its distributions are those of the encoder all the same."""
    whole = ledger(TARGETS, STARTS)
    plain = usual_steps(combination)
    for where in (10, 30, 60):
        ids = whole.ids.copy()
        ids[where + 1 :] = 1 + ids[where + 1 :] % 31
        found = stepped(able(combination), ids, combination, first=where)
        assert np.array_equal(found, plain[:where])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["strided", "rolling"])
def test_steps_leave_the_model_alone(able: Able, ledger: MakeLedger, mode: str) -> None:
    for policy in (Sgd(chunk=16, rate=0.5), InPlace()):
        spec = ScoreSpec(mode=mode, stride=6, policy=policy)  # type: ignore[arg-type]
        model = able(spec)
        before = [weight.tensor.detach().clone() for weight in weights(model)]
        stepped(model, ledger(60, (0, 30)).ids, spec)
        assert all(torch.equal(x, w.tensor) for x, w in zip(before, weights(model), strict=True))


@pytest.mark.slow
def test_a_document_may_be_empty_or_last(able: Able, ledger: MakeLedger, tallied: Tallied) -> None:
    """A start after a start, and one at the very end."""
    whole = ledger(60, (0, 1, 2, 30, 60))
    for boundaries in ("stream", "document"):
        spec = ScoreSpec(boundaries=boundaries, stride=6, policy=Sgd(chunk=8, rate=0.1))
        rows = stepped(able(spec), whole.ids, spec)
        found = tallied(able(spec), whole, spec).nats
        assert np.abs(found + rows[np.arange(60), whole.ids[1:]]).max() < 1e-4
