"""Which back end computes each operation on this machine, if it is right, and why not others."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from segpt.kernels import OPS, onednn
from segpt.kernels.activation.reference import ActivationCall, FeedCall
from segpt.kernels.attention.cached import CachedCall, Ring
from segpt.kernels.attention.reference import AttentionCall
from segpt.kernels.cross_entropy import (
    LinearHead,
    LogProbsCall,
    LossCall,
    NatsCall,
    Readout,
    TanhCap,
)
from segpt.kernels.dequantize import PackedCall, TrellisCall, UniformCall, pack
from segpt.kernels.linear.reference import LinearCall
from segpt.kernels.newton_schulz.reference import NewtonSchulzCall
from segpt.kernels.ngram_mixture import NgramMixtureCall, NgramRowsCall
from segpt.kernels.query_key import NormStep, QueryKeyCall, RotationStep
from segpt.kernels.rms_norm.reference import AddNormCall, RmsNormCall
from segpt.kernels.rotary.reference import RotaryCall
from segpt.kernels.updates import AdamUpdateCall, MuonMomentumCall, MuonUpdateCall

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
    probed = torch.arange(0, len(targets), 2, device=device)
    return LogProbsCall(hidden[None], readout, None, targets, probed)


def _attention(device: str) -> AttentionCall:
    q = _noise(2, 33, 4, 32, device=device)
    k, v = (_noise(2, 33, 2, 32, device=device, seed=seed) for seed in (1, 2))
    return AttentionCall(q, k, v, window=9)


def _cached_attention(device: str) -> CachedCall:
    q, keys, values, window, _, _ = _attention(device)
    return CachedCall(q[:, :9], Ring(keys, values, begin=20, length=30), window)


def _rotary(device: str) -> RotaryCall:
    angle = torch.arange(33, device=device)[:, None, None] / torch.arange(1, 9, device=device)
    return RotaryCall(_noise(2, 33, 4, 32, device=device), angle.cos(), angle.sin())


def _query_key(device: str) -> QueryKeyCall:
    q, cos, sin, _ = _rotary(device)
    return QueryKeyCall(q, q[:, :, :2], (NormStep(1e-5), RotationStep(cos, sin)))


def _matrices(device: str) -> NewtonSchulzCall:
    x = _noise(2, 128, 160, device=device)
    norm = torch.linalg.matrix_norm(x, keepdim=True)
    return NewtonSchulzCall(x / norm, ((3.4445, -4.7750, 2.0315),) * 2)


def _linear(device: str) -> LinearCall:
    return LinearCall(
        _noise(1, _ROWS, _WIDTH, device=device), _noise(_VOCAB, _WIDTH, device=device, seed=1)
    )


def _adam(device: str) -> AdamUpdateCall:
    weights, grads, means = ([_noise(70, 40, device=device, seed=seed)] for seed in range(3))
    return AdamUpdateCall(weights, grads, means, [means[0] ** 2], [9.0], 0.1, 0.1, 0.9, 0.95, 1e-8)


def _momenta(device: str) -> MuonMomentumCall:
    momenta, grads = ([_noise(70, 40, device=device, seed=seed)] * 2 for seed in (0, 1))
    return MuonMomentumCall([momenta[0].clone(), momenta[1]], grads, 2, 0.95, nesterov=True)


def _muon(device: str) -> MuonUpdateCall:
    seconds = [torch.ones(70, 1, device=device)]
    update = _noise(1, 70, 40, device=device, seed=1) / 8
    return MuonUpdateCall([_noise(70, 40, device=device)], update, seconds, 0.95, 0.1, 0.1)


def _codes(device: str) -> tuple[Tensor, Tensor]:
    codes = (_noise(70, 90, device=device) * 8).clamp(-31, 31).to(torch.int8)
    return codes, _noise(70, 2, device=device).abs().half()


def _uniform(device: str) -> UniformCall:
    return UniformCall(*_codes(device), torch.float32)


def _packed(device: str) -> PackedCall:
    codes, scales = _codes(device)
    return PackedCall(pack(codes, 6), 6, codes.size(1), scales, torch.float32)


def _trellis(device: str) -> TrellisCall:
    codes, _ = _codes(device)
    rows, columns, middle = codes[:, 0], codes[0], _noise(90, device=device).half()
    return TrellisCall(codes, 8, 1e-3, rows, columns, middle, None, None, torch.float32)


def _mixture(device: str) -> NgramMixtureCall:
    frequency = _noise(3, _ROWS, device=device).sigmoid()
    features, weights = _noise(4, 3, _ROWS, device=device).abs(), _noise(4, 3, device=device)
    return NgramMixtureCall(-3 * frequency[0], frequency, features, frequency > 0.4, weights)


def _mixed_rows(device: str) -> NgramRowsCall:
    model = _noise(_ROWS, _VOCAB, device=device).log_softmax(1)
    kept = torch.full((_ROWS,), 0.75, device=device)
    return NgramRowsCall(model, kept, torch.full_like(model, 0.25 / _VOCAB))


# A call of each operation, large enough for every back end; an operation may use its memory again.
EXAMPLES: Mapping[str, Callable[[str], Any]] = {
    "activation": lambda device: ActivationCall(_noise(4, 64, device=device), "swiglu"),
    "adam_update": _adam,
    "add_norm": lambda device: AddNormCall(
        _noise(4, 64, device=device), _noise(4, 64, device=device, seed=1), 0.5
    ),
    "attention": _attention,
    "dequantize": _uniform,
    "dequantize_packed": _packed,
    "dequantize_trellis": _trellis,
    "cached_attention": _cached_attention,
    "gated_feed": lambda device: FeedCall(*_linear(device), "relu2"),
    "linear": _linear,
    "muon_momentum": _momenta,
    "muon_update": _muon,
    "newton_schulz": _matrices,
    "ngram_mixture": _mixture,
    "ngram_rows": _mixed_rows,
    "query_key": _query_key,
    "rms_norm": lambda device: RmsNormCall(_noise(4, 64, device=device), 1e-5),
    "rotary": _rotary,
    "token_log_probs": _log_probs,
    "token_loss": _loss,
    "token_nats": lambda device: NatsCall(*_rows(device)),
}
