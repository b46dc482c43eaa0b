"""The optimizer of each rule. A new one is a rule, a file beside this one, and a line here."""

from collections.abc import Mapping, Sequence

from segpt.config.optimizer import Adam, Muon, Rule

from .adam import AdamOptimizer
from .muon import MuonOptimizer
from .shared import GroupOptimizer, Member, StateTensor

OPTIMIZERS: Mapping[type[Rule], type[GroupOptimizer]] = {
    Muon: MuonOptimizer,
    Adam: AdamOptimizer,
}


def optimizer(rule: Rule, members: Sequence[Member]) -> GroupOptimizer:
    """What updates weights under a rule.

    Raises:
        TrainError: if the rule does not suit one of the weights.
    """
    return OPTIMIZERS[type(rule)](rule, members)


def remembered(rule: Rule, shape: tuple[int, ...]) -> tuple[StateTensor, ...]:
    """What a rule keeps for a weight of this shape in memory and in checkpoints."""
    return optimizer(rule, ()).remembered(shape)
