"""Updates of an optimizer, in place: of many tensors at once."""

from torch import Tensor

from segpt.kernels.registry import Later, Op

from .reference import (
    AdamUpdateCall,
    MuonMomentumCall,
    MuonUpdateCall,
    adam_reference,
    momentum_reference,
    muon_reference,
    shrink,
)

_MODULE = "segpt.kernels.updates.triton"
ADAM_UPDATE = Op[AdamUpdateCall, list[Tensor]](
    "adam_update", adam_reference, Later("triton", 30, ("cuda",), f"{_MODULE}:TritonAdamUpdate")
)
MUON_MOMENTUM = Op[MuonMomentumCall, Tensor](
    "muon_momentum",
    momentum_reference,
    Later("triton", 30, ("cuda",), f"{_MODULE}:TritonMuonMomentum"),
)
MUON_UPDATE = Op[MuonUpdateCall, list[Tensor]](
    "muon_update", muon_reference, Later("triton", 30, ("cuda",), f"{_MODULE}:TritonMuonUpdate")
)

__all__ = [
    "ADAM_UPDATE",
    "MUON_MOMENTUM",
    "MUON_UPDATE",
    "AdamUpdateCall",
    "MuonMomentumCall",
    "MuonUpdateCall",
    "adam_update",
    "muon_momentum",
    "muon_update",
    "shrink",
]


def adam_update(call: AdamUpdateCall) -> None:
    """A step of AdamW in place, on weights of any shape."""
    ADAM_UPDATE(call)


def muon_momentum(call: MuonMomentumCall) -> Tensor:
    """Gradients enter momenta, in place; the updates of matrices, (matrices, ..., out, in)."""
    return MUON_MOMENTUM(call)


def muon_update(call: MuonUpdateCall) -> None:
    """Orthogonal updates (matrices, ..., out, in) go into weights, in place."""
    MUON_UPDATE(call)
