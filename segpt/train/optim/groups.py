"""Which rule updates which weight: the groups of a model, by role and place."""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from segpt.config.layout import Place, Role, layout
from segpt.config.optimizer import Optimizer, Rule
from segpt.errors import TrainError
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.train.mesh import Mesh

from .division import DividesWork, Division
from .registry import optimizer
from .shared import Member


class Group(NamedTuple):
    """Weights of one role that one rule updates."""

    role: Role
    places: tuple[Place, ...]
    rule: Rule
    tensors: int
    parameters: int

    @property
    def traits(self) -> list[str]:
        """What is special about its decay, if it decays."""
        if not self.rule.decay:
            return []
        mode = self.rule.decay_mode
        return ["cautious"] * self.rule.cautious + [mode] * (mode != "lr_coupled")

    def __str__(self) -> str:
        places, rule = ", ".join(place.value for place in self.places), self.rule
        note = f" ({', '.join(self.traits)})" if self.traits else ""
        return (
            f"{self.role.value} of {places}: {self.parameters:,} weights in {self.tensors} "
            f"tensors, {type(rule).__name__}, rate {rule.rate:g}, decay {rule.decay:g}{note}"
        )


class Optimizers:
    """The rules of all weights of a model, and what they remember by weight name."""

    def __init__(
        self,
        model: Model,
        spec: Optimizer,
        rates: Mapping[str, float] | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        """Divide the weights into groups, each under one rule.

        Args:
            model: whose weights are updated.
            spec: the rules.
            rates: what the rates of weights are multiplied by, by name; 1 where it has none.
            mesh: the processes that have the same gradients and share the work; None is one.

        Raises:
            TrainError: if an override covers nothing, a rule does not suit a weight, or the
                groups would not hold every parameter of the model exactly once.
        """
        self.mesh = mesh
        members = _members(model)
        for i, override in enumerate(spec.overrides):
            if not any(override.covers(m.weight) for m in members):
                raise TrainError(
                    f"optimizer.overrides[{i}] covers no weight of this model; correct its role, "
                    "place and part, or leave it out"
                )
        divided: dict[tuple[Role, Rule], list[Member]] = defaultdict(list)
        for role in Role:
            for member in members:
                if member.weight.role is role:
                    times = (rates or {}).get(member.weight.name)
                    divided[role, _scaled(spec.rule(member.weight), times)].append(member)
        self.divided = dict(divided)
        self.optimizers = [optimizer(rule, group) for (_, rule), group in divided.items()]

    def step(self, multiplier: float, progress: float, steps: float) -> None:
        """Update every weight that has a gradient.

        Args:
            multiplier: of each rule's rate.
            progress: the fraction of the run that is done.
            steps: the number of steps that are done; halves are fine.
        """
        if self.mesh is not None and self.mesh.size > 1:
            self._divided_step(self.mesh, multiplier, progress, steps)
            return
        for each in self.optimizers:
            each.step(multiplier, progress, steps)

    def _divided_step(self, mesh: Mesh, multiplier: float, progress: float, steps: float) -> None:
        """The same among several processes, which do part of the work for each other."""
        dividing = [each for each in self.optimizers if isinstance(each, DividesWork)]
        work = [each.prepare(progress, steps) for each in dividing]
        division = Division(list(itertools.chain(*work)), mesh)
        for other in self.optimizers:  # while results are on their way
            if not isinstance(other, DividesWork):
                other.step(multiplier, progress, steps)
        results = iter(division.results())
        for each, own in zip(dividing, work, strict=True):
            each.apply(multiplier, progress, list(itertools.islice(results, len(own))))

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as named arrays; see :class:`.shared.GroupOptimizer`."""
        return {key: value for each in self.optimizers for key, value in each.state().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over the named arrays that :meth:`state` returned.

        Raises:
            CheckpointError: if something is missing.
        """
        for each in self.optimizers:
            each.restore(state)

    def groups(self) -> list[Group]:
        """Which rule updates how much of each role, to be shown before training."""
        return [
            Group(
                role,
                tuple(dict.fromkeys(m.weight.place for m in members)),
                rule,
                len(members),
                sum(m.weight.size for m in members),
            )
            for (role, rule), members in self.divided.items()
        ]


def _scaled(rule: Rule, times: float | None) -> Rule:
    return rule if times is None else dataclasses.replace(rule, rate=rule.rate * times)


def _members(model: Model) -> list[Member]:
    """Every parameter of the model once, with its place in the layout."""
    tensors = {w.name: w.tensor for w in weights(model)}
    layout_of = {weight.name: weight for weight in layout(model.spec)}
    held = {id(tensor) for tensor in tensors.values()}
    stray = [name for name, p in model.named_parameters() if id(p) not in held]
    if odd := stray or sorted(tensors.keys() ^ layout_of.keys()):
        raise TrainError(
            f"parameter {odd[0]!r} of the model has no rule: it lies outside the leaves, or "
            "segpt.config.layout does not name it"
        )
    if len(held) < len(tensors):
        raise TrainError("two leaves of the model share a parameter, which would learn twice")
    return [Member(layout_of[name], tensor) for name, tensor in tensors.items()]
