"""Rolling is one long pass over the text, however it is cut up; padding never matters."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.config.score import ScoreSpec
from segpt.eval.learners import FrozenLearner
from segpt.eval.ledger import EncodedText
from segpt.eval.policies import reach
from segpt.eval.predictor import Predictor, TargetLogProbs
from segpt.eval.schedule import schedule
from segpt.eval.tally import Tally
from segpt.eval.windows import Spans
from segpt.model.model import Model

MakeModel = Callable[..., Model]
MakeStream = Callable[..., NDArray[np.uint32]]
MakeLedger = Callable[..., EncodedText]
Tallied = Callable[..., Tally]

MIXER = {"heads": 2, "kv_heads": 1, "head_dim": 8, "query_key": ["norm", {"kind": "rope"}]}
MODELS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "looped": {"depth": 3, "route": "0 (1)*3 2"},
    "windows": {
        "depth": 3,
        "override": [{"layers": "1", "set": {"mixer": {"window": 5}}}],
    },
    "looped windows": {
        "depth": 2,
        "route": "(0:2)*2",
        "override": [{"layers": "0", "set": {"mixer": {"window": 7}}}],
    },
    "no mixer in a layer": {
        "depth": 2,
        "override": [{"layers": "0", "set": {"mixer": None}}],
    },
}


@pytest.fixture(params=list(MODELS.values()), ids=list(MODELS))
def model(request: pytest.FixtureRequest, tiny: MakeModel) -> Model:
    changes: dict[str, Any] = request.param
    return tiny(**changes)


def banded(model: Model, ids: NDArray[np.uint32], window: int) -> NDArray[np.float64]:
    """Log-probabilities of one pass over all tokens, (targets, vocab)."""
    tokens = torch.from_numpy(ids.astype(np.int64))[None, :-1]
    with torch.no_grad():
        logits = model.logits(model.hidden(tokens, window=window).x)[0]
    found: NDArray[np.float64] = logits.double().log_softmax(-1).numpy()
    return found


def nats_of(rows: NDArray[np.float64], ids: NDArray[np.uint32]) -> NDArray[np.float64]:
    return -rows[np.arange(len(rows)), ids[1:]]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 16])
def test_rolling_is_one_banded_pass(
    model: Model, stream: MakeStream, tallied: Tallied, batch: int
) -> None:
    ids = stream(211)
    found = tallied(model, ids, ScoreSpec(mode="rolling", batch=batch)).nats
    assert np.abs(found - nats_of(banded(model, ids, 16), ids)).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3, 8])
def test_stretches_warm_up_to_the_same_pass(
    model: Model, stream: MakeStream, processes: int
) -> None:
    """Each stretch alone, as the processes that share a stream read it."""
    ids, spec = stream(601), ScoreSpec(mode="rolling", batch=4)
    expected = nats_of(banded(model, ids, 16), ids)
    groups = schedule(
        np.zeros(1, np.int64), 601, 16, spec, reach(model, 16, spec), processes=processes
    )
    assert len(groups) > 1
    learner, seen = FrozenLearner(model), 0
    for group in groups:
        reader = Predictor(ids, 16, np.zeros(601, np.bool_))
        for spans in (spans for one in group for spans in one.batches):
            found = reader.read(learner, spans)
            assert np.abs(found.nats - expected[found.targets]).max(initial=0) < 1e-5
            seen += len(found.targets)
    assert seen == 601


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["strided", "rolling"])
@pytest.mark.parametrize("batch", [1, 2, 5, 16])
def test_a_document_scores_as_if_it_were_alone(
    model: Model, ledger: MakeLedger, tallied: Tallied, mode: Any, batch: int
) -> None:
    whole = ledger(140, (0, 30, 31, 56, 110, 115))
    spec = ScoreSpec(mode=mode, boundaries="document", stride=6, batch=batch)
    found = tallied(model, whole, spec).nats
    for first, stop in zip(whole.starts, [*whole.starts[1:], 140], strict=True):
        alone = tallied(model, whole.ids[first : stop + 1], ScoreSpec(mode=mode, stride=6)).nats
        assert np.abs(found[first:stop] - alone).max() < 1e-5


@pytest.mark.slow
def test_a_document_sees_no_other_one(
    ledger: MakeLedger, tallied: Tallied, tiny: MakeModel
) -> None:
    model, whole = tiny(), ledger(300)
    for mode in ("strided", "rolling"):
        spec = ScoreSpec(mode=mode, boundaries="document", stride=6, batch=1)
        plain = tallied(model, whole, spec).nats
        ids = whole.ids.copy()
        ids[50] = 1 + ids[50] % 31
        changed = np.flatnonzero(tallied(model, ids_of(whole, ids), spec).nats != plain)
        assert changed.min() >= 49
        assert changed.max() < 90


def ids_of(ledger: EncodedText, ids: NDArray[np.uint32]) -> EncodedText:
    return EncodedText(ids, ledger.sizes, ledger.starts, ledger.raw, ledger.denominator)


def spans(*places: tuple[int, int, int]) -> Spans:
    """Spans that begin, score from and end at ``places``, each in a segment of its own."""
    begin, start, end = np.array(places).T
    return Spans(begin, start, end, np.arange(len(places)))


def read(model: Model, ids: NDArray[np.uint32], where: Spans) -> TargetLogProbs:
    probed = np.zeros(len(ids) - 1, np.bool_)
    probed[::3] = True
    return Predictor(ids, None, probed).read(FrozenLearner(model), where)


def test_padding_never_matters(model: Model, stream: MakeStream) -> None:
    ids = stream(100)
    places = [(0, 0, 16), (10, 20, 26), (95, 99, 100), (40, 41, 43), (97, 97, 100), (30, 30, 31)]
    together = read(model, ids, spans(*places))
    alone = [read(model, ids, spans(place)) for place in places]
    assert together.targets.tolist() == [t for _, s, e in places for t in range(s, e)]
    assert np.allclose(together.nats, np.concatenate([r.nats for r in alone]), atol=1e-5)
    assert np.allclose(together.rows, np.concatenate([r.rows for r in alone]), atol=1e-5)


def test_what_stands_after_a_shorter_span_is_not_looked_at(
    tiny: MakeModel, stream: MakeStream
) -> None:
    model, ids = tiny(), stream(100)
    where = spans((0, 0, 16), (20, 22, 24))
    before = read(model, ids, where).nats
    ids[25:36] = (ids[25:36] + 1) % 32
    assert np.array_equal(read(model, ids, where).nats, before)


def test_rows_are_the_whole_distribution(model: Model, stream: MakeStream) -> None:
    ids = stream(80)
    found = read(model, ids, spans((0, 0, 80)))
    tokens = torch.from_numpy(ids.astype(np.int64))[None, :-1]
    with torch.no_grad():
        expected = model(tokens)[0].double().log_softmax(-1).numpy()
    assert found.rows.shape == (27, 32)
    assert np.allclose(found.rows, expected[::3], atol=1e-5)
    assert np.allclose(np.exp(found.rows.astype(np.float64)).sum(1), 1, atol=1e-6)
    assert np.allclose(found.nats[::3], -found.rows[np.arange(27), ids[1::3]], atol=1e-6)


def test_a_span_that_scores_nothing_is_read_all_the_same(
    tiny: MakeModel, stream: MakeStream
) -> None:
    model, ids = tiny(), stream(60)
    expected = nats_of(banded(model, ids, 16), ids)
    reader, learner = Predictor(ids, 16, np.zeros(60, np.bool_)), FrozenLearner(tiny())
    assert len(reader.read(learner, spans((0, 30, 30))).targets) == 0
    found = reader.read(learner, spans((30, 40, 60)))
    assert found.targets.tolist() == list(range(40, 60))
    assert np.allclose(found.nats, expected[40:], atol=1e-5)


def test_a_reader_goes_on_where_its_state_was_taken(tiny: MakeModel, stream: MakeStream) -> None:
    model, ids = tiny(), stream(60)
    first, second = (Predictor(ids, 16, np.zeros(60, np.bool_)) for _ in range(2))
    learner = FrozenLearner(model)
    first.read(learner, spans((0, 0, 20), (30, 30, 50)))
    taken = first.state()
    second.restore(taken, torch.device("cpu"))
    for where in (spans((20, 20, 30), (50, 50, 60)), spans((30, 30, 31))):
        assert np.array_equal(first.read(learner, where).nats, second.read(learner, where).nats)
