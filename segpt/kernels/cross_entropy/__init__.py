"""Cross-entropy of a head's logits: of a batch in training, and of targets in scoring."""

from torch import Tensor

from segpt.kernels.registry import Later, Op

from .caps import AlgebraicCap, AsymmetricCap, Cap, SigmoidCap, TanhCap, capped
from .reference import (
    LinearHead,
    LogProbs,
    LogProbsCall,
    Loss,
    LossCall,
    NatsCall,
    Readout,
    log_probs_reference,
    loss_reference,
    nats_of_logits,
    nats_reference,
)
from .torch import POSITIONS, CheckpointLoss, TorchLoss, TorchNats

_TRITON = "segpt.kernels.cross_entropy.triton"
TOKEN_LOSS = Op(
    "token_loss",
    loss_reference,
    Later("triton", 30, ("cuda",), f"{_TRITON}:TritonLoss"),
    TorchLoss(),
    CheckpointLoss(),
)
TOKEN_NATS = Op(
    "token_nats",
    nats_reference,
    Later("triton", 30, ("cuda",), f"{_TRITON}:TritonNats"),
    TorchNats(),
)
TOKEN_LOG_PROBS = Op("token_log_probs", log_probs_reference)

__all__ = [
    "POSITIONS",
    "AlgebraicCap",
    "AsymmetricCap",
    "Cap",
    "LinearHead",
    "LogProbs",
    "LogProbsCall",
    "Loss",
    "LossCall",
    "NatsCall",
    "Readout",
    "SigmoidCap",
    "TanhCap",
    "capped",
    "nats_of_logits",
    "token_log_probs",
    "token_loss",
    "token_nats",
]


def token_loss(
    hidden: Tensor,
    readout: Readout,
    targets: Tensor,
    share: Tensor,
    z_loss: float = 0.0,
    smoothing: float = 0.0,
) -> Loss:
    """The loss of predicting ``targets`` (rows,) from ``hidden`` (rows, width), with gradients.

    ``share`` (rows,) says how much each row counts; see :class:`LossCall`.
    """
    return TOKEN_LOSS(LossCall(hidden, readout, targets, share, z_loss, smoothing))


def token_nats(hidden: Tensor, readout: Readout, targets: Tensor) -> Tensor:
    """-log p(target), (...,) in float32, from ``hidden`` (..., width)."""
    return TOKEN_NATS(NatsCall(hidden, readout, targets))


def token_log_probs(
    hidden: Tensor,
    readout: Readout,
    picked: Tensor | None,
    targets: Tensor,
    probed: Tensor | None,
) -> LogProbs:
    """Nats of targets, and whole rows of log-probabilities, from ``hidden`` (batch, time, width).

    ``targets`` are (picked,); see :class:`LogProbsCall`.
    """
    return TOKEN_LOG_PROBS(LogProbsCall(hidden, readout, picked, targets, probed))
