"""Muon and AdamW over groups of weights.

Muon orthogonalises the momentum of each matrix (Jordan 2024); matrices of one shape are stacked
and iterated together. Roles and places decide which rule applies; nothing reads a weight's name.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, assert_never

import torch
from torch import Tensor, nn

from segpt.config.layout import Place, Role, Weight, layout
from segpt.config.train import Adam, Muon, Neurons, Optimizer, Rule
from segpt.errors import CheckpointError, TrainError
from segpt.kernels import newton_schulz
from segpt.kernels.newton_schulz import Coefficients
from segpt.model.leaves import weights
from segpt.model.model import Model

from . import schedule

# Jordan's quintic: every step the same, singular values end in about [0.7, 1.2].
CLASSIC = (3.4445, -4.7750, 2.0315)
FIVE: Coefficients = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
SEVEN: Coefficients = (
    (7.2086, -15.5131, 9.0178),
    (3.9623, -2.5813, 0.4542),
    (3.9466, -2.5765, 0.4544),
    (3.8991, -2.5671, 0.4566),
    (3.7186, -2.5308, 0.4653),
    (3.1390, -2.3073, 0.4733),
    (2.1715, -1.5246, 0.3885),
)
# Polar Express (arXiv 2505.16932), a schedule of five steps for norms inflated by 2 percent.
POLAR: Coefficients = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)

_AXES: Mapping[str, tuple[int, ...]] = {"none": (), "row": (2,), "column": (1,), "both": (2, 1)}


def direction(spec: Muon, update: Tensor, *, both: bool = False) -> Tensor:
    """Equilibrate and orthogonalise a stack of updates (matrices, out, in), in its dtype.

    With ``both``, rows and columns are equilibrated whatever the spec says.
    """
    equilibrate = "both" if both else spec.equilibrate
    # Both norms are those of the update as it came.
    for norm in [update.norm(dim=d, keepdim=True).clamp_min(1e-7) for d in _AXES[equilibrate]]:
        update = update / norm
    tall = update.size(1) > update.size(2)
    x = update.mT if tall else update
    norm = x.norm(dim=(1, 2), keepdim=True)
    match spec.coefficients:
        case "classic":
            x = newton_schulz(x / (norm + 1e-7), (CLASSIC,) * spec.iterations)
        case "five":
            x = newton_schulz(x / (norm + 1e-7), FIVE[: spec.iterations])
        case "seven":
            x = newton_schulz(x / (norm + 1e-7), SEVEN)
        case "polar":
            x = newton_schulz(x / (1.02 * norm + 1e-6), POLAR[: spec.iterations])
    return x.mT if tall else x


def even_neurons(spec: Neurons, x: Tensor, seconds: Sequence[Tensor]) -> Tensor:
    """Divide what each neuron gets by the root of its second moment; norms of matrices stay.

    Args:
        spec: how fast moments follow.
        x: orthogonalised updates (matrices, out, in) in float32.
        seconds: the moments of each matrix, changed in place, see :func:`second_shape`.
    """
    axis = -1 if seconds[0].size(-1) == 1 else -2
    moments = torch.stack(list(seconds))
    moments.lerp_(x.square().mean(axis, keepdim=True), 1.0 - spec.beta2)
    torch._foreach_copy_(list(seconds), list(moments.unbind()))
    even = x * moments.clamp_min(1e-10).rsqrt()
    norm, changed = (t.norm(dim=(-2, -1), keepdim=True) for t in (x, even))
    return even * (norm / changed.clamp_min(1e-10))


def second_shape(spec: Neurons, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the second moments of a (..., out, in) matrix."""
    *stacked, rows, columns = shape
    if spec.axis == "row" or rows >= columns:
        return (*stacked, rows, 1)
    return (*stacked, 1, columns)


def shape_factor(spec: Muon, rows: int, columns: int) -> float:
    """What the update of an (out, in) = (rows, columns) matrix is multiplied by."""
    match spec.scale:
        case "spectral":
            return max(1.0, rows / columns) ** 0.5
        case "ratio":
            return (rows / columns) ** 0.5
        case "rms":
            return 0.2 * max(rows, columns) ** 0.5


