"""Weights of their codes, on the device that needs them: of uniform grids, packed, of trellises."""

from torch import Tensor

from segpt.kernels.registry import Later, Op

from .reference import (
    PackedCall,
    TrellisCall,
    UniformCall,
    pack,
    packed_reference,
    trellis_reference,
    uniform_reference,
)

_MODULE = "segpt.kernels.dequantize.triton"
DEQUANTIZE = Op[UniformCall, Tensor](
    "dequantize", uniform_reference, Later("triton", 30, ("cuda",), f"{_MODULE}:TritonDequantize")
)
DEQUANTIZE_PACKED = Op[PackedCall, Tensor](
    "dequantize_packed",
    packed_reference,
    Later("triton", 30, ("cuda",), f"{_MODULE}:TritonDequantizePacked"),
)
DEQUANTIZE_TRELLIS = Op[TrellisCall, Tensor](
    "dequantize_trellis",
    trellis_reference,
    Later("triton", 30, ("cuda",), f"{_MODULE}:TritonDequantizeTrellis"),
)

__all__ = [
    "DEQUANTIZE",
    "DEQUANTIZE_PACKED",
    "DEQUANTIZE_TRELLIS",
    "PackedCall",
    "TrellisCall",
    "UniformCall",
    "dequantize",
    "pack",
]


def dequantize(call: UniformCall | PackedCall | TrellisCall) -> Tensor:
    """The weights (rows, columns) of codes."""
    match call:
        case UniformCall():
            return DEQUANTIZE(call)
        case PackedCall():
            return DEQUANTIZE_PACKED(call)
        case TrellisCall():
            return DEQUANTIZE_TRELLIS(call)
