"""Candidate tiles of every kernel, timed on the device: is the first still the fastest?"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.kernel_cases import Case, cases
from segpt.kernels.launch import Argument, Launch
from segpt.kernels.tiles import compiled_for

from .plan import Plan, Row
from .timing import alone

_MOST = 8  # candidates of a kernel
_ENOUGH = 1.03  # how much faster another has to be to be named


def candidates(plan: Plan) -> Iterator[Row]:
    """For each usual launch in bfloat16 with several candidates, the seconds of the fastest."""
    if plan.is_dry:
        yield Row("tiles", note="launches need a GPU")
        return
    major, minor = torch.cuda.get_device_capability()
    by_name: dict[str, list[Case]] = {}
    for number in range(_MOST):
        with compiled_for(10 * major + minor, number):
            for case in cases():
                if case.usual and "bfloat16" in case.name:
                    same = by_name.setdefault(case.name, [])
                    if not any(_form(case.launch) == _form(other.launch) for other in same):
                        same.append(case)
    for name, same in by_name.items():
        if len(same) > 1:
            seconds = [_seconds(case.launch, plan) for case in same]
            best = min(range(len(same)), key=seconds.__getitem__)
            ratio = seconds[0] / seconds[best]
            note = f"tile {best} is faster: {_form(same[best].launch)}" if ratio > _ENOUGH else ""
            yield Row(f"tile of {name}", "the first candidate", ratio, seconds[best], note=note)


def _form(launch: Launch) -> tuple[object, ...]:
    return tuple(launch.constants.items()), launch.warps, launch.stages


def _seconds(launch: Launch, plan: Plan) -> float:
    arguments = {name: _filled(value, plan) for name, value in launch.arguments.items()}
    ready = launch._replace(arguments=arguments)
    return alone(ready.run, plan.device, plan.rounds)


def _filled(value: Argument, plan: Plan) -> Argument:
    """A tensor with memory for one without: small noise, or zeros where it counts something."""
    if not isinstance(value, Tensor):
        return value
    if not value.is_floating_point():
        return torch.zeros(value.shape, dtype=value.dtype, device=plan.device)
    return 0.1 * torch.randn(value.shape, device=plan.device).to(value.dtype)