class Matrices(NamedTuple):
    """Weights that Muon updates as one matrix, stacked by rows: one, or those that are joint.

    ``second`` holds the second moments of the whole, where the spec has them.
    """

    parameters: list[Tensor]
    momenta: list[Tensor]
    second: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        *stacked, _, columns = self.parameters[0].shape
        return (*stacked, sum(p.size(-2) for p in self.parameters), columns)


@torch.no_grad()
def muon_step(
    spec: Muon,
    many: Sequence[Matrices],
    rate: float,
    momentum: float,
    decay: float,
    *,
    both: bool = False,
) -> None:
    """Update matrices of one shape in place, from the ``grad`` of their parameters.

    With the momentum kept as a moving average M, M <- mu M + (1 - mu) G and, with Nesterov,
    U = mu M + (1 - mu) G; W <- (1 - decay) W - rate factor orthogonal(U). Decay never enters the
    momentum; a cautious one leaves out weights that the update moves away from zero. Iterations
    run in bfloat16 on CUDA and in float32 elsewhere.

    Args:
        spec: the rule.
        many: what is updated. A part of a joint matrix without a gradient has one of zero.
        rate: the learning rate.
        momentum: mu.
        decay: the part of a weight that decay takes away.
        both: whether rows and columns are equilibrated whatever the spec says.
    """
    parameters = [p for matrices in many for p in matrices.parameters]
    momenta = [m for matrices in many for m in matrices.momenta]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    torch._foreach_lerp_(momenta, grads, 1.0 - momentum)
    updates = torch._foreach_lerp(grads, momenta, momentum) if spec.nesterov else momenta
    rows = [p.size(-2) for p in many[0].parameters]
    width = len(rows)
    stack = torch.stack(
        [
            updates[i] if width == 1 else torch.cat(list(updates[i : i + width]), -2)
            for i in range(0, len(updates), width)
        ]
    )
    shape = stack.shape
    stack = (stack.bfloat16() if stack.is_cuda else stack).flatten(0, -3)
    step = direction(spec, stack, both=both).to(parameters[0].dtype).view(shape)
    seconds = [matrices.second for matrices in many if matrices.second is not None]
    if spec.neurons is not None:
        step = even_neurons(spec.neurons, step, seconds)
    steps = [part for whole in step.unbind() for part in torch.split(whole, rows, -2)]
    _shrink(parameters, steps, decay, cautious=spec.cautious)
    scaled = -rate * shape_factor(spec, *shape[-2:])
    torch._foreach_add_(parameters, steps, alpha=scaled)


def _shrink(
    parameters: list[Tensor], updates: Sequence[Tensor], decay: float, *, cautious: bool
) -> None:
    """Take the decay away, if cautious only where the update that is subtracted does so too."""
    if not cautious:
        torch._foreach_mul_(parameters, 1.0 - decay)
        return
    for parameter, update in zip(parameters, updates, strict=True):
        agrees = (update * parameter >= 0).to(parameter.dtype)
        parameter.addcmul_(parameter, agrees, value=-decay)


class Moments(NamedTuple):
    """What Adam remembers of a weight: moving averages of gradients and squares, and steps."""

    mean: Tensor
    square: Tensor
    steps: Tensor


@torch.no_grad()
def adam_step(
    spec: Adam, parameters: list[Tensor], moments: Sequence[Moments], rate: float, decay: float
) -> None:
    """Update weights in place from their ``grad``, in the order of operations of torch's AdamW.

    Args:
        spec: the rule.
        parameters: what is updated; each has a gradient.
        moments: what is remembered of each.
        rate: the learning rate.
        decay: the part of a weight that decay takes away.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    means, squares = [m.mean for m in moments], [m.square for m in moments]
    torch._foreach_add_([m.steps for m in moments], 1.0)
    counts = [float(m.steps) for m in moments]
    torch._foreach_lerp_(means, grads, 1.0 - spec.beta1)
    torch._foreach_mul_(squares, spec.beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1.0 - spec.beta2)
    _shrink(parameters, means, decay, cautious=spec.cautious)
    roots = list(torch._foreach_sqrt(squares))
    torch._foreach_div_(roots, [(1.0 - spec.beta2**count) ** 0.5 for count in counts])
    torch._foreach_add_(roots, spec.eps)
    scaled = [-(rate / (1.0 - spec.beta1**count)) for count in counts]
    torch._foreach_addcdiv_(parameters, means, roots, scaled)


class Member(NamedTuple):
    """A weight of the model, and its place in the layout."""

    where: Weight
    tensor: nn.Parameter


class Updates(Protocol):
    """How the weights of a group are updated, and what that needs to remember."""

    def step(self, multiplier: float, progress: float, steps: float) -> None:
        """Update every weight that has a gradient."""

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, by name."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state` returned."""


