"""Kernels: checked against their references, then timed against what torch and others have."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segpt import kernels
from segpt.doctor.kernels import EXAMPLES
from segpt.kernels import OPS
from segpt.kernels.attention.reference import AttentionCall
from segpt.kernels.cross_entropy import LinearHead, LossCall, Readout, TanhCap
from segpt.kernels.newton_schulz.reference import NewtonSchulzCall
from segpt.kernels.registry import Backend
from segpt.train.optim.muon import CLASSIC
from tests.kernels.calls import CALLS, CASES, called, gradients, on

from .plan import Plan, Row
from .timing import paired

_CLOSE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_HEADS, _KV_HEADS, _CHANNELS = 8, 4, 64
_SOFTCAP = 30.0


def checks(plan: Plan) -> Iterator[Row]:
    """Every back end of every operation on this device.

    The reference gets the same rounded inputs in float32, forward and backward, where the result is
    one tensor; other operations compute the example of ``segpt doctor``. A row says where an error
    is above what rounding explains, or where a back end does not run.
    """
    for name, op in OPS.items():
        for backend in op.backends:
            try:
                errors = list(_errors(name, backend, plan))
            except Exception as error:  # noqa: BLE001 - of a compiler; the others are checked
                reason = (str(error) or type(error).__name__).splitlines()[0]
                yield Row(f"{name}, {backend.name}", note=f"failed: {reason}")
                continue
            if errors:
                wrong = not max(errors) <= _CLOSE[plan.dtype]
                yield Row(
                    f"{name}, {backend.name}: {len(errors)} calls",
                    "the reference",
                    error=max(errors),
                    note="failed: it differs by more than rounding does" if wrong else "",
                )


def _errors(name: str, backend: Backend[Any, Any], plan: Plan) -> Iterator[float]:
    """The largest error of each call that a back end takes."""
    reference = OPS[name].reference
    if name not in CASES:
        mine, other = (EXAMPLES[name](plan.device) for _ in range(2))  # it may be changed in place
        if backend.refusal(mine) is None:
            yield error_of(list(_tensors(backend.run(mine))), list(_tensors(reference(other))))
        return
    for case in CASES[name]:
        args = on(case, plan.device, plan.dtype)
        descends = name != "newton_schulz"  # its back ends have no gradients
        if not descends:
            args = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
        if backend.refusal(CALLS[name](*args)) is not None:
            continue
        exact = on(
            tuple(a.detach() if isinstance(a, Tensor) else a for a in args),
            plan.device,
            torch.float32,
        )
        if descends:
            y, slopes = gradients(called(backend.run, name), args)
            exact_y, exact_slopes = gradients(called(reference, name), exact)
            yield error_of([y, *slopes], [exact_y, *exact_slopes])
        else:
            yield error_of([backend.run(CALLS[name](*args))], [reference(CALLS[name](*exact))])


def _tensors(result: Any) -> Iterator[Tensor]:
    """The tensors of a result, of any shape."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, list | tuple):
        for part in result:
            yield from _tensors(part)


