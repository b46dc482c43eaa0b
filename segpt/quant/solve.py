"""Steps for a whole model: as fine as its bytes allow, and coded part by part.

The table comes first, then layer by layer, then the head. After each part the weights that are
still float are tuned to what is coded, so that the errors of one part are made up for by the next.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt.config.layout import Place, layout
from segpt.config.quant import QuantSpec
from segpt.errors import CheckError, CheckpointError
from segpt.model.model import Model
from segpt.model.params import Weight, weights
from segpt.restoring import same_kind
from segpt.values import Float16Weight, QuantizedWeight, QuantizeProgress, TrellisWeight

from .design import Design, all_to_stepped, entropy, scale_for, to_stepped
from .tune import divergence, tune

Batch = NDArray[np.int64] | Tensor
Size = Callable[[Mapping[str, QuantizedWeight]], int]  # bytes of the packed file

DEFAULT_RATE = 3.5  # bits per weight
SEARCH_BATCHES = 4
_NUDGE = 2**0.25  # by which the search changes the steps of one kind of weight
_WORTH = 0.998  # of the loss: what a change must get it below
_AIM = 0.9985  # of the budget; a landing between _SHORT and 1 will do
_SHORT = 0.9965
_HOPELESS = 1.1  # of the budget: coding part by part does not come down from there
_ROUNDS = 6
_LANDINGS = 12
_TAIL = 0.01  # of the weights: what the last part has at least


def parts(model: Model, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The names of the weights that are coded together, in the order in which they are."""
    table: list[str] = []
    head: list[str] = []
    layers: list[list[str]] = [[] for _ in model.spec.layers]
    for weight in layout(model.spec):
        if weight.name in names:
            apart = head if weight.place is Place.HEAD else table
            (apart if weight.layer is None else layers[weight.layer]).append(weight.name)
    found = [part for part in (table, *layers, head) if part]
    sizes = {w.name: w.size for w in layout(model.spec)}
    # The last part is coded again to land on the budget: it has to be able to move the total.
    while len(found) > 1 and sum(map(sizes.__getitem__, found[-1])) < _TAIL * sum(
        map(sizes.__getitem__, names)
    ):
        last = found.pop()
        found[-1] = found[-1] + last
    return tuple(map(tuple, found))