class MuonUpdates:
    """A group of matrices under Muon."""

    def __init__(self, rule: Muon, members: Sequence[Member]) -> None:
        self.rule = rule
        self.momenta = {m.where.name: torch.zeros_like(m.tensor) for m in members}
        self.seconds: dict[str, Tensor] = {}
        self.shapes: dict[tuple[int, ...], list[Matrices]] = defaultdict(list)
        for together in _joint(rule, members):
            name, tensors = together[0].where.name, [m.tensor.detach() for m in together]
            matrices = Matrices(
                [m.tensor for m in together], [self.momenta[m.where.name] for m in together]
            )
            if rule.neurons is not None:
                size = second_shape(rule.neurons, matrices.shape)
                self.seconds[name] = tensors[0].new_zeros(size)
                matrices = matrices._replace(second=self.seconds[name])
            rows = tuple(t.size(-2) for t in tensors)
            self.shapes[(*matrices.shape, *rows)].append(matrices)

    def step(self, multiplier: float, progress: float, steps: float) -> None:
        rule = self.rule
        for same_shape in self.shapes.values():
            learning = [m for m in same_shape if any(p.grad is not None for p in m.parameters)]
            if learning:
                muon_step(
                    rule,
                    learning,
                    rule.rate * multiplier,
                    schedule.momentum(rule, progress, steps),
                    schedule.decay(rule, multiplier, progress),
                    both=progress < rule.both_until,
                )

    def state(self) -> dict[str, Tensor]:
        momenta = {f"momentum|{name}": value for name, value in self.momenta.items()}
        return momenta | {f"second|{name}": value for name, value in self.seconds.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for key, tensor in self.state().items():
            tensor.copy_(_fitting(state, key, tensor))


class AdamUpdates:
    """A group of weights under AdamW. What has had no gradient yet remembers nothing."""

    def __init__(self, rule: Adam, members: Sequence[Member]) -> None:
        self.rule, self.members = rule, members
        self.moments: dict[str, Moments] = {}

    def step(self, multiplier: float, progress: float, steps: float) -> None:
        learning = [m for m in self.members if m.tensor.grad is not None]
        if not learning:
            return
        for where, tensor in learning:
            if where.name not in self.moments:
                zeros = torch.zeros_like(tensor)
                self.moments[where.name] = Moments(zeros, zeros.clone(), torch.zeros(()))
        adam_step(
            self.rule,
            [m.tensor for m in learning],
            [self.moments[m.where.name] for m in learning],
            self.rule.rate * multiplier,
            schedule.decay(self.rule, multiplier, progress),
        )

    def state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for name, moments in self.moments.items():
            state |= {f"{key}|{name}": value for key, value in zip(_ADAM, moments, strict=True)}
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.moments = {}
        for where, tensor in self.members:
            name = where.name
            if f"{_ADAM[0]}|{name}" in state:
                like = tensor.detach(), tensor.detach(), torch.zeros(())
                mean, square, steps = (
                    _fitting(state, f"{key}|{name}", model).clone()
                    for key, model in zip(_ADAM, like, strict=True)
                )
                device = tensor.device
                self.moments[name] = Moments(mean.to(device), square.to(device), steps)


def _fitting(state: Mapping[str, Tensor], key: str, like: Tensor) -> Tensor:
    """An entry of a state that has the shape and type of ``like``."""
    found = state.get(key)
    if found is None or found.shape != like.shape or found.dtype != like.dtype:
        raise CheckpointError(
            f"the optimizer state lacks {key!r} or has it in another shape or type; resume with "
            "the recipe that the run began with"
        )
    return found


_ADAM = ("adam.exp_avg", "adam.exp_avg_sq", "adam.step")  # how checkpoints name moments


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
        self, model: Model, spec: Optimizer, rates: Mapping[str, float] | None = None
    ) -> None:
        """Divide the weights into groups, each under one rule.

        Args:
            model: whose weights are updated.
            spec: the rules.
            rates: what the rates of weights are multiplied by, by name; 1 where it has none.

        Raises:
            TrainError: if an override covers nothing, a rule does not suit a weight, or the
                groups would not hold every parameter of the model exactly once.
        """
        members = _members(model)
        for i, override in enumerate(spec.overrides):
            if not any(override.covers(m.where) for m in members):
                raise TrainError(
                    f"optimizer.overrides[{i}] covers no weight of this model; correct its role, "
                    "place and part, or leave it out"
                )
        divided: dict[tuple[Role, Rule], list[Member]] = defaultdict(list)
        for role in Role:
            for member in members:
                if member.where.role is role:
                    rule = _scaled(spec.rule(member.where), (rates or {}).get(member.where.name))
                    divided[role, rule].append(member)
        self.divided = dict(divided)
        self.updates = [_updates(rule, found) for (_, rule), found in divided.items()]

    def step(self, multiplier: float, progress: float, steps: float) -> None:
        """Update every weight that has a gradient.

        Args:
            multiplier: of each rule's rate.
            progress: the fraction of the run that is done.
            steps: the number of steps that are done; halves are fine.
        """
        for updates in self.updates:
            updates.step(multiplier, progress, steps)

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, by name."""
        return {key: value for updates in self.updates for key, value in updates.state().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state` returned.

        Raises:
            CheckpointError: if something is missing.
        """
        for updates in self.updates:
            updates.restore(state)

    def groups(self) -> list[Group]:
        """Which rule updates how much of each role, to be shown before training."""
        return [
            Group(
                role,
                tuple(dict.fromkeys(m.where.place for m in found)),
                rule,
                len(found),
                sum(m.where.size for m in found),
            )
            for (role, rule), found in self.divided.items()
        ]


