"""The ledger stops scorers that look ahead, score again, leave out or learn on the side."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.config.score import LowRank, Policy, ScoreSpec, Sgd
from segpt.errors import ScoreError
from segpt.eval.schedule import BASE, Round, Update, schedule
from segpt.eval.score_order import ScoreEvent, ScoreOrderGuard
from segpt.eval.surprisal import window_nats
from segpt.eval.windows import Spans
from segpt.model.model import Model
from segpt.model.params import weights

MakeModel = Callable[..., Model]
MakeStream = Callable[..., NDArray[np.uint32]]
Learn = Callable[[NDArray[np.uint32]], None]

START = np.zeros(1, np.int64)


def rounds(
    policy: Policy = Sgd(chunk=32),  # noqa: B008 - frozen
    starts: NDArray[np.int64] = START,
) -> list[Round]:
    """The only group of 100 targets in windows of 16."""
    spec = ScoreSpec(stride=8, batch=2, policy=policy)
    (group,) = schedule(starts, 100, 16, spec)
    return group


def state(model: Model) -> list[torch.Tensor]:
    return [weight.tensor for weight in weights(model)]


def nudge(model: Model) -> Learn:
    """A learner that changes the weights, whatever it is given."""

    def learn(tokens: NDArray[np.uint32]) -> None:
        with torch.no_grad():
            model.table.weight.add_(0.01)

    return learn


def honest(
    guard: ScoreOrderGuard, model: Model, group: Sequence[Round], learn: Learn | None = None
) -> Iterator[NDArray[np.float64]]:
    """Score a round, then learn from it."""
    for one in group:
        for windows in one.batches:
            guard.score(windows)
            nats = [
                window_nats(model, guard.ids, windows[slice(i, i + 1)]) for i in range(len(windows))
            ]
            yield torch.cat([n.detach().flatten() for n in nats]).double().numpy()
        if learn is not None:
            for update in one.updates:
                learn(guard.update(update))
                guard.learnt()


def leaky(
    guard: ScoreOrderGuard, model: Model, group: Sequence[Round], learn: Learn
) -> Iterator[NDArray[np.float64]]:
    """A scorer that learns from each round before it scores it."""
    for one in group:
        for update in one.updates:
            learn(guard.update(update))
            guard.learnt()
        yield from honest(guard, model, [one._replace(updates=())])


def spans(start: int, stop: int, segment: int = 0) -> Spans:
    """One span that reads and scores the same."""
    return Spans(*(np.array([x]) for x in (start, start, stop, segment)))


def test_learning_before_scoring_is_caught(tiny: MakeModel, stream: MakeStream) -> None:
    model = tiny()
    guard = ScoreOrderGuard(stream(100), state(model))
    with pytest.raises(ScoreError, match="targets 0 to 32, of which 0 has not been scored"):
        list(leaky(guard, model, rounds(), nudge(model)))


def test_learning_one_target_ahead_is_caught(stream: MakeStream) -> None:
    guard = ScoreOrderGuard(stream(100))
    for start in range(0, 40, 8):
        guard.score(spans(start, start + 8))
    assert len(guard.update(Update(0, 8, 40))) == 33
    with pytest.raises(ScoreError, match="of which 40 has not been scored"):
        guard.update(Update(0, 8, 41))


def test_scoring_twice_is_caught(tiny: MakeModel, stream: MakeStream) -> None:
    group = rounds()
    batches = group[1].batches
    best_of_two = [group[0], group[1]._replace(batches=[*batches, batches[-1]]), *group[2:]]
    model = tiny()
    with pytest.raises(ScoreError, match="target 48 would be scored twice"):
        list(honest(ScoreOrderGuard(stream(100), state(model)), model, best_of_two))


def test_scoring_twice_in_one_batch_is_caught(stream: MakeStream) -> None:
    with pytest.raises(ScoreError, match="target 4 would be scored twice"):
        ScoreOrderGuard(stream(100)).score(
            Spans(np.array([0, 4]), np.array([0, 4]), np.array([8, 12]), np.array([0, 1]))
        )


def test_leaving_out_is_caught(tiny: MakeModel, stream: MakeStream) -> None:
    group, model = rounds(), tiny()
    guard = ScoreOrderGuard(stream(100), state(model))
    list(honest(guard, model, [group[0], *group[2:]]))
    with pytest.raises(ScoreError, match="target 32 was scored 0 times, and 32 of 100 in all"):
        guard.finish(guard.counts)


def test_two_processes_that_score_the_same_are_caught(stream: MakeStream) -> None:
    guard = ScoreOrderGuard(stream(100))
    guard.score(spans(0, 100))
    guard.finish(guard.counts)
    with pytest.raises(ScoreError, match="target 0 was scored 2 times"):
        guard.finish(2 * guard.counts)


def test_changing_weights_while_a_round_is_scored_is_caught(
    tiny: MakeModel, stream: MakeStream
) -> None:
    model, ids = tiny(), stream(100)
    scores = honest(ScoreOrderGuard(ids, state(model)), model, rounds())
    next(scores)
    nudge(model)(ids)
    with pytest.raises(ScoreError, match="the weights changed before target 16 was scored"):
        next(scores)


def test_learning_on_the_side_is_caught_in_the_next_lanes_too(
    tiny: MakeModel, stream: MakeStream
) -> None:
    """What a segment learnt does not excuse a change after it."""
    model = tiny()
    guard = ScoreOrderGuard(stream(100), state(model))
    guard.open(state(model), persists=True)
    guard.score(spans(0, 8))
    nudge(model)(guard.update(Update(0, 0, 8)))
    guard.learnt()
    guard.score(spans(8, 16))
    nudge(model)(guard.ids)
    with pytest.raises(ScoreError, match="the weights changed before target 16"):
        guard.score(spans(16, 24))


@pytest.mark.parametrize("persists", [True, False])
def test_going_back_is_caught_where_the_state_persists(stream: MakeStream, persists: bool) -> None:
    """A state that has learnt from targets cannot score what lies before them."""
    guard = ScoreOrderGuard(stream(100))
    guard.open((), persists=persists)
    guard.score(spans(50, 60))
    guard.update(Update(0, 50, 60))
    with pytest.raises(ScoreError, match="target 40 would be scored by a state that has learnt"):
        guard.score(spans(40, 50))
    guard.score(spans(40, 50, segment=1))
    guard.open((), persists=persists)
    if persists:
        with pytest.raises(ScoreError, match="learnt from later ones"):
            guard.score(spans(30, 40))
    else:
        guard.score(spans(30, 40))


def test_what_the_base_learns_counts_for_every_lane(stream: MakeStream) -> None:
    guard = ScoreOrderGuard(stream(100))
    guard.score(spans(0, 60))
    guard.update(Update(BASE, 0, 60))
    guard.open((), persists=False)
    guard.score(spans(60, 70, segment=1))
    back = ScoreOrderGuard(stream(100))
    back.score(spans(40, 60))
    back.update(Update(BASE, 40, 60))
    back.open((), persists=False)
    with pytest.raises(ScoreError, match="target 10 would be scored by a state that has learnt"):
        back.score(spans(10, 20, segment=3))


def test_the_ledger_tells_versions_and_uses(tiny: MakeModel, stream: MakeStream) -> None:
    model = tiny()
    guard = ScoreOrderGuard(stream(100), state(model))
    list(honest(guard, model, rounds(), nudge(model)))
    assert guard.version == 3
    assert guard.ledger == [
        ScoreEvent("score", 0, 0, 0, 32),
        ScoreEvent("learn", 0, 0, 0, 32),
        ScoreEvent("score", 1, 0, 32, 64),
        ScoreEvent("learn", 1, 0, 32, 64),
        ScoreEvent("score", 2, 0, 64, 96),
        ScoreEvent("learn", 2, 0, 64, 96),
        ScoreEvent("score", 3, 0, 96, 100),
    ]


def test_the_ledger_tells_lanes(tiny: MakeModel, stream: MakeStream) -> None:
    model = tiny()
    guard = ScoreOrderGuard(stream(100), state(model))
    group = rounds(LowRank(chunk=32, documents=2), np.array([0, 40]))
    list(honest(guard, model, group, nudge(model)))
    learnt = [(e.segment, e.first, e.stop) for e in guard.ledger if e.event == "learn"]
    # The longer document comes first; what ends with a document teaches it nothing.
    assert learnt == [(0, 40, 72), (1, 0, 32)]
    assert {e.segment for e in guard.ledger if e.event == "score"} == {0, 1}


def test_a_state_goes_on_where_it_was_taken(tiny: MakeModel, stream: MakeStream) -> None:
    model = tiny()
    guard = ScoreOrderGuard(stream(100), state(model))
    list(honest(guard, model, rounds()[:2], nudge(model)))
    other = ScoreOrderGuard(stream(100), state(model))
    nudge(model)(guard.ids)
    other.restore(guard.state(), state(model))
    assert other.ledger == guard.ledger
    assert other.version == guard.version
    assert np.array_equal(other.counts, guard.counts)
    with pytest.raises(ScoreError, match="scored twice"):
        other.score(spans(60, 64))
    with pytest.raises(ScoreError, match="the weights changed"):
        guard.score(spans(64, 72))
    list(honest(other, model, rounds()[2:], nudge(model)))
    other.finish(other.counts)
