"""Models whose tokens look back before attention, scored in every way."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.coding.token_predictor import TokenPredictor
from segpt.config.score import Boundaries, LowRank, Mode, ScoreSpec
from segpt.eval.learners import FrozenLearner
from segpt.eval.ledger import EncodedText
from segpt.eval.lowrank import LoraLearner
from segpt.eval.policies import reach
from segpt.eval.predictor import Predictor
from segpt.eval.surprisal import window_hidden
from segpt.eval.tally import Tally
from segpt.eval.windows import Spans
from segpt.model.embed import Backward
from segpt.model.model import Model
from segpt.model.params import LowRankProduct, Table, weights

MakeModel = Callable[..., Model]
MakeLedger = Callable[..., EncodedText]
Tallied = Callable[..., Tally]

LAYER = {
    "mixer": {
        "heads": 2,
        "kv_heads": 1,
        "head_dim": 8,
        "query_key": ["norm", {"kind": "rope", "dims": 4}],
        "value": ["value_norm", {"kind": "value_embedding", "table": 0}],
    },
    "feed": {"hidden": 24},
}
CHANGES: dict[str, Any] = {
    "layer": LAYER,
    "start": 0,
    "value_tables": 1,
    "embed": [
        "token",
        {"kind": "smear", "inputs": 4},
        {"kind": "bigram", "buckets": 13, "width": 4},
        {"kind": "smear", "gate": "channel"},
    ],
}


def stepped(model: Model, ids: NDArray[np.uint32], spec: ScoreSpec) -> NDArray[np.float64]:
    """The nats of all targets, one token at a time."""
    steps, nats = TokenPredictor(model, spec, int(ids[0]), len(ids) - 1), []
    for token in ids[1:].tolist():
        nats.append(-steps.distribution()[token])
        steps.push(token)
    return np.array(nats)


@pytest.mark.slow
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("boundaries", ["stream", "document"])
@pytest.mark.parametrize("mode", ["strided", "rolling"])
def test_steps_find_what_the_score_finds(
    tiny: MakeModel,
    ledger: MakeLedger,
    tallied: Tallied,
    mode: Mode,
    boundaries: Boundaries,
    documents: bool,
) -> None:
    spec = ScoreSpec(mode=mode, boundaries=boundaries, stride=6, batch=4)
    model, whole = tiny(documents=documents, **CHANGES), ledger(130, (0, 25, 26, 60, 110, 114))
    found = tallied(model, whole, spec, context=spec.reach(16)).nats
    assert np.abs(found - stepped(model, whole.ids, spec)).max() < 1e-4


@pytest.mark.parametrize("mode", ["strided", "rolling"])
def test_documents_apart_score_the_same_in_a_stream(
    tiny: MakeModel, ledger: MakeLedger, tallied: Tallied, mode: Mode
) -> None:
    """With a window that holds any document, so that none begins within one."""
    model, whole = tiny(documents=True, context=120, **CHANGES), ledger()
    scores = []
    for boundaries in ("stream", "document"):
        spec = ScoreSpec(mode=mode, boundaries=boundaries, stride=1, batch=4)
        scores.append(tallied(model, whole, spec, context=120).nats)
    borders = whole.starts[1:] - 1  # in a stream too, a start is predicted by the document before
    assert np.abs(scores[0] - scores[1]).max() < 1e-4
    assert (scores[0][borders] > 0).all()


def test_a_rolling_state_reaches_one_token_further_for_each_part_that_looks_back(
    tiny: MakeModel, ledger: MakeLedger
) -> None:
    model, spec = tiny(**CHANGES), ScoreSpec(mode="rolling", stride=6)
    plain = tiny(**CHANGES | {"embed": ["token"]})
    found, before = reach(model, 5, spec), reach(plain, 5, spec)
    assert found is not None
    assert found == (before or 0) + 3 == 2 * 4 + 3
    ids = torch.from_numpy(ledger(60, (0,)).ids.astype(np.int64))[None]
    others = ids.clone()
    others[:, 20] = 1 + others[:, 20] % 31
    with torch.no_grad():
        changed = (model(ids, window=5) - model(others, window=5)).abs().amax((0, 2))
    # Bigrams look at tokens and not at what a smear made of them, so that two is all there is.
    assert changed[20 + found - 1] > 0
    assert torch.equal(changed[20 + found :], torch.zeros(61 - 20 - found))


def test_an_interrupted_pass_goes_on_where_it_was(tiny: MakeModel, ledger: MakeLedger) -> None:
    model, ids = tiny(documents=True, **CHANGES), ledger().ids
    one, other = (Predictor(ids, 14, np.zeros(300, np.bool_)) for _ in range(2))

    def read(reader: Predictor, begin: int, end: int) -> NDArray[np.float32]:
        ends = np.array([begin]), np.array([begin]), np.array([end])
        return reader.read(FrozenLearner(model), Spans(*ends, np.zeros(1, np.int64))).nats

    read(one, 0, 52)
    other.restore(one.state(), torch.device("cpu"))
    assert np.array_equal(read(one, 52, 70), read(other, 52, 70))


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("looks", [False, True])
def test_windows_that_overlap_are_what_each_is_alone(
    tiny: MakeModel, ledger: MakeLedger, documents: bool, looks: bool
) -> None:
    changes = CHANGES if looks else CHANGES | {"embed": ["token"]}
    model, ids = tiny(documents=documents, **changes), ledger().ids
    assert model.private_prefix == (
        sum(isinstance(p, Backward) for p in model.embed) if looks else 0
    )
    begin = np.array([30, 32, 33, 86, 88, 200, 201])
    with torch.no_grad():
        together = window_hidden(model, ids, begin, 16, 7)
        for row, first in enumerate(begin.tolist()):
            tokens = torch.from_numpy(ids[first : first + 16].astype(np.int64))[None]
            alone = model.hidden(tokens, last=7).x[0]
            torch.testing.assert_close(together[row], alone, atol=2e-5, rtol=0)


@pytest.mark.slow
def test_adapters_leave_tables_alone_that_are_no_head(
    tiny: MakeModel, ledger: MakeLedger, tallied: Tallied
) -> None:
    policy = LowRank(rank=2, chunk=8, rate=0.02, documents=3)
    learner = LoraLearner(tiny(**CHANGES), policy, 16)
    learner.open(1)
    learner.select(np.zeros(1, np.int64))
    adapted = {
        w.name
        for w in weights(learner.model)
        if isinstance(w.param, Table) and isinstance(w.param.product, LowRankProduct)
    }
    assert adapted == {"table"}
    assert {"embed.2.rows", "value_tables.0"} <= {w.name for w in weights(learner.model)}
    spec = ScoreSpec(mode="rolling", boundaries="document", stride=6, batch=4, policy=policy)
    model, whole = tiny(documents=True, **CHANGES), ledger(120, (0, 40, 41, 90))
    found = tallied(model, whole, spec, context=spec.reach(16)).nats
    assert np.abs(found - stepped(model, whole.ids, spec)).max() < 1e-4
