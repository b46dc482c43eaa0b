"""The learner of each policy, and how far back a rolling prediction depends on tokens."""

import copy
from typing import assert_never

from segpt.config.score import Frozen, InPlace, LowRank, Phased, ScoreSpec, Sgd
from segpt.errors import ScoreError
from segpt.model.embed import Backward
from segpt.model.fast import fast_parts, set_rate
from segpt.model.model import Model

from .learners import FrozenLearner, Learner, SgdLearner
from .lowrank import LoraLearner, PhasedLearner


def learner(model: Model, spec: ScoreSpec, context: int) -> Learner:
    """What predicts and learns under a policy; ``model`` itself stays as it is.

    Raises:
        ScoreError: if the model has nothing that the policy could change.
        SpecError: if it has learned too few positions for what it is to read.
    """
    spec.check_positions(model.spec)
    policy = spec.policy
    if policy.fast_weights and not fast_parts(model):
        raise ScoreError(
            "this model was trained without fast weights, so it cannot adapt in place; choose "
            "another policy, or train with feed.fast"
        )
    model = _with_rate(model, policy.fast_rate)
    match policy:
        case Frozen() | InPlace():
            return FrozenLearner(model)
        case Sgd():
            return SgdLearner(model, policy, context)
        case LowRank():
            return LoraLearner(model, policy, context)
        case Phased():
            return PhasedLearner(model, policy, context)
        case _:
            assert_never(policy)


def reach(model: Model, context: int, spec: ScoreSpec) -> int | None:
    """How many tokens before its own a prediction depends on; None if on all.

    Each visit whose attention looks back over a window adds one window, and each part of the
    embedding that looks one token back adds one token.
    """
    if spec.policy.fast_weights:
        return None
    mixing = [i for i in model.active if model.spec.layers[model.spec.visits[i].layer].mixer]
    before = sum(isinstance(part, Backward) for part in model.embed)
    return before + sum(min(context, model.windows[i] or context) - 1 for i in mixing)


def _with_rate(model: Model, rate: float | None) -> Model:
    """The model with its fast weights learning at ``rate``; as it is if it has none."""
    if not fast_parts(model):
        return model
    model = copy.deepcopy(model)
    set_rate(model, rate)
    return model