class Solver:
    """Codes a model at a rate or within a budget; everything in it is deterministic."""

    def __init__(
        self,
        teacher: Model,
        spec: QuantSpec,
        plans: Mapping[str, Design],
        batches: Callable[[int], Batch],
        size: Size,
        report: Callable[[str, int, int], None] = lambda *_: None,
    ) -> None:
        """Prepare to code the weights that have a plan; the others become float16.

        Args:
            teacher: the float model.
            spec: the method, and the budget or rate.
            plans: of :func:`segpt.quant.design.design`, by name.
            batches: batch i of training text for every i >= 0, (batch, time) token ids each.
            size: what a model takes when packed.
            report: told a task, how much of it is done and how much there is.
        """
        self.teacher, self.spec, self.plans = teacher, spec, dict(plans)
        self.batches, self.size, self.report = batches, size, report
        self.states = spec.states if spec.method == "trellis" else 1
        self.penalty = spec.penalty if spec.method == "rd" else 0.0
        self.count = sum(w.tensor.numel() for w in weights(teacher) if w.name in plans)
        self.parts = parts(teacher, [w.name for w in weights(teacher) if w.name in plans])
        rate = DEFAULT_RATE if spec.rate is None else spec.rate
        self.goal = rate * self.count / 8 if spec.budget is None else _AIM * spec.budget

    def run(
        self,
        before: QuantizeProgress | None = None,
        save: Callable[[QuantizeProgress], None] = lambda _: None,
    ) -> dict[str, QuantizedWeight]:
        """Code every weight, going on from ``before``; ``save`` is given the state after each part.

        After the last part there is nothing to save: it is what lands within the budget.

        Raises:
            CheckError: if no steps are coarse enough for the budget.
        """
        if not self.plans:
            return self._halves_alone()
        student = copy.deepcopy(self.teacher).requires_grad_(False)
        fitted: Mapping[str, QuantizedWeight] = {}
        if before is not None and before.scale:
            state = before
            self._check_fits(state)
        else:
            state, fitted = self._begin()
            if self.spec.tune_steps or state.multipliers:
                fitted = {}  # weights that are tuned to the parts before them are coded again
        self.plans = {
            name: plan.scaled(state.multipliers.get(kind(name), 1.0))
            for name, plan in self.plans.items()
        }
        tensors = {w.name: w.tensor for w in weights(student)}
        with torch.no_grad():
            for name, value in state.weights.items():
                tensors[name].copy_(torch.from_numpy(np.array(value)))
        coded, scale, drift = dict(state.coded), state.scale, state.drift
        left = sum(self._weights(part) for part in self.parts[state.done :])
        latent: dict[str, Tensor] = {}
        for i in range(state.done, len(self.parts)):
            part = self.parts[i]
            # What earlier parts took beyond their plan, the others make up for.
            scale = state.scale * 2 ** float(np.clip(drift / left, -3, 3))
            latent = {name: tensors[name].detach().clone() for name in part}
            for name in part:
                if name in fitted:
                    coded[name] = fitted[name]
                    self._load({name: fitted[name]}, tensors)
                else:
                    self._code(name, latent[name], scale, coded, tensors)
            drift += _entropy(coded, part) - state.planned[i]
            left -= self._weights(part)
            self._tune(student, coded, i)
            if part is not self.parts[-1]:
                now = {name: tensor.cpu().numpy().copy() for name, tensor in tensors.items()}
                save(replace(state, done=i + 1, weights=now, coded=dict(coded), drift=drift))
            self.report("round", i + 1, len(self.parts))
        coded |= self._halves(student)
        if self.spec.budget is not None:
            self._land(coded, latent, scale, tensors)
        return {weight.name: coded[weight.name] for weight in weights(self.teacher)}

    def _check_fits(self, state: QuantizeProgress) -> None:
        """Refuse a state of another model, or one that no call has left."""
        held = {w.name: w.tensor for w in weights(self.teacher)}
        shapes = {name: tuple(tensor.shape) for name, tensor in held.items()}
        done = [name for part in self.parts[: max(0, state.done)] for name in part]
        numbers = [state.scale, state.drift, *state.planned, *state.multipliers.values()]
        fits = (
            0 <= state.done < max(1, len(self.parts))
            and len(state.planned) == len(self.parts)
            and all(math.isfinite(number) for number in numbers)
            and min([state.scale, *state.multipliers.values()]) > 0
            and state.coded.keys() == set(done)
            and all(state.coded[name].shape == shapes[name] for name in done)
            and (not state.weights or state.weights.keys() == shapes.keys())
        )
        if not fits:
            raise CheckpointError(
                "the unfinished quantization does not fit the model or the settings; begin anew "
                "without --resume"
            )
        tensors = {name: held[name].detach().cpu().numpy() for name in state.weights}
        same_kind("the unfinished quantization", state.weights, tensors)

    def _begin(self) -> tuple[QuantizeProgress, Mapping[str, QuantizedWeight]]:
        """The scale that meets the goal without tuning, the bits of each part at it, and codes."""
        coded, scale = self._fit({})
        multipliers: dict[str, float] = {}
        for _ in range(self.spec.search):
            multipliers, coded = self._search(multipliers, coded, scale)
        if multipliers:
            coded, scale = self._fit(multipliers, scale)
        planned = tuple(_entropy(coded, part) for part in self.parts)
        return QuantizeProgress(scale=scale, multipliers=multipliers, planned=planned), coded

    def _fit(
        self, multipliers: Mapping[str, float], scale: float | None = None
    ) -> tuple[dict[str, QuantizedWeight], float]:
        """Find the scale by which the whole model, untuned, comes to the goal."""
        if scale is None:
            scale = scale_for(self.teacher, self.plans, min(8.0, 8 * self.goal / self.count))
        seen: list[tuple[float, float]] = []  # log2 of scales, bytes
        for turn in range(_ROUNDS):
            coded = self._code_all(scale, multipliers)
            got = self._measure(coded)
            if not multipliers:
                self.report("fit", turn + 1, _ROUNDS)
            if abs(got / self.goal - 1) < 0.002 or turn == _ROUNDS - 1:
                break
            seen.append((float(np.log2(scale)), got))
            slope = -self.count / 8  # bytes per octave, at high rate
            if len(seen) > 1 and seen[-1][0] != seen[-2][0]:
                secant = (seen[-1][1] - seen[-2][1]) / (seen[-1][0] - seen[-2][0])
                slope = min(secant, slope / 8)
            change = (self.goal - got) / slope
            scale *= 2 ** float(np.clip(change, -3, 3))
        if self.spec.budget is not None and got > _HOPELESS * self.spec.budget:
            raise self._over(got)
        return coded, scale

    def _search(
        self, multipliers: Mapping[str, float], coded: dict[str, QuantizedWeight], scale: float
    ) -> tuple[dict[str, float], dict[str, QuantizedWeight]]:
        """Change the steps of one kind of weight after another while that lowers the loss.

        The loss is KL on training text, at equal bytes: KL falls by 2^2 per bit of every weight.
        """
        best_by = dict(multipliers)
        model = copy.deepcopy(self.teacher).requires_grad_(False)
        tensors = {w.name: w.tensor for w in weights(model)}
        base = _entropy(coded, self.plans)

        def loss(candidate: Mapping[str, QuantizedWeight]) -> float:
            self._load(candidate, tensors)
            bits = _entropy(candidate, self.plans) - base
            with torch.no_grad():
                terms = [
                    float(divergence(self.teacher, model, self.batches(i)))
                    for i in range(SEARCH_BATCHES)
                ]
            return float(np.mean(terms)) * 2 ** (2 * bits / self.count)

        best = loss(coded)
        kinds = sorted({kind(name) for name in self.plans})
        for number, which in enumerate(kinds):
            names = [name for name in self.plans if kind(name) == which]
            for nudge in (_NUDGE, 1 / _NUDGE):
                while True:
                    multiplier = best_by.get(which, 1.0) * nudge
                    changed = self._code_some(dict.fromkeys(names, scale * multiplier))
                    value = loss(coded | changed)
                    if value > _WORTH * best or not 0.2 < multiplier < 5:
                        break
                    best, coded = value, coded | changed
                    best_by[which] = multiplier
                if best_by.get(which, 1.0) != multipliers.get(which, 1.0):
                    break
            self.report("search", number + 1, len(kinds))
        return best_by, coded

    def _code_all(
        self, scale: float, multipliers: Mapping[str, float]
    ) -> dict[str, QuantizedWeight]:
        scales = {name: scale * multipliers.get(kind(name), 1.0) for name in self.plans}
        coded = self._halves(self.teacher) | self._code_some(scales)
        return {weight.name: coded[weight.name] for weight in weights(self.teacher)}

    def _code_some(self, scales: Mapping[str, float]) -> dict[str, QuantizedWeight]:
        """The weights that are named, each at its scale."""
        tensors = {w.name: w.tensor.detach() for w in weights(self.teacher)}
        items = [(tensors[name], self.plans[name], scale) for name, scale in scales.items()]
        return dict(zip(scales, all_to_stepped(items, self.states, self.penalty), strict=True))

    def _code(
        self,
        name: str,
        value: Tensor,
        scale: float,
        coded: dict[str, QuantizedWeight],
        tensors: Mapping[str, Tensor],
    ) -> None:
        coded[name] = to_stepped(value, self.plans[name], scale, self.states, self.penalty)
        self._load({name: coded[name]}, tensors)

    @staticmethod
    @torch.no_grad()
    def _load(coded: Mapping[str, QuantizedWeight], tensors: Mapping[str, Tensor]) -> None:
        for name, value in coded.items():
            tensors[name].copy_(torch.from_numpy(value.decoded()))

    def _tune(self, student: Model, coded: Mapping[str, QuantizedWeight], number: int) -> None:
        count = self.spec.tune_steps
        batches = [self.batches(SEARCH_BATCHES + number * count + i) for i in range(count)]
        total = count * len(self.parts)
        tune(
            student,
            self.teacher,
            coded.keys(),
            batches,
            self.spec.tune_rate,
            lambda done: self.report("tune", number * count + done, total),
        )

    def _halves(self, model: Model) -> dict[str, QuantizedWeight]:
        return {w.name: _half(w) for w in weights(model) if w.name not in self.plans}

    def _halves_alone(self) -> dict[str, QuantizedWeight]:
        coded = self._halves(self.teacher)
        if self.spec.budget is not None and (got := self.size(coded)) > self.spec.budget:
            raise self._over(got)
        return coded

    def _measure(self, coded: Mapping[str, QuantizedWeight]) -> float:
        if self.spec.budget is not None:
            return self.size(coded)
        return _entropy(coded, self.plans) / 8

    def _over(self, got: float) -> CheckError:
        budget = self.spec.budget or 0
        return CheckError(
            f"the model takes {got:,} bytes even in the coarsest steps tried, "
            f"{got - budget:,} over the budget of {budget:,}; give more bytes, or train a "
            "smaller model"
        )

    def _weights(self, part: Sequence[str]) -> int:
        return sum(w.tensor.numel() for w in weights(self.teacher) if w.name in part)

    def _land(
        self,
        coded: dict[str, QuantizedWeight],
        latent: Mapping[str, Tensor],
        scale: float,
        tensors: Mapping[str, Tensor],
    ) -> None:
        """Code the last part anew until the packed file is just below the budget."""
        budget = self.spec.budget or 0
        part = self.parts[-1]
        count = self._weights(part)
        got, aim, finest = self.size(coded), self.goal, False
        best, below = 0, {}  # the largest that fits, should the steps swing around the budget
        push = 1  # doubled while the file is too large and stays as it is
        for _ in range(_LANDINGS):
            if got <= budget and (got >= _SHORT * budget or finest):
                return
            if best < got <= budget:
                best, below = got, {name: coded[name] for name in part}
            change = float(np.clip(push * 8 * (got - aim) / count, -3, 3))
            scale *= 2**change
            before = got
            for name in part:
                self._code(name, latent[name], scale, coded, tensors)
            got = self.size(coded)
            push = 2 * push if got == before > budget else 1
            finest = change < 0 and abs(got - before) < 0.001 * budget
        if got > budget and not below:
            raise self._over(got)
        if got > budget:
            coded |= below
            self._load(below, tensors)


def kind(name: str) -> str:
    """What a weight is in its layer: ``query``, ``up``, ``table``, ``value_tables``, ..."""
    return next(word for word in reversed(name.split(".")) if not word.isdigit())


def _entropy(coded: Mapping[str, QuantizedWeight], names: Iterable[str]) -> float:
    return sum(entropy(w) for name in names if isinstance(w := coded[name], TrellisWeight))


def _half(weight: Weight) -> Float16Weight:
    return Float16Weight(weight.tensor.detach().half().cpu().numpy())
