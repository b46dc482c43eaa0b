"""Adapters of documents: alone, from nothing, and gone with their document."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.config.score import Frozen, LowRank, Phased, ScoreSpec
from segpt.errors import ScoreError
from segpt.eval.learners import Chunk
from segpt.eval.ledger import EncodedText
from segpt.eval.lowrank import LoraLearner, PhasedLearner
from segpt.eval.schedule import BASE
from segpt.eval.tally import Tally
from segpt.model.model import Model
from segpt.model.params import Matrix, PlainProduct, Table, weights

MakeModel = Callable[..., Model]
MakeStream = Callable[..., NDArray[np.uint32]]
MakeLedger = Callable[..., EncodedText]
Tallied = Callable[..., Tally]

POLICY = LowRank(rank=2, chunk=8, rate=0.02, documents=4)
SPEC = ScoreSpec(mode="rolling", boundaries="document", stride=6, batch=4, policy=POLICY)


def logits(learner: LoraLearner, segments: list[int], tokens: NDArray[np.uint32]) -> torch.Tensor:
    """What each of the segments predicts for the same tokens, (segments, time, vocab)."""
    learner.select(np.array(segments))
    rows = torch.from_numpy(tokens.astype(np.int64)).expand(len(segments), -1)
    with torch.no_grad():
        return learner.model(rows)


@pytest.mark.parametrize("roles", [("matrix",), ("head",), ("matrix", "head")])
@pytest.mark.parametrize("tied", [True, False])
def test_fresh_adapters_are_the_model_itself(
    tiny: MakeModel, stream: MakeStream, roles: tuple[Literal["matrix", "head"], ...], tied: bool
) -> None:
    model = tiny(head={"tied": tied, "softcap": 30.0})
    learner = LoraLearner(model, replace(POLICY, roles=roles), 16)
    learner.open(3)
    with torch.no_grad():
        plain = model(torch.from_numpy(stream(15).astype(np.int64))[None])
    assert torch.equal(logits(learner, [2], stream(15)), plain)
    learner.learn([Chunk(1, stream(8), 0.0)])
    assert torch.equal(logits(learner, [2], stream(15)), plain)
    assert not torch.allclose(logits(learner, [1], stream(15)), plain, atol=1e-3)
    learner.open(3)
    assert torch.equal(logits(learner, [1], stream(15)), plain)


def test_lanes_do_not_matter_to_each_other(tiny: MakeModel, stream: MakeStream) -> None:
    """Neither what stands beside a document, nor in which row it is, nor how long others are."""
    tokens = [stream(8, seed=s) for s in range(2)]
    alone = LoraLearner(tiny(), POLICY, 16)
    alone.open(1)
    for part in tokens:
        alone.learn([Chunk(0, part, 0.0)])
    beside = LoraLearner(tiny(), POLICY, 16)
    beside.open(4)
    beside.learn(
        [Chunk(0, stream(8, seed=7), 0.0), Chunk(2, tokens[0], 0.0), Chunk(3, stream(3), 0)]
    )
    beside.learn([Chunk(0, stream(5, seed=8), 0.0), Chunk(2, tokens[1], 0.0)])
    found, expected = logits(beside, [2], stream(15)), logits(alone, [0], stream(15))
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, logits(beside, [0], stream(15)), atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["strided", "rolling"])
def test_documents_side_by_side_change_nothing(
    tiny: MakeModel, ledger: MakeLedger, tallied: Tallied, mode: Literal["strided", "rolling"]
) -> None:
    whole = ledger(140, (0, 22, 23, 50, 110, 115))
    found = [
        tallied(tiny(), whole, replace(SPEC, mode=mode, policy=replace(POLICY, documents=count)))
        for count in (1, 2, 6, 50)
    ]
    assert all(np.abs(one.nats - found[0].nats).max() < 1e-4 for one in found[1:])


@pytest.mark.slow
@pytest.mark.parametrize("documents", [1, 3])
@pytest.mark.parametrize("mode", ["strided", "rolling"])
def test_a_document_knows_nothing_of_the_ones_before_it(
    tiny: MakeModel,
    ledger: MakeLedger,
    tallied: Tallied,
    mode: Literal["strided", "rolling"],
    documents: int,
) -> None:
    """A state that leaks from one document into the next changes the second."""
    model, whole = tiny(), ledger(120, (0, 50, 90))
    spec = replace(SPEC, mode=mode, policy=replace(POLICY, documents=documents))
    found = tallied(model, whole, spec).nats
    for first, stop in ((0, 50), (50, 90), (90, 120)):
        alone = tallied(model, whole.ids[first : stop + 1], spec).nats
        assert np.abs(found[first:stop] - alone).max() < 1e-4
    twice = np.concatenate([whole.ids[:50], whole.ids[:50], [0]]).astype(np.uint32)
    again = EncodedText(twice, np.ones(100, np.int64), np.array([0, 50]), 100, "bytes")
    nats = tallied(model, again, spec).nats
    # The last target of each is the start of what follows, which is the same token.
    assert np.abs(nats[:50] - nats[50:]).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["strided", "rolling"])
def test_a_rate_of_zero_is_the_plain_score(
    tiny: MakeModel, ledger: MakeLedger, tallied: Tallied, mode: Literal["strided", "rolling"]
) -> None:
    """Exactly, where both read a document at a time in the same steps."""
    model, whole = tiny(), ledger()
    still = replace(POLICY, rate=0.0, documents=1, chunk=16)
    spec = replace(SPEC, mode=mode, stride=8, batch=1, policy=still)
    plain = tallied(model, whole, replace(spec, policy=Frozen())).nats
    assert np.array_equal(tallied(model, whole, spec).nats, plain)
    phased = Phased(adapters=still, rate=0.0, chunk=32)
    assert np.array_equal(tallied(model, whole, replace(spec, policy=phased)).nats, plain)


@pytest.mark.slow
def test_adapters_gain_on_a_document_that_repeats_itself(
    tiny: MakeModel, stream: MakeStream, tallied: Tallied
) -> None:
    ids = np.tile(1 + stream(39) % 31, 8).astype(np.uint32)
    model = tiny(noise=0.1)
    plain = tallied(model, ids, replace(SPEC, policy=Frozen())).nats
    adapted = tallied(model, ids, SPEC).nats
    assert np.allclose(adapted[:8], plain[:8], atol=1e-5)
    assert adapted.sum() < 0.9 * plain.sum()
    assert adapted[-80:].mean() < plain[-80:].mean() - 0.5


def test_a_chunk_is_read_after_what_came_before_it(tiny: MakeModel, stream: MakeStream) -> None:
    """As far as the context goes back: an earlier token matters, one beyond it does not."""

    def learnt(first: NDArray[np.uint32], context: int) -> torch.Tensor:
        learner = LoraLearner(tiny(), POLICY, context)
        learner.open(1)
        with torch.no_grad():
            # Of the first chunk, only the tokens are to count.
            learner.policy = replace(POLICY, rate=0.0, beta2=0.0)
            learner.learn([Chunk(0, first, 0.0)])
            learner.policy = replace(POLICY, beta2=0.0)
        learner.learn([Chunk(0, stream(8, seed=1), 0.0)])
        return logits(learner, [0], stream(15))

    first, other = stream(8), stream(8)
    other[3] = (other[3] + 1) % 32
    assert torch.equal(learnt(first, 8), learnt(other, 8))
    assert not torch.allclose(learnt(first, 16), learnt(other, 16), atol=1e-4)


def test_steps_are_those_of_adamw(tiny: MakeModel, stream: MakeStream) -> None:
    policy = LowRank(
        rank=2, chunk=8, rate=0.01, beta1=0.8, beta2=0.9, decay=0.1, steps=3, roles=("head",)
    )
    learner, model = LoraLearner(tiny(), policy, 16), tiny().requires_grad_(False)
    learner.open(1)
    taken = learner.state()
    down, up = (torch.from_numpy(taken[f"0|{i}"][0].copy()).requires_grad_() for i in (0, 1))
    optimizer = torch.optim.AdamW(
        [down, up], lr=0.01, betas=(0.8, 0.9), eps=1e-10, weight_decay=0.1
    )
    ids = stream(8)
    learner.learn([Chunk(0, ids, 0.0)])
    tokens = torch.from_numpy(ids.astype(np.int64))
    for _ in range(3):
        optimizer.zero_grad()
        table = model.table.weight + policy.alpha / 2 * up @ down
        found = 30 * torch.tanh(model.hidden(tokens[None, :-1]).x[0] @ table.T / 30)
        torch.autograd.backward(torch.nn.functional.cross_entropy(found, tokens[1:]))
        optimizer.step()
    now = learner.state()
    for i, expected in enumerate((down, up)):
        assert np.allclose(now[f"0|{i}"][0], expected.detach().numpy(), atol=1e-5)


def test_the_model_of_the_caller_is_left_alone(tiny: MakeModel, stream: MakeStream) -> None:
    model = tiny()
    before = [weight.tensor.detach().clone() for weight in weights(model)]
    learner = PhasedLearner(model, Phased(adapters=POLICY, rate=0.5), 16)
    learner.open(2)
    learner.learn([Chunk(0, stream(8), 0.0), Chunk(BASE, stream(64), 0.0)])
    assert all(torch.equal(x, w.tensor) for x, w in zip(before, weights(model), strict=True))
    assert all(weight.tensor.requires_grad for weight in weights(model))
    assert all(getattr(weight.param, "view", None) is None for weight in weights(model))


def base(learner: PhasedLearner) -> list[torch.Tensor]:
    return [weight.tensor.detach().clone() for weight in weights(learner.model)]


def test_base_weights_change_at_the_ends_of_phases_only(
    tiny: MakeModel, stream: MakeStream
) -> None:
    learner = PhasedLearner(tiny(), Phased(adapters=POLICY, rate=0.5, chunk=32), 16)
    learner.open(2)
    before = base(learner)
    learner.learn([Chunk(0, stream(8), 0.0), Chunk(1, stream(8, seed=1), 0.0)])
    assert all(torch.equal(x, y) for x, y in zip(before, base(learner), strict=True))
    adapted = logits(learner, [0], stream(15))
    learner.learn([Chunk(BASE, stream(100), 0.0)])
    assert not any(torch.equal(x, y) for x, y in zip(before, base(learner), strict=True))
    # The adapters are still there, on the new weights.
    assert not torch.allclose(logits(learner, [0], stream(15)), adapted, atol=1e-3)
    after = base(learner)
    learner.open(2)
    assert all(torch.equal(x, y) for x, y in zip(after, base(learner), strict=True))
    fresh = logits(learner, [0], stream(15))
    plain = LoraLearner(learner.model, POLICY, 16).model
    for leaf in (weight.param for weight in weights(plain)):
        if isinstance(leaf, Matrix | Table):
            leaf.product = PlainProduct()
    with torch.no_grad():
        assert torch.equal(fresh, plain(torch.from_numpy(stream(15).astype(np.int64))[None]))


@pytest.mark.slow
def test_phases_learn_from_documents_that_are_done(
    tiny: MakeModel, ledger: MakeLedger, tallied: Tallied
) -> None:
    """Until the first phase ends all is as without phases; then every document is reviewed."""
    model, whole = tiny(), ledger()
    plain = tallied(model, whole, SPEC)
    phased = Phased(adapters=POLICY, fractions=(0.2, 0.5), chunk=32, rate=0.1)
    found = tallied(model, whole, replace(SPEC, policy=phased))
    # A fifth of 300 targets is completed by the third document, half of them by the fourth.
    reviews = [(e.first, e.stop) for e in found.ledger if e.event == "learn" and e.segment == BASE]
    assert reviews == [(0, 90), (0, 200)]
    assert np.abs(found.nats[:90] - plain.nats[:90]).max() < 1e-4
    assert not np.isclose(found.nats[90:], plain.nats[90:]).any()


@pytest.mark.slow
def test_a_review_helps_what_comes_after_it(
    tiny: MakeModel, stream: MakeStream, tallied: Tallied
) -> None:
    """Documents that say the same, which no document can know of another one but by a review."""
    document = np.concatenate([[0], 1 + stream(38) % 31])
    ids = np.append(np.tile(document, 8), 0).astype(np.uint32)
    whole = EncodedText(ids, np.ones(320, np.int64), np.arange(0, 320, 40), 320, "bytes")
    model = tiny(noise=0.1)
    plain = tallied(model, whole, SPEC).nats
    phased = Phased(adapters=POLICY, fractions=(0.25, 0.5), chunk=16, rate=0.1)
    found = tallied(model, whole, replace(SPEC, policy=phased)).nats
    assert np.abs(found[:80] - plain[:80]).max() < 1e-4
    assert found[80:].mean() < plain[80:].mean() - 0.1


def test_roles_that_are_not_there_are_refused(tiny: MakeModel) -> None:
    model = tiny(depth=1, skips=None, layer={"mixer": None, "feed": None})
    with pytest.raises(ScoreError, match=r"no matrices of role matrix to adapt; name others"):
        LoraLearner(model, replace(POLICY, roles=("matrix",)), 16)
