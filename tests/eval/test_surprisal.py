"""Nats are those of a full softmax in the promised window, whatever runs beside it."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segpt.config.score import Frozen, ScoreSpec, Sgd
from segpt.errors import ScoreError
from segpt.eval.ledger import EncodedText
from segpt.eval.surprisal import gather, position_nats, window_nats
from segpt.eval.tally import score_stream
from segpt.eval.windows import plan
from segpt.model.model import Model

MakeModel = Callable[..., Model]
MakeStream = Callable[..., NDArray[np.uint32]]


def nats_of(model: Model, ids: NDArray[np.uint32], spec: ScoreSpec) -> NDArray[np.float64]:
    """The nats of every target, in order."""
    sizes = np.ones(len(ids) - 1, np.int64)
    stream = EncodedText(ids, sizes, np.zeros(1, np.int64), len(sizes), "bytes")
    return score_stream(model, stream, spec, 16).nats


def test_nats_are_those_of_one_window_at_a_time(tiny: MakeModel, stream: MakeStream) -> None:
    model, ids = tiny(), stream(101)
    expected = []
    windows = plan(101, 16, 5)
    for begin, start, end in zip(windows.begin, windows.start, windows.end, strict=True):
        tokens = torch.from_numpy(ids[begin : end + 1].astype(np.int64))
        with torch.no_grad():
            rows = model(tokens[None, :-1])[0].double().log_softmax(-1)
        expected += [-float(rows[t - begin, tokens[t - begin + 1]]) for t in range(start, end)]
    assert nats_of(model, ids, ScoreSpec(stride=5)) == pytest.approx(expected, abs=2e-6)


@pytest.mark.slow
def test_batches_do_not_change_the_score(tiny: MakeModel, stream: MakeStream) -> None:
    model, ids = tiny(), stream(300)
    bits = [
        nats_of(model, ids, ScoreSpec(stride=4, batch=batch)).sum() / (300 * math.log(2))
        for batch in (1, 2, 8, 32)
    ]
    assert max(bits) - min(bits) < 1e-6
    again = nats_of(model, ids, ScoreSpec(stride=4, batch=8)).sum() / (300 * math.log(2))
    assert again == bits[2]


LEARNING = Sgd(chunk=8, rate=0.1, epochs=1, batch=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "route", "flips"),
    [
        (Frozen(), "0*2", 200),
        (LEARNING, "0", 60),
        pytest.param(Frozen(), "0*2", 800, marks=pytest.mark.campaign),
        pytest.param(LEARNING, "0", 200, marks=pytest.mark.campaign),
    ],
)
def test_no_target_depends_on_a_later_token(
    tiny: MakeModel, stream: MakeStream, policy: Frozen | Sgd, route: str, flips: int
) -> None:
    model, ids = tiny(depth=1, route=route), stream(30)
    spec = ScoreSpec(stride=7, policy=policy)
    plain = nats_of(model, ids, spec)
    generator = np.random.default_rng(0)
    changed = 0
    for _ in range(flips):
        where = int(generator.integers(0, 31))
        flipped = ids.copy()
        flipped[where] = (ids[where] + generator.integers(1, 32)) % 32
        nats = nats_of(model, flipped, spec)
        # Token j is target j - 1, the first whose nats may change.
        assert np.array_equal(nats[: max(0, where - 1)], plain[: max(0, where - 1)])
        changed += not np.array_equal(nats[where + 1 :], plain[where + 1 :])
    assert changed > flips / 2


def test_learning_reaches_later_chunks_only(tiny: MakeModel, stream: MakeStream) -> None:
    model, ids = tiny(), stream(64)
    plain = nats_of(model, ids, ScoreSpec(stride=8, batch=1))
    adapted = nats_of(model, ids, ScoreSpec(stride=8, batch=1, policy=Sgd(chunk=32, rate=0.1)))
    assert np.array_equal(adapted[:32], plain[:32])
    assert not np.isclose(adapted[32:], plain[32:]).any()


def test_what_lies_past_the_end_is_the_last_token(stream: MakeStream) -> None:
    ids = stream(9)
    found = gather(ids, np.array([0, 7]), 5).tolist()
    assert found == [ids[:5].tolist(), [ids[7], ids[8], ids[9], ids[9], ids[9]]]


def test_windows_of_one_shape_give_the_nats_of_each_alone(
    tiny: MakeModel, stream: MakeStream
) -> None:
    model, ids = tiny(), stream(60)
    windows = plan(60, 16, 4)[slice(1, 9)]
    with torch.no_grad():
        together = window_nats(model, ids, windows)
        alone = [window_nats(model, ids, windows[slice(i, i + 1)]) for i in range(8)]
    assert together.shape == (8, 4)
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_a_uniform_model_gives_the_entropy_of_the_alphabet(
    tiny: MakeModel, stream: MakeStream
) -> None:
    model = tiny()
    torch.nn.init.zeros_(model.table.weight)
    nats = nats_of(model, stream(100), ScoreSpec(stride=8))
    assert nats == pytest.approx(np.full(100, math.log(32)), rel=1e-7)


def test_a_bigram_model_gives_its_closed_form(tiny: MakeModel, stream: MakeStream) -> None:
    model, ids = tiny(depth=1, skips=None, layer={"mixer": None, "feed": None}), stream(200)
    table = model.table.weight.detach().double().numpy()
    unit = table / np.sqrt((table**2).mean(1, keepdims=True))
    logits = 30 * np.tanh(unit @ table.T / 30)
    rows = np.log(np.exp(logits).sum(1, keepdims=True)) - logits
    expected = rows[ids[:-1], ids[1:]]
    assert nats_of(model, ids, ScoreSpec(stride=8)) == pytest.approx(expected, abs=3e-6)


def test_probabilities_sum_to_one(tiny: MakeModel, stream: MakeStream) -> None:
    model = tiny()
    tokens = torch.from_numpy(stream(1000).astype(np.int64)).view(143, 7)
    hidden = model.hidden(tokens).x.detach()
    every = torch.arange(32).repeat(143, 7)
    nats = position_nats(model, hidden.repeat_interleave(32, 1), every).detach()
    sums = torch.exp(-nats.double()).view(143, 7, 32).sum(-1)
    assert sums.numpy() == pytest.approx(np.ones((143, 7)), abs=1e-5)


def test_a_broken_model_is_refused(tiny: MakeModel, stream: MakeStream) -> None:
    model, ids = tiny(), stream(100)
    ids[ids == 5] = 6
    ids[70] = 5
    with torch.no_grad():
        model.table.weight[5] = math.inf
    with pytest.raises(ScoreError, match=r"target \d+ no finite number of nats"):
        nats_of(model, ids, ScoreSpec(stride=8))


def test_what_scoring_caches_can_be_trained_with(tiny: MakeModel, stream: MakeStream) -> None:
    """Tensors made under inference mode cannot be saved for a backward pass."""
    model, ids = tiny(), stream(32)
    cache: list[Tensor] = []

    def scale(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not cache:
            cache.append(torch.full((output.size(-1),), 2.0))
        return output * cache[0]

    model.table.register_forward_hook(scale)
    nats_of(model, ids, ScoreSpec(stride=8))
    torch.autograd.backward(window_nats(model, ids, plan(32, 32, 32)).mean())
    assert model.table.weight.grad is not None


LAST = [
    {},
    {"depth": 3, "route": "0 1:*2", "layer": {"mixer": None, "feed": {"hidden": 8}}},
    {"layer": {"mixer": {"heads": 2, "kv_heads": 2, "head_dim": 8}, "feed": None}},
    {"layer": {"mixer": {"heads": 2, "kv_heads": 1, "head_dim": 8}, "feed": {"hidden": 8}}},
    {"layer": {"mixer": None, "feed": None}},
]


@pytest.mark.parametrize("changes", LAST, ids=range(len(LAST)))
def test_the_last_positions_are_those_of_the_full_pass(
    tiny: MakeModel, stream: MakeStream, changes: dict[str, object]
) -> None:
    model = tiny(**changes)
    tokens = torch.from_numpy(stream(59).astype(np.int64)).view(4, 15)
    with torch.no_grad():
        full = model(tokens)
        for last in (1, 4, 15):
            assert torch.allclose(model(tokens, last=last), full[:, -last:], atol=1e-5)
