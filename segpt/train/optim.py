"""Muon and AdamW by role.

Muon orthogonalises the momentum of each matrix (Jordan 2024); matrices of one shape are stacked
and iterated together. Roles decide which rule applies; nothing reads a parameter's name.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from segpt.kernels import orthogonalise
from segpt.model.leaves import Weight, weights
from segpt.model.model import Model
from segpt.spec.layout import Role
from segpt.spec.train import Adam, Muon, Optimizer

from . import schedule

# Jordan's quintic: every step the same, singular values end in about [0.7, 1.2].
CLASSIC = (3.4445, -4.7750, 2.0315)
# Polar Express (arXiv 2505.16932), a schedule of five steps for norms inflated by 2 percent.
POLAR = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def direction(spec: Muon, update: Tensor) -> Tensor:
    """Equilibrate and orthogonalise a stack of updates (matrices, out, in), in its dtype."""
    if spec.equilibrate in ("row", "both"):
        update = update / update.norm(dim=2, keepdim=True).clamp_min(1e-7)
    if spec.equilibrate in ("column", "both"):
        update = update / update.norm(dim=1, keepdim=True).clamp_min(1e-7)
    tall = update.size(1) > update.size(2)
    x = update.mT if tall else update
    norm = x.norm(dim=(1, 2), keepdim=True)
    if spec.coefficients == "polar":
        x = orthogonalise(x / (1.02 * norm + 1e-6), POLAR[: spec.iterations])
    else:
        x = orthogonalise(x / (norm + 1e-7), (CLASSIC,) * spec.iterations)
    return x.mT if tall else x


def shape_factor(spec: Muon, rows: int, columns: int) -> float:
    """What the update of an (out, in) = (rows, columns) matrix is multiplied by."""
    if spec.scale == "spectral":
        return max(1.0, rows / columns) ** 0.5
    return 0.2 * max(rows, columns) ** 0.5


@torch.no_grad()
def muon_step(
    spec: Muon, parameters: list[Tensor], momenta: list[Tensor], rate: float, momentum: float
) -> None:
    """Update matrices of one shape in place, from their ``grad``.

    With the momentum kept as a moving average M, M <- mu M + (1 - mu) G and, with Nesterov,
    U = mu M + (1 - mu) G; W <- (1 - rate decay) W - rate factor orthogonal(U). Decay never
    enters the momentum. Iterations run in bfloat16 on CUDA and in float32 elsewhere.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    torch._foreach_lerp_(momenta, grads, 1.0 - momentum)
    updates = torch._foreach_lerp(grads, momenta, momentum) if spec.nesterov else momenta
    stack = torch.stack(list(updates))
    stack = stack.bfloat16() if stack.is_cuda else stack
    step = direction(spec, stack).to(parameters[0].dtype)
    scaled = -rate * shape_factor(spec, *parameters[0].shape)
    torch._foreach_mul_(parameters, 1.0 - rate * spec.decay)
    torch._foreach_add_(parameters, list(step.unbind()), alpha=scaled)


class Group(NamedTuple):
    """The weights of one role and the rule that updates them."""

    role: Role
    rule: Muon | Adam
    tensors: int
    parameters: int

    def __str__(self) -> str:
        return (
            f"{self.role.value}: {self.parameters:,} weights in {self.tensors} tensors, "
            f"{type(self.rule).__name__}, rate {self.rule.rate:g}, decay {self.rule.decay:g}"
        )


class Optimizers:
    """The rules of all roles over one model, with their state by weight name."""

    def __init__(self, model: Model, spec: Optimizer) -> None:
        self.rules: dict[Role, Muon | Adam] = {
            Role.MATRIX: spec.matrix,
            Role.TABLE: spec.table,
            Role.HEAD: spec.head,
            Role.VECTOR: spec.vector,
        }
        self.momenta: dict[str, Tensor] = {}
        self.shapes: dict[tuple[int, ...], list[Weight]] = defaultdict(list)
        self.adams: list[tuple[torch.optim.AdamW, Adam, list[Weight]]] = []
        for role, rule in self.rules.items():
            members = [w for w in weights(model) if w.role is role]
            if isinstance(rule, Muon):
                for weight in members:
                    self.momenta[weight.name] = torch.zeros_like(weight.tensor)
                    self.shapes[tuple(weight.tensor.shape)].append(weight)
            elif members:
                adam = torch.optim.AdamW(
                    [w.tensor for w in members],
                    lr=rule.rate,
                    betas=(rule.beta1, rule.beta2),
                    eps=rule.eps,
                    weight_decay=rule.decay,
                )
                self.adams.append((adam, rule, members))

    def step(self, multiplier: float, progress: float) -> None:
        """Update every weight from its gradient at ``multiplier`` times the rule's rate."""
        for same_shape in self.shapes.values():
            members = [w for w in same_shape if w.tensor.grad is not None]
            if not members:
                continue
            spec = self.rules[members[0].role]
            assert isinstance(spec, Muon)
            muon_step(
                spec,
                [w.tensor for w in members],
                [self.momenta[w.name] for w in members],
                spec.rate * multiplier,
                schedule.momentum(spec, progress),
            )
        for adam, rule, _ in self.adams:
            adam.param_groups[0]["lr"] = rule.rate * multiplier
            adam.step()

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, by name."""
        state = {f"momentum|{name}": value for name, value in self.momenta.items()}
        for adam, _, members in self.adams:
            for weight in members:
                for key, value in adam.state.get(weight.tensor, {}).items():
                    state[f"adam.{key}|{weight.name}"] = value
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state` returned."""
        for name, momentum in self.momenta.items():
            momentum.copy_(state[f"momentum|{name}"])
        for adam, _, members in self.adams:
            for weight in members:
                found = dict(_entries(state, weight.name))
                if found:
                    adam.state[weight.tensor] = {
                        key: value.clone().to("cpu" if key == "step" else weight.tensor.device)
                        for key, value in found.items()
                    }

    def groups(self) -> list[Group]:
        """Which rule updates how much of each role, to be shown before training."""
        tensors: dict[Role, list[Tensor]] = defaultdict(list)
        for members in [m for _, _, m in self.adams] + list(self.shapes.values()):
            for weight in members:
                tensors[weight.role].append(weight.tensor)
        return [
            Group(role, self.rules[role], len(found), sum(t.numel() for t in found))
            for role, found in tensors.items()
        ]


def _entries(state: Mapping[str, Tensor], name: str) -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        if key.startswith("adam.") and key.endswith(f"|{name}"):
            yield key[len("adam.") : -len(name) - 1], value