def _updates(rule: Rule, members: Sequence[Member]) -> Updates:
    match rule:
        case Muon():
            if flat := [m.where.name for m in members if m.tensor.dim() < 2]:
                raise TrainError(f"Muon is for matrices and {flat[0]!r} is none; give it Adam")
            return MuonUpdates(rule, members)
        case Adam():
            return AdamUpdates(rule, members)
        case _:
            assert_never(rule)


def _scaled(rule: Rule, times: float | None) -> Rule:
    return rule if times is None else dataclasses.replace(rule, rate=rule.rate * times)


def _members(model: Model) -> list[Member]:
    """Every parameter of the model once, with its place in the layout."""
    found = {w.name: w.tensor for w in weights(model)}
    places = {where.name: where for where in layout(model.spec)}
    held = {id(tensor) for tensor in found.values()}
    stray = [name for name, p in model.named_parameters() if id(p) not in held]
    if odd := stray or sorted(found.keys() ^ places.keys()):
        raise TrainError(
            f"parameter {odd[0]!r} of the model has no rule: it lies outside the leaves, or "
            "segpt.config.layout does not name it"
        )
    if len(held) < len(found):
        raise TrainError("two leaves of the model share a parameter, which would learn twice")
    return [Member(places[name], tensor) for name, tensor in found.items()]


def _joint(rule: Muon, members: Sequence[Member]) -> list[list[Member]]:
    """Members that are updated as one matrix, in the order of ``rule.joint``."""
    together: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        joins = member.where.part in rule.joint and member.where.place is Place.MIXER
        together[member.where.owner if joins else member.where.name].append(member)
    order: dict[str, int] = {part: i for i, part in enumerate(rule.joint)}
    return [sorted(found, key=lambda m: order.get(m.where.part, 0)) for found in together.values()]
