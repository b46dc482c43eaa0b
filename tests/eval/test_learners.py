"""What test-time training does to the weights, and that it helps where it should."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from segpt.config.base import decode
from segpt.config.layout import Role
from segpt.config.score import Frozen, ScoreSpec, Sgd
from segpt.errors import ScoreError, SpecError
from segpt.eval.learners import Chunk, SgdLearner
from segpt.eval.ledger import EncodedText
from segpt.eval.tally import score_stream
from segpt.eval.windows import plan
from segpt.model.model import Model
from segpt.model.params import weights

MakeModel = Callable[..., Model]
MakeStream = Callable[..., NDArray[np.uint32]]


def state(model: Model) -> dict[str, torch.Tensor]:
    return {weight.name: weight.tensor.detach().clone() for weight in weights(model)}


def nats_of(
    model: Model, ids: NDArray[np.uint32], policy: Frozen | Sgd, *, batch: int = 4
) -> NDArray[np.float64]:
    sizes = np.ones(len(ids) - 1, np.int64)
    stream = EncodedText(ids, sizes, np.zeros(1, np.int64), len(sizes), "bytes")
    return score_stream(model, stream, ScoreSpec(stride=8, batch=batch, policy=policy), 16).nats


def teach(learner: SgdLearner, ids: NDArray[np.uint32], progress: float = 0.0) -> None:
    learner.learn([Chunk(0, ids, progress)])


def test_the_model_of_the_caller_is_left_alone(tiny: MakeModel, stream: MakeStream) -> None:
    model = tiny()
    before = state(model)
    plain = nats_of(model, stream(100), Frozen())
    adapted = nats_of(model, stream(100), Sgd(chunk=32, rate=0.5))
    assert not np.isclose(adapted[32:], plain[32:]).any()
    assert all(torch.equal(before[name], now) for name, now in state(model).items())
    assert all(weight.tensor.requires_grad for weight in weights(model))


@pytest.mark.parametrize("batch", [1, 4])
def test_a_rate_of_zero_is_the_plain_score(tiny: MakeModel, stream: MakeStream, batch: int) -> None:
    model, ids = tiny(), stream(200)
    plain = nats_of(model, ids, Frozen(), batch=batch)
    still = nats_of(model, ids, Sgd(chunk=32, rate=0.0), batch=batch)
    # A chunk may end within a batch, and matrix products of another size may round differently.
    assert np.array_equal(plain, still) if batch == 1 else np.allclose(plain, still, atol=1e-6)


def test_learning_is_deterministic(tiny: MakeModel, stream: MakeStream) -> None:
    first, second = (nats_of(tiny(), stream(100), Sgd(chunk=32, rate=0.1)) for _ in range(2))
    assert np.array_equal(first, second)


def test_learning_helps_on_text_that_repeats(tiny: MakeModel, stream: MakeStream) -> None:
    ids = np.tile(stream(39), 8)
    plain = nats_of(tiny(noise=0.1), ids, Frozen())
    adapted = nats_of(tiny(noise=0.1), ids, Sgd(chunk=40, rate=0.02, momentum=0.9, epochs=2))
    assert adapted.sum() < 0.9 * plain.sum()


def walk(count: int, seed: int) -> NDArray[np.uint32]:
    """Text in which each token has one usual successor, drawn from the seed."""
    generator = np.random.default_rng(seed)
    successors, tokens = generator.permutation(32), [0]
    for _ in range(count - 1):
        usual = generator.random() < 0.9
        tokens.append(int(successors[tokens[-1]] if usual else generator.integers(32)))
    return np.array(tokens, np.uint32)


@pytest.mark.slow
def test_the_gain_grows_with_position(tiny: MakeModel) -> None:
    """What goes back to its first weights after each window never gains more than at first."""
    model, policy = tiny(noise=0.02), Sgd(chunk=32, rate=0.05, momentum=0.9, epochs=4, batch=2)
    with torch.no_grad():
        model.table.weight.mul_(0.1)

    def gains(second: NDArray[np.uint32]) -> list[float]:
        ids = np.concatenate([walk(256, seed=0), second])
        gain = nats_of(model, ids, Frozen()) - nats_of(model, ids, policy)
        return [float(quarter.mean()) for quarter in np.array_split(gain, 4)]

    repeated, other = gains(walk(256, seed=0)), gains(walk(256, seed=1))
    assert repeated == sorted(repeated)
    assert repeated[3] > repeated[0] + 1.0
    assert repeated[3] > other[3] + 1.0


def test_steps_are_those_of_clipped_sgd_with_momentum(tiny: MakeModel, stream: MakeStream) -> None:
    """Momentum lasts from chunk to chunk, and the norm is clipped over all weights together."""
    policy = Sgd(rate=0.1, momentum=0.8, epochs=3, clip=0.5, batch=2)
    learner, model = SgdLearner(tiny(), policy, 16), tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.8)
    for seed in range(2):
        ids = stream(64, seed=seed)
        teach(learner, ids)
        tokens = torch.from_numpy(ids.astype(np.int64))
        inputs, targets = tokens[:-1].view(2, 2, 16), tokens[1:].view(2, 2, 16)
        for _ in range(3):
            for x, y in zip(inputs, targets, strict=True):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
                torch.autograd.backward(loss)
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                assert norm > 0.5
                optimizer.step()
    expected = state(model)
    for name, found in state(learner.model).items():
        assert torch.allclose(found, expected[name], atol=1e-5), name


def test_small_steps_survive_because_weights_are_float32(
    tiny: MakeModel, stream: MakeStream
) -> None:
    """In bfloat16 a step below the spacing of the weights is lost."""
    model = tiny().bfloat16()
    learner = SgdLearner(model, Sgd(rate=1e-5, epochs=1), 16)
    before = state(learner.model)
    teach(learner, stream(64))
    moved = state(learner.model)["table"] - before["table"]
    assert moved.dtype == torch.float32
    assert 0 < float(moved.abs().max()) < 1e-4
    assert torch.equal((before["table"] + moved).bfloat16(), before["table"].bfloat16())


def test_roles_choose_what_moves(tiny: MakeModel, stream: MakeStream) -> None:
    learner = SgdLearner(tiny(), Sgd(rate=0.5, roles=("vector", "matrix")), 16)
    before = state(learner.model)
    teach(learner, stream(64))
    for weight in weights(learner.model):
        still = torch.equal(weight.tensor, before[weight.name])
        assert still == (weight.role is Role.TABLE), weight.name


def test_a_role_that_is_not_there_is_refused(tiny: MakeModel) -> None:
    with pytest.raises(ScoreError, match=r"no weights of role head .*\(a tied head is the table\)"):
        SgdLearner(tiny(), Sgd(roles=("head",)), 16)


@pytest.mark.parametrize(("progress", "factor"), [(0.0, 1.0), (0.5, 0.5), (0.75, 0.146447)])
def test_cosine_anneals_the_rate(
    tiny: MakeModel, stream: MakeStream, progress: float, factor: float
) -> None:
    moves = []
    for policy, at in ((Sgd(epochs=1), 0.0), (Sgd(epochs=1, anneal="cosine"), progress)):
        learner = SgdLearner(tiny(), policy, 64)
        teach(learner, stream(64), at)
        moves.append(learner.model.table.weight.detach() - tiny().table.weight.detach())
    assert float(moves[1].norm() / moves[0].norm()) == pytest.approx(factor, rel=1e-3)


def test_a_short_chunk_is_one_short_sequence(tiny: MakeModel, stream: MakeStream) -> None:
    learner = SgdLearner(tiny(), Sgd(rate=0.5), 16)
    before = state(learner.model)["table"]
    teach(learner, stream(1))
    assert not torch.equal(state(learner.model)["table"], before)


def test_visits_that_have_not_joined_stay_still(tiny: MakeModel, stream: MakeStream) -> None:
    model = tiny(depth=1, route="0*2@0.5").set_progress(0.0)
    learner = SgdLearner(model, Sgd(rate=0.5), 16)
    before = state(learner.model)
    teach(learner, stream(64))
    now = state(learner.model)
    assert torch.equal(now["visits.1.0.gate"], before["visits.1.0.gate"])
    assert not torch.equal(now["table"], before["table"])


def test_a_rate_that_explodes_is_reported(tiny: MakeModel, stream: MakeStream) -> None:
    with pytest.raises(ScoreError, match=r"adapt\.rate is too high"):
        nats_of(tiny(), stream(200), Sgd(chunk=32, rate=math.inf))


def test_scoring_takes_one_pass_and_learning_its_epochs(
    tiny: MakeModel, stream: MakeStream
) -> None:
    """Not one pass per chunk of each window."""
    read = [0]

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        read[0] += output.size(0) * output.size(1)

    model, targets = tiny(), 200
    model.layers[0].register_forward_hook(count)  # until its attention, windows share tokens
    windows = plan(targets, 16, 8)
    scoring = int((windows.end - windows.begin).sum())
    nats_of(model, stream(targets), Frozen())
    assert read[0] == scoring
    nats_of(model, stream(targets), Sgd(chunk=64, epochs=3))
    assert read[0] == 2 * scoring + 3 * 192


def test_a_policy_that_is_not_there_is_refused() -> None:
    with pytest.raises(SpecError, match="unknown kind 'oracle'; known: frozen"):
        decode(ScoreSpec, {"policy": "oracle"})


def test_a_learner_goes_on_where_its_state_was_taken(tiny: MakeModel, stream: MakeStream) -> None:
    policy = Sgd(rate=0.1, momentum=0.9)
    first = SgdLearner(tiny(), policy, 16)
    teach(first, stream(64))
    second = SgdLearner(tiny(), policy, 16)
    second.restore(first.state())
    for learner in (first, second):
        teach(learner, stream(64, seed=1))
    for name, found in state(second.model).items():
        assert torch.equal(found, state(first.model)[name]), name


def test_a_state_is_not_changed_by_learning_on(tiny: MakeModel, stream: MakeStream) -> None:
    learner = SgdLearner(tiny(), Sgd(rate=0.1, momentum=0.9), 16)
    teach(learner, stream(64))
    taken = learner.state()
    before = {name: array.copy() for name, array in taken.items()}
    teach(learner, stream(64, seed=1))
    assert all(np.array_equal(before[name], array) for name, array in taken.items())
