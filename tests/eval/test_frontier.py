"""The ledger stops scorers that look ahead, score again, leave out or learn on the side."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.errors import ScoreError
from segpt.eval.frontier import Entry, Frontier
from segpt.eval.surprisal import Learn, surprisal, window_nats
from segpt.eval.windows import Spans, plan, schedule
from segpt.model.model import Model
from segpt.spec.score import ScoreSpec, Sgd

MakeModel = Callable[..., Model]
MakeStream = Callable[..., NDArray[np.uint32]]

SPEC = ScoreSpec(stride=8, batch=2, policy=Sgd(chunk=32))


def nudge(model: Model) -> Learn:
    """A learner that changes the weights, whatever it is given."""

    def learn(tokens: NDArray[np.uint32], progress: float) -> None:
        with torch.no_grad():
            model.table.weight.add_(0.01)

    return learn


def leaky(
    frontier: Frontier, chunks: Sequence[Sequence[Spans]], learn: Learn
) -> Iterator[NDArray[np.float64]]:
    """A scorer that learns from each chunk before it scores it."""
    for index, chunk in enumerate(chunks):
        learn(frontier.tokens(chunk[0].first, chunk[-1].stop), index / len(chunks))
        frontier.learnt()
        for windows in chunk:
            frontier.score(windows)
            yield window_nats(frontier.model, frontier.ids, windows).detach().double().numpy()


def test_learning_before_scoring_is_caught(tiny: MakeModel, stream: MakeStream) -> None:
    model = tiny()
    frontier = Frontier(stream(100), model)
    with pytest.raises(ScoreError, match="targets 0 to 32, of which those from 0 on have not"):
        list(leaky(frontier, schedule(100, 16, SPEC), nudge(model)))


def test_learning_one_target_ahead_is_caught(tiny: MakeModel, stream: MakeStream) -> None:
    frontier = Frontier(stream(100), tiny())
    frontier.score(plan(40, 16, 8))
    assert len(frontier.tokens(8, 40)) == 33
    with pytest.raises(ScoreError, match="those from 40 on have not been scored"):
        frontier.tokens(8, 41)


def test_scoring_twice_is_caught(tiny: MakeModel, stream: MakeStream) -> None:
    chunks = schedule(100, 16, SPEC)
    best_of_two = [chunks[0], [*chunks[1], chunks[1][-1]], *chunks[2:]]
    with pytest.raises(ScoreError, match="target 48 would be scored twice"):
        list(surprisal(Frontier(stream(100), tiny()), best_of_two))


def test_leaving_out_is_caught(tiny: MakeModel, stream: MakeStream) -> None:
    chunks = schedule(100, 16, SPEC)
    with pytest.raises(ScoreError, match="targets 32 to 64 would never be scored"):
        list(surprisal(Frontier(stream(100), tiny()), [chunks[0], *chunks[2:]]))


def test_changing_weights_while_a_chunk_is_scored_is_caught(
    tiny: MakeModel, stream: MakeStream
) -> None:
    model, ids = tiny(), stream(100)
    scores = surprisal(Frontier(ids, model), schedule(100, 16, SPEC))
    next(scores)
    nudge(model)(ids, 0.0)
    with pytest.raises(ScoreError, match="the weights changed before target 16 was scored"):
        next(scores)


def test_the_ledger_tells_versions_and_uses(tiny: MakeModel, stream: MakeStream) -> None:
    model = tiny()
    frontier = Frontier(stream(100), model)
    list(surprisal(frontier, schedule(100, 16, SPEC), nudge(model)))
    assert frontier.version == 3
    assert frontier.ledger == [
        Entry("score", 0, 0, 32),
        Entry("learn", 0, 0, 32),
        Entry("score", 1, 32, 64),
        Entry("learn", 1, 32, 64),
        Entry("score", 2, 64, 96),
        Entry("learn", 2, 64, 96),
        Entry("score", 3, 96, 100),
    ]