def attention(plan: Plan) -> Iterator[Row]:
    """Forward and backward, causal and with a window, against SDPA and FlexAttention."""
    sizes = plan.sequences, plan.context
    q = noise(plan, *sizes, _HEADS, _CHANNELS)
    k, v = (noise(plan, *sizes, _KV_HEADS, _CHANNELS, seed=seed) for seed in (1, 2))
    for window in (None, plan.context // 4):
        ours = descend(
            partial(result_of, "attention", plan.backend, AttentionCall),
            (q, k, v),
            window,
            None,
            None,
        )
        peers = {"SDPA": descend(_sdpa, (q, k, v), window)}
        if plan.device == "cuda":
            peers["FlexAttention"] = descend(_flex(window, plan.context), (q, k, v))
        name = "attention" if window is None else f"attention, window {window}"
        for peer, run in peers.items():
            sides = paired(ours, run, plan.device, plan.rounds)
            error = error_of(ours(), run())
            yield row(name, peer, sides, error=error, aim=0.9)


def token_loss(plan: Plan) -> Iterator[Row]:
    """Loss and gradients at full size, against all logits at once, torch's back end and Liger."""
    hidden = noise(plan, plan.rows, plan.width)
    weight = noise(plan, plan.vocab, plan.width, seed=1)
    generator = torch.Generator().manual_seed(2)
    targets = torch.randint(plan.vocab, (plan.rows,), generator=generator).to(plan.device)
    share = torch.full((plan.rows,), 1 / plan.rows, device=plan.device)

    def loss(backend: str, hidden: Tensor, weight: Tensor) -> Tensor:
        head = LinearHead(weight, plan.width**-0.5, TanhCap(_SOFTCAP))
        readout = Readout(partial(_logits, head), plan.vocab, head)
        call = LossCall(hidden, readout, targets, share, 0.0)
        total: Tensor = result_of("token_loss", backend, lambda *a: a[0], call).total
        return total

    ours = descend(partial(loss, plan.backend), (hidden, weight))
    peers: dict[str, tuple[Callable[..., Tensor], float | None]]
    peers = {"all logits at once": (partial(loss, "reference"), 2.0)}
    peers["torch's back end"] = (partial(loss, "torch"), None)
    if plan.device == "cuda" and find_spec("liger_kernel") is not None:
        peers["Liger"] = (_liger(targets), None)
    for peer, (run, aim) in peers.items():
        other = descend(run, (hidden, weight))
        sides = paired(ours, other, plan.device, plan.rounds)
        yield row("token loss", peer, sides, error=error_of(ours(), other()), aim=aim)


def newton_schulz(plan: Plan) -> Iterator[Row]:
    """Five steps over stacked matrices, against torch.optim.Muon's iteration, one by one."""
    from torch.optim._muon import _zeropower_via_newtonschulz  # what torch.optim.Muon calls

    x = noise(plan, plan.matrices, plan.width, 4 * plan.width)
    coefficients = (CLASSIC,) * 5

    def ours() -> Tensor:
        unit = x / x.norm(dim=(1, 2), keepdim=True)
        result: Tensor = result_of(
            "newton_schulz", plan.backend, NewtonSchulzCall, unit, coefficients
        )
        return result

    def other() -> Tensor:
        return torch.stack([_zeropower_via_newtonschulz(m, CLASSIC, 5, 1e-7) for m in x])

    with torch.no_grad():
        sides = paired(ours, other, plan.device, plan.rounds)
        yield row(
            "Newton-Schulz", "torch.optim.Muon", sides, error=error_of([ours()], [other()]), aim=1.6
        )


def row(name: str, against: str, sides: Any, **more: Any) -> Row:
    return Row(name, against, sides.ratio, sides.seconds, sides.other_seconds, sides.memory, **more)


def result_of(op: str, backend: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of an operation by a back end of its, or by the best where it has none such."""
    names = {b.name for b in OPS[op].backends} | {"reference"}
    with kernels.use(**{op: backend if backend in names else "auto"}):
        return OPS[op](call(*arguments))


def descend(
    run: Callable[..., Tensor], inputs: tuple[Tensor, ...], *rest: Any
) -> Callable[[], list[Tensor]]:
    """A call that makes the result and the gradients of its sum; it returns all of these."""
    leaves = tuple(x.detach().clone().requires_grad_() for x in inputs)

    def call() -> list[Tensor]:
        result = run(*leaves, *rest)
        return [result.detach(), *torch.autograd.grad(result.sum(), leaves)]

    return call


def noise(plan: Plan, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator(plan.device).manual_seed(seed)
    return torch.randn(shape, device=plan.device, generator=generator).to(plan.dtype)


def error_of(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference, over the largest number of the same tensor or 1."""
    pairs = [
        (a.detach().float(), b.detach().float()) for a, b in zip(results, expected, strict=True)
    ]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1.0)) for a, b in pairs)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    mask = None
    if window is not None:
        whole = torch.ones(q.size(1), k.size(1), dtype=torch.bool, device=q.device)
        mask = whole.tril().triu(1 - window)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )
    return y.transpose(1, 2)


def _flex(window: int | None, context: int) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        causal = query >= key
        return causal if window is None else causal & (query - key < window)

    mask = create_block_mask(sees, None, None, context, context, device="cuda")
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        y: Tensor = compiled(q, k, v, block_mask=mask, enable_gqa=True)
        return y.transpose(1, 2)

    return attend


def _liger(targets: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(softcap=_SOFTCAP)

    def run(hidden: Tensor, weight: Tensor) -> Tensor:
        total: Tensor = loss(weight, hidden * hidden.size(1) ** -0.5, targets)
        return total

    return run


def _logits(head: LinearHead, x: Tensor) -> Tensor:
    products = head.scale * F.linear(x, head.weight.to(x.dtype)).float()
    return _SOFTCAP * torch.tanh(products / _SOFTCAP)
