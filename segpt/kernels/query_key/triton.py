"""Norm, rotation and gain of queries and keys in Triton: one kernel each way reads them once.

With r = 1 / rms(x), a rotation R and a gain g, the result is y = g r R x; the norm may come before
the rotation or after it, where r = 1 / rms(R x). Backward computes r again, so that nothing is kept
but the inputs. With w = 1 for a norm before and w = cos^2 + sin^2 for one after, which rounded
angles make different from 1, the gradients for a slope s of y are ::

    by x:  r (g R^T s - r^2 w x g mean(x R^T s))        by g:  r sum(x R^T s)

Inside the kernel of attention this would cost more: of 2,048 positions each key would be turned
again for up to 16 blocks of 128 queries, by every head of its group, and in backward once more.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from segpt.kernels.launch import Constant, Launch
from segpt.kernels.registry import Backend
from segpt.kernels.tiles import ANY, Tile, Tiles, tile_for

from .reference import GainStep, NormStep, QueryKeyCall, RotationStep
from .triton_kernels import backward_kernel, forward_kernel

EPSILON = torch.finfo(torch.float32).eps  # as torch's own norm has it, where a call names none
_WIDEST = 1024  # channels of a head
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


class FusedSteps(NamedTuple):
    """The steps of a call as the kernels do them.

    Attributes:
        norm: where it is, seen from the rotation: 1 before, 2 after; 0 is none.
        cos, sin: (time, 1, dims / 2) of the angles, or None if nothing turns.
        neighbours: whether neighbours are pairs.
        gain: (heads, 1) or (1, 1), or None.
        eps: what is added to the mean square.
    """

    norm: int = 0
    cos: Tensor | None = None
    sin: Tensor | None = None
    neighbours: bool = False
    gain: Tensor | None = None
    eps: float = EPSILON


class TritonQueryKey(Backend[QueryKeyCall, tuple[Tensor, Tensor]]):
    """Each of norm, rotation and gain at most once, and no gain before a norm."""

    name, priority = "triton", 30

    def refusal(self, call: QueryKeyCall) -> str | None:
        kinds = [type(step) for step in call.steps]
        if len(set(kinds)) < len(kinds):
            return "it does no step twice"
        if not {NormStep, RotationStep} & set(kinds):
            return "there is neither a norm nor a rotation"
        if GainStep in kinds and NormStep in kinds[kinds.index(GainStep) :]:
            return "a gain comes before the norm"
        if any(isinstance(step, NormStep) and step[1:] != (None, None) for step in call.steps):
            return "the norm has a gain for each channel"
        if call.q.size(3) > _WIDEST:
            return f"heads have up to {_WIDEST:,} channels, and these {call.q.size(3):,}"
        if call.q.dtype not in _TYPES or call.k.dtype != call.q.dtype:
            return f"it takes float32, float16 and bfloat16, not {call.q.dtype}, {call.k.dtype}"
        if torch.compiler.is_compiling():
            return "what torch.compile makes goes together with what is beside it"
        return None

    def run(self, call: QueryKeyCall) -> tuple[Tensor, Tensor]:
        form = form_of(call)
        result: tuple[Tensor, Tensor] = _Prepared.apply(call.q, call.k, form.gain, form)
        return result


def form_of(call: QueryKeyCall) -> FusedSteps:
    """What the kernels do for the steps of a call, none of which is there twice."""
    form = FusedSteps()
    for step in call.steps:
        if isinstance(step, NormStep):
            eps = EPSILON if step.eps is None else step.eps
            form = form._replace(norm=1 if form.cos is None else 2, eps=eps)
        elif isinstance(step, RotationStep):
            cos, sin = step.cos.contiguous(), step.sin.contiguous()
            form = form._replace(cos=cos, sin=sin, neighbours=step.neighbours)
        else:
            form = form._replace(gain=step.gain.contiguous())
    return form


def forward(q: Tensor, k: Tensor, form: FusedSteps, results: tuple[Tensor, Tensor]) -> Launch:
    """What makes ``results``, like ``q`` and ``k``, (batch, time, heads, channels)."""
    made = dict(zip(("new_q", "new_k"), results, strict=True))
    return _launch(forward_kernel, {"q": q, "k": k, **made}, form)


def backward(
    inputs: tuple[Tensor, Tensor],
    slopes: tuple[Tensor, Tensor],
    form: FusedSteps,
    results: tuple[Tensor, Tensor, Tensor],
) -> Launch:
    """What makes the gradients by q and k, and that by the gain for each head of each position.

    ``slopes`` are the gradients by the results, like the inputs. The last of ``results`` is
    (batch, time, heads) in float32.
    """
    names = "q", "k", "slope_q", "slope_k", "by_q", "by_k", "by_gain"
    tensors = dict(zip(names, (*inputs, *slopes, *results), strict=True))
    return _launch(backward_kernel, tensors, form)


def _launch(kernel: Any, tensors: dict[str, Tensor], form: FusedSteps) -> Launch:
    q, k = tensors["q"], tensors["k"]
    batch, time, heads, channels = q.shape
    rotary, scaled = form.cos is not None, form.gain is not None
    absent = {"gain": form.gain, "cos": form.cos, "sin": form.sin}
    tensors = tensors | {name: q if x is None else x for name, x in absent.items()}
    numbers: dict[str, float] = {"positions": batch * time, "time": time, "heads": heads}
    numbers |= {"kv_heads": k.size(2), "channels": channels, "epsilon": form.eps}
    numbers |= {"dims": 0 if form.cos is None else 2 * form.cos.size(-1)}
    numbers |= {"gains": 0 if form.gain is None else form.gain.size(0)}
    fixed: dict[str, Constant] = {"NORM": form.norm, "ROTARY": rotary, "GAIN": scaled}
    fixed |= {"NEIGHBOURS": form.neighbours}
    tile = tile_for(_tiles(triton.next_power_of_2(channels)), q)
    programs = sum(triton.cdiv(batch * time * x.size(2), tile.sizes["ROWS"]) for x in (q, k))
    return Launch(
        kernel,
        (programs,),
        {**tensors, **numbers},
        {**fixed, **tile.sizes},
        warps=tile.warps,
        stages=tile.stages,
    )


def _tiles(block: int) -> Tiles:
    """Candidates for heads of up to ``block`` channels: as many heads as there are 2,048 of them.

    Or half as many, or twice.
    """
    rows = (max(1, count // block) for count in (2048, 1024, 4096))
    return {ANY: [Tile({"ROWS": count, "BLOCK": block}, 4, 1) for count in rows]}


class _Prepared(torch.autograd.Function):
    """Forward keeps its inputs."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, gain: Tensor | None, form: FusedSteps
    ) -> tuple[Tensor, Tensor]:
        """In the shapes of ``q`` and ``k``; ``gain`` is that of the form, for its gradient."""
        q, k = q.contiguous(), k.contiguous()
        results = torch.empty_like(q), torch.empty_like(k)
        forward(q, k, form, results).run()
        ctx.save_for_backward(q, k, form.cos, form.sin, gain)
        ctx.form = form._replace(cos=None, sin=None, gain=None)
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_q: Tensor, slope_k: Tensor) -> tuple[Tensor | None, ...]:
        q, k, cos, sin, gain = ctx.saved_tensors
        form = ctx.form._replace(cos=cos, sin=sin, gain=gain)
        by_q, by_k = torch.empty_like(q), torch.empty_like(k)
        by_gain = torch.empty(q.shape[:3] if gain is not None else (1,), device=q.device)
        slopes = slope_q.contiguous(), slope_k.contiguous()
        backward((q, k), slopes, form, (by_q, by_k, by_gain)).run()
        if gain is None:
            return by_q, by_k, None, None
        of_heads = by_gain.sum((0, 1))[:, None]
        return by_q, by_k, of_heads.sum_to_size(gain.shape).to(gain.dtype), None
