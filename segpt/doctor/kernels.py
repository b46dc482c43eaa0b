"""Which back end computes each operation on this machine, if it is right, and why not others."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from segpt.kernels import OPS, onednn
from segpt.kernels.activation.reference import ActivationCall, FeedCall
from segpt.kernels.attention.reference import AttentionCall
from segpt.kernels.cross_entropy import (
    LinearHead,
    LogProbsCall,
    LossCall,
    NatsCall,
    Readout,
    TanhCap,
)
from segpt.kernels.linear.reference import LinearCall
from segpt.kernels.newton_schulz.reference import NewtonSchulzCall
from segpt.kernels.rms_norm.reference import AddNormCall, RmsNormCall
from segpt.kernels.rotary.reference import RotaryCall

from .doctor import CheckResult

_CLOSE = 1e-3  # of float32 results that were computed in two ways
_ROWS, _WIDTH, _VOCAB = 128, 128, 256


def kernel_findings(devices: list[str]) -> Iterator[CheckResult]:
    """One finding for each operation: per device the back end that runs, and what the others say.

    Raises:
        SystemExit: if a back end does not compute what the reference computes.
    """
    for name, op in OPS.items():
        states = []
        for device in devices:
            with torch.no_grad(), onednn.wanted():
                refusals = op.refusals(EXAMPLES[name](device))
                wrong = _wrong(name, device)
            runs = next((backend for backend, why in refusals.items() if why is None), "reference")
            if not wrong < _CLOSE:
                raise SystemExit(f"{name} by {runs} on {device} is wrong by {wrong:.2g}")
            rest = "".join(f"; {backend}: {why}" for backend, why in refusals.items() if why)
            error = f"within {wrong:.0e} of the reference" if wrong else "equal to the reference"
            states.append(f"{device}: {runs}, {error}{rest}")
        yield CheckResult(f"kernel {name}", "good", "; ".join(states))


def _wrong(name: str, device: str) -> float:
    """The largest difference of what runs from the reference, each with its own inputs."""
    results = (run(EXAMPLES[name](device)) for run in (OPS[name], OPS[name].reference))
    pairs = zip(*map(_tensors, results), strict=True)
    return max(float((mine.float() - wanted.float()).abs().max()) for mine, wanted in pairs)


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [x for x in result if x is not None]


def _noise(*shape: int, device: str, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def _head(device: str) -> Readout:
    weight = _noise(_VOCAB, _WIDTH, device=device, seed=1) / 8
    head = LinearHead(weight, cap=TanhCap(30.0))
    return Readout(lambda x: 30.0 * torch.tanh(x @ weight.T / 30.0), vocab=_VOCAB, linear=head)


def _rows(device: str) -> tuple[Tensor, Readout, Tensor]:
    targets = torch.arange(_ROWS, device=device) % _VOCAB
    return _noise(_ROWS, _WIDTH, device=device), _head(device), targets


def _loss(device: str) -> LossCall:
    share = torch.full((_ROWS,), 1 / _ROWS, device=device)
    return LossCall(*_rows(device), share, 1e-4)


def _log_probs(device: str) -> LogProbsCall:
    hidden, readout, targets = _rows(device)
    return LogProbsCall(hidden[None], readout, None, targets, targets == 0)


def _attention(device: str) -> AttentionCall:
    q = _noise(2, 33, 4, 32, device=device)
    k, v = (_noise(2, 33, 2, 32, device=device, seed=seed) for seed in (1, 2))
    return AttentionCall(q, k, v, window=9)


def _rotary(device: str) -> RotaryCall:
    angle = torch.arange(33, device=device)[:, None, None] / torch.arange(1, 9, device=device)
    return RotaryCall(_noise(2, 33, 4, 32, device=device), angle.cos(), angle.sin())


def _matrices(device: str) -> NewtonSchulzCall:
    x = _noise(2, 128, 160, device=device)
    norm = torch.linalg.matrix_norm(x, keepdim=True)
    return NewtonSchulzCall(x / norm, ((3.4445, -4.7750, 2.0315),) * 2)


def _linear(device: str) -> LinearCall:
    return LinearCall(
        _noise(1, _ROWS, _WIDTH, device=device), _noise(_VOCAB, _WIDTH, device=device, seed=1)
    )


# A call of each operation, large enough for every back end; an operation may use its memory again.
EXAMPLES: Mapping[str, Callable[[str], Any]] = {
    "activation": lambda device: ActivationCall(_noise(4, 64, device=device), "swiglu"),
    "add_norm": lambda device: AddNormCall(
        _noise(4, 64, device=device), _noise(4, 64, device=device, seed=1), 0.5
    ),
    "attention": _attention,
    "gated_feed": lambda device: FeedCall(*_linear(device), "relu2"),
    "linear": _linear,
    "newton_schulz": _matrices,
    "rms_norm": lambda device: RmsNormCall(_noise(4, 64, device=device)),
    "rotary": _rotary,
    "token_log_probs": _log_probs,
    "token_loss": _loss,
    "token_nats": lambda device: NatsCall(*_rows(device)),
}
