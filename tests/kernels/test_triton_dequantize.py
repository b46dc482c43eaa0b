"""Weights of codes by Triton in its interpreter: the bits of the reference, whatever the shape."""

import numpy as np
import pytest
import torch
from torch import Tensor

from segpt import trellis
from segpt.kernels.dequantize.paths import masks
from segpt.kernels.dequantize.reference import (
    PackedCall,
    TrellisCall,
    UniformCall,
    pack,
    packed_reference,
    trellis_reference,
    uniform_reference,
    unpack,
)
from segpt.kernels.tiles import ANY, Tile
from segpt.trellis import STATES
from segpt.values import UniformWeight

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.slow

SHAPES = [(1, 1), (17, 130), (3, 515)]
TYPES = [torch.float32, torch.float16]


def codes(*shape: int, most: int = 127, dtype: torch.dtype = torch.int8) -> Tensor:
    generator = torch.Generator().manual_seed(most)
    return torch.randint(-most, most + 1, shape, generator=generator).to(dtype)


def scales(*shape: int) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.1).half()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_uniform(shape: tuple[int, int], dtype: torch.dtype) -> None:
    from segpt.kernels.dequantize.triton import TritonDequantize

    rows, columns = shape
    for spans in (1, min(3, columns)):
        call = UniformCall(codes(*shape), scales(rows, spans), dtype)
        result = TritonDequantize().run(call)
        assert torch.equal(result, uniform_reference(call))
        stored = UniformWeight(8, call.codes.numpy(), call.scales.numpy())
        assert torch.equal(uniform_reference(call), torch.from_numpy(stored.decoded()).to(dtype))
    wide = UniformCall(codes(*shape, most=2000, dtype=torch.int16), scales(rows, 1), dtype)
    assert torch.equal(TritonDequantize().run(wide), uniform_reference(wide))


@pytest.mark.parametrize("bits", range(2, 9))
def test_packed(bits: int) -> None:
    from segpt.kernels.dequantize.triton import TritonDequantizePacked

    for rows, columns in SHAPES:
        wanted = codes(rows, columns, most=2 ** (bits - 1) - 1)
        packed = pack(wanted, bits)
        assert packed.shape == (rows, -(-columns * bits // 8))
        assert torch.equal(unpack(packed, bits, columns), wanted)
        call = PackedCall(packed, bits, columns, scales(rows, 1), torch.float32)
        assert torch.equal(TritonDequantizePacked().run(call), packed_reference(call))


@pytest.mark.parametrize("states", STATES[1:])
def test_masks_give_the_grids_of_the_walk(states: int) -> None:
    path = codes(40, 200).numpy()
    period = len(masks(states))
    bits = (path & 1).astype(np.int32) << np.arange(200, dtype=np.int32) % period
    before = np.bitwise_xor.accumulate(bits, 1) ^ bits
    counts = before & masks(states)[np.arange(200) % period]
    parity = np.array([number.bit_count() & 1 for number in counts.ravel().tolist()])
    assert np.array_equal(parity.reshape(path.shape), trellis.grids(path, states))


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("dtype", TYPES)
def test_trellis(states: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from segpt.kernels.dequantize import triton

    small = {ANY: [Tile({"ROWS": 4, "COLUMNS": 32}, 4, 1)]}  # so that a row takes several
    monkeypatch.setattr(triton, "TRELLIS_TILES", small)
    for rows, columns, centred, shares in ((5, 90, True, True), (6, 32, True, False), (3, 9, 0, 0)):
        stored = torch.arange(rows + 3) < rows
        stored = stored[torch.randperm(rows + 3, generator=torch.Generator().manual_seed(2))]
        call = TrellisCall(
            codes(rows, columns),
            states,
            0.0123456789,
            codes(rows, most=20),
            codes(columns, most=40),
            scales(columns) - 0.5 if centred else None,
            stored if shares else None,
            scales(columns) * 2 if shares else None,
            dtype,
        )
        backend = triton.TritonDequantizeTrellis()
        assert backend.refusal(call) is None
        assert torch.equal(backend.run(call), trellis_reference(call))
