"""Steps for a whole model: as fine as its bytes allow, and coded part by part.

One number, the *scale*, widens the steps of all weights alike. The goal is bytes::

    fit      find the scale at which the whole model, untuned, takes the goal
    search   try other steps for one kind of weight after another; then fit again
    code     table, layer 0, layer 1, ..., head; after each, what is still float is tuned to it
    land     code the last part again, until the packed file is just below the budget

The table comes first, then layer by layer, then the head. After each part the weights that are
still float are tuned to what is coded, so that the errors of one part are made up for by the next.

All four move along one line. A weight whose step is wider by a factor of 2, an octave, takes one
bit less, as long as steps are fine; so n weights are n / 8 bytes an octave.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt.config.quant import QuantSpec
from segpt.errors import CheckError, CheckpointError
from segpt.model.model import Model
from segpt.model.params import Weight, weights
from segpt.restoring import same_kind
from segpt.values import Float16Weight, QuantizedWeight, QuantizeProgress, TrellisWeight

from .design import Design, scale_for
from .parts import kind, parts
from .stepped import all_to_stepped, entropy, to_stepped
from .tune import Student, divergence, tune

Batch = NDArray[np.int64] | Tensor
Size = Callable[[Mapping[str, QuantizedWeight]], int]  # bytes of the packed file

DEFAULT_RATE = 3.5  # bits per weight
SEARCH_BATCHES = 4
_FARTHEST = 3.0  # octaves: the most that a scale moves at once

_CLOSE = 0.002  # of the goal: how near a fit has to come
_ROUNDS = 6  # of a fit, each of which codes the whole model
_HOPELESS = 1.1  # of the budget: coding part by part does not come down from there

_NUDGE = 2**0.25  # by which the search changes the steps of one kind of weight
_LEAST, _MOST = 0.2, 5.0  # between which it keeps what it multiplies them by
_WORTH = 0.998  # of the loss: what a change must get it below

_AIM = 0.9985  # of the budget; a landing between _SHORT and 1 will do
_SHORT = 0.9965
_STUCK = 0.001  # of the budget: a file that finer steps change by less is as good as it gets
_LANDINGS = 12


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
            size: the bytes that a model takes when packed.
            report: told a task, how much of it is done and how much there is.
        """
        self.teacher, self.spec, self.plans = teacher, spec, plans
        self.batches, self.size, self.report = batches, size, report
        self.states = spec.states if spec.method == "trellis" else 1
        self.penalty = spec.penalty if spec.method == "rd" else 0.0
        self.count = sum(w.tensor.numel() for w in weights(teacher) if w.name in plans)
        self.parts = parts(teacher, [w.name for w in weights(teacher) if w.name in plans])
        rate = DEFAULT_RATE if spec.rate is None else spec.rate
        self.goal = rate * self.count / 8 if spec.budget is None else _AIM * spec.budget  # bytes

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
        if before is not None and before.scale:
            self._check_fits(before)
            state, untuned = before, None
        else:
            state, untuned = self._begin()
        plans = {
            name: plan.scaled(state.multipliers.get(kind(name), 1.0))
            for name, plan in self.plans.items()
        }
        student = Student(self.teacher)
        student.restore(state.weights)
        coded, drift, scale = dict(state.coded), state.drift, state.scale
        left = sum(self._weights(part) for part in self.parts[state.done :])
        latent: dict[str, Tensor] = {}
        for i in range(state.done, len(self.parts)):
            part = self.parts[i]
            # What earlier parts took beyond their plan, the others make up for: bits per weight
            # that is left, which are octaves.
            scale = state.scale * _octaves(drift / left)
            latent = student.clones(part)
            codes = untuned or self._code(latent, plans, scale)
            coded |= {name: codes[name] for name in part}
            student.load({name: coded[name] for name in part})
            drift += _entropy(coded, part) - state.planned[i]
            left -= self._weights(part)
            self._tune(student.model, coded, i)
            if part is not self.parts[-1]:
                now = student.arrays()
                save(replace(state, done=i + 1, weights=now, coded=dict(coded), drift=drift))
            self.report("round", i + 1, len(self.parts))
        coded |= self._halves(student.model)
        if self.spec.budget is not None:
            coded |= self._land(coded, latent, plans, scale)
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

    def _begin(self) -> tuple[QuantizeProgress, Mapping[str, QuantizedWeight] | None]:
        """The scale that meets the goal without tuning, and the bits of each part at it.

        Returns:
            The state before the first part; and the codes of all weights, or None where they are
            coded anew, because they are tuned before that or have other steps by then.
        """
        coded, scale = self._fit({})
        multipliers: dict[str, float] = {}
        for _ in range(self.spec.search):
            multipliers, coded = self._search(multipliers, coded, scale)
        if multipliers:
            coded, scale = self._fit(multipliers, scale)
        planned = tuple(_entropy(coded, part) for part in self.parts)
        state = QuantizeProgress(scale=scale, multipliers=multipliers, planned=planned)
        return state, None if self.spec.tune_steps or multipliers else coded

    def _fit(
        self, multipliers: Mapping[str, float], scale: float | None = None
    ) -> tuple[dict[str, QuantizedWeight], float]:
        """The whole model, untuned, at the scale by which it comes to the goal; and that scale.

        Newton's method for bytes(log2 scale) = goal. The first slope is that of fine steps, minus
        one bit per weight and octave; then it is the secant of the last two turns. Where steps
        are so coarse that most codes are 0 the bytes hardly move, and the secant would leap, so
        that it counts for at least an eighth of the first slope.
        """
        if scale is None:
            scale = scale_for(self.teacher, self.plans, min(8.0, 8 * self.goal / self.count))
        fine = -self.count / 8  # bytes per octave
        previous: tuple[float, float] | None = None  # log2 of the scale a turn ago, and the bytes
        coded: dict[str, QuantizedWeight] = {}
        is_finest = False  # codes that an octave does not change are those of all smaller scales
        for turn in range(_ROUNDS):
            if not is_finest:
                before, coded = coded, self._code_all(scale, multipliers)
                size = self._measure(coded)
                an_octave = previous is not None and np.log2(scale) <= previous[0] - 1
                is_finest = an_octave and before == coded
            if not multipliers:
                self.report("fit", turn + 1, _ROUNDS)
            if abs(size / self.goal - 1) < _CLOSE or turn == _ROUNDS - 1:
                break
            place, slope = float(np.log2(scale)), fine
            if previous is not None and place != previous[0]:
                secant = (size - previous[1]) / (place - previous[0])
                slope = min(secant, fine / 8)  # both fall: the steeper one
            previous = place, size
            scale *= _octaves((self.goal - size) / slope)
        if self.spec.budget is not None and size > _HOPELESS * self.spec.budget:
            raise self._over(size)
        return coded, scale

    def _search(
        self, multipliers: Mapping[str, float], coded: dict[str, QuantizedWeight], scale: float
    ) -> tuple[dict[str, float], dict[str, QuantizedWeight]]:
        """Change the steps of one kind of weight after another while that lowers the loss.

        Of each kind wider steps are tried first; if they do not pay, finer ones.

        Returns:
            What the steps of each kind are multiplied by, and the codes of all weights.
        """
        loss = self._loss_at_equal_bytes(coded)
        best, chosen = loss(coded), dict(multipliers)
        kinds = sorted({kind(name) for name in self.plans})
        for number, which in enumerate(kinds):
            names = [name for name in self.plans if kind(name) == which]
            for nudge in (_NUDGE, 1 / _NUDGE):
                pays = False
                while _LEAST < (multiplier := chosen.get(which, 1.0) * nudge) < _MOST:
                    changed = self._code_some(dict.fromkeys(names, scale * multiplier))
                    value = loss(coded | changed)
                    if value > _WORTH * best:
                        break
                    best, coded, pays = value, coded | changed, True
                    chosen[which] = multiplier
                if pays:
                    break
            self.report("search", number + 1, len(kinds))
        return chosen, coded

    def _loss_at_equal_bytes(
        self, reference: Mapping[str, QuantizedWeight]
    ) -> Callable[[Mapping[str, QuantizedWeight]], float]:
        """KL on training text, as it would be in the bits of ``reference``.

        Errors shrink by 2 per bit of every weight, and KL by their square: codes of b bits more
        per weight count for 4^b times their KL.
        """
        student, base = Student(self.teacher), _entropy(reference, self.plans)

        def loss(candidate: Mapping[str, QuantizedWeight]) -> float:
            student.load(candidate)
            bits = _entropy(candidate, self.plans) - base
            with torch.no_grad():
                terms = [
                    float(divergence(self.teacher, student.model, self.batches(i)))
                    for i in range(SEARCH_BATCHES)
                ]
            return float(np.mean(terms)) * 2 ** (2 * bits / self.count)

        return loss

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
        self, latent: Mapping[str, Tensor], plans: Mapping[str, Design], scale: float
    ) -> dict[str, QuantizedWeight]:
        """Tuned weights, each by its plan, all at one scale."""
        return {
            name: to_stepped(value, plans[name], scale, self.states, self.penalty)
            for name, value in latent.items()
        }

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
        if self.spec.budget is not None and (size := self.size(coded)) > self.spec.budget:
            raise self._over(size)
        return coded

    def _measure(self, coded: Mapping[str, QuantizedWeight]) -> float:
        """Bytes: of the packed file where there is a budget, otherwise of the codes alone."""
        if self.spec.budget is not None:
            return self.size(coded)
        return _entropy(coded, self.plans) / 8

    def _over(self, size: float) -> CheckError:
        budget = self.spec.budget or 0
        return CheckError(
            f"the model takes {size:,} bytes even in the coarsest steps tried, "
            f"{size - budget:,} over the budget of {budget:,}; give more bytes, or train a "
            "smaller model"
        )

    def _weights(self, part: Sequence[str]) -> int:
        return sum(w.tensor.numel() for w in weights(self.teacher) if w.name in part)

    def _land(
        self,
        coded: Mapping[str, QuantizedWeight],
        latent: Mapping[str, Tensor],
        plans: Mapping[str, Design],
        scale: float,
    ) -> dict[str, QuantizedWeight]:
        """The last part, coded anew until the packed file is just below the budget.

        The goal is to hit ``_AIM``; what fits well enough ends the search::

                    _SHORT        _AIM        budget
            ----------|=============|===========|----------> bytes of the file
             to finer |       good enough       | to coarser steps

        Args:
            coded: every weight, the last part in steps of ``scale``.
            latent: the weights of the last part before they were coded.
            plans: what to code them by.
            scale: what their steps are multiplied by.

        Raises:
            CheckError: if no steps are coarse enough.
        """
        budget = self.spec.budget or 0
        count = self._weights(self.parts[-1])
        last = {name: coded[name] for name in self.parts[-1]}
        size = self.size(coded)
        largest, fits = 0, {}  # what fits best, should the steps swing around the budget
        push = 1  # doubled while the file is too large and stays as it is
        stuck = False  # finer steps change next to nothing
        for _ in range(_LANDINGS):
            if size <= budget and (size >= _SHORT * budget or stuck):
                break
            if largest < size <= budget:
                largest, fits = size, last
            change = push * 8 * (size - self.goal) / count
            scale *= _octaves(change)
            last = self._code(latent, plans, scale)
            previous, size = size, self.size({**coded, **last})
            push = 2 * push if size == previous > budget else 1
            stuck = change < 0 and abs(size - previous) < _STUCK * budget
        if size > budget and not fits:
            raise self._over(size)
        return fits if size > budget else last


def _octaves(change: float) -> float:
    """What a scale is multiplied by to move it by so many octaves, within reason."""
    return float(2 ** float(np.clip(change, -_FARTHEST, _FARTHEST)))


def _entropy(coded: Mapping[str, QuantizedWeight], names: Iterable[str]) -> float:
    return sum(entropy(w) for name in names if isinstance(w := coded[name], TrellisWeight))


def _half(weight: Weight) -> Float16Weight:
    return Float16Weight(weight.tensor.detach().half().cpu().numpy())
