"""What other compressors are given holds every bit of the weights, and is counted in full."""

import brotli
import numpy as np
import pytest
import torch

from bench.coders import coders, packed, parts, size, zlib_9
from segpt.artifact.container import pack, sections
from segpt.data.tokenizer import BYTES
from segpt.quant.grid import nearest, scales, to_grid
from segpt.values import Float16Weight, Quantized, UniformWeight

from .conftest import Made


@pytest.fixture
def quantized(made: Made) -> Quantized:
    """The tiny model to nearest, at 6 bits."""
    weights: dict[str, UniformWeight | Float16Weight] = {}
    for name, value in made.checkpoint.weights.items():
        if value.ndim < 2 or min(value.shape) < 3:
            weights[name] = Float16Weight(value.astype(np.float16))
            continue
        tensor = torch.from_numpy(np.array(value))
        scale = scales(tensor, 6, 12.85)
        weights[name] = to_grid(nearest(tensor, scale, 6), scale, 6)
    return Quantized(made.checkpoint.spec, weights, BYTES, made.checkpoint.origin)


def test_the_parts_hold_every_bit(quantized: Quantized) -> None:
    codes, scale, vectors = parts(quantized)
    grids = [w for w in quantized.weights.values() if isinstance(w, UniformWeight)]
    halves = [w for w in quantized.weights.values() if isinstance(w, Float16Weight)]
    assert codes == b"".join(g.codes.tobytes() for g in grids)
    for data, arrays in ((scale, [g.scales for g in grids]), (vectors, [h.values for h in halves])):
        planes = np.frombuffer(data, np.uint8).reshape(2, -1)
        joined = np.ascontiguousarray(planes.T).view("<f2").ravel()
        assert joined.tobytes() == b"".join(a.astype("<f2").tobytes() for a in arrays)


def test_the_smaller_of_one_stream_and_several_counts(quantized: Quantized) -> None:
    found = parts(quantized)
    one = len(brotli.compress(b"".join(found), quality=11, lgwin=24))
    several = sum(len(brotli.compress(part, quality=11, lgwin=24)) for part in found)
    assert size(quantized, coders()["brotli-11"]) == min(one, several)


def test_every_coder_is_near_the_entropy(quantized: Quantized) -> None:
    codes = np.frombuffer(parts(quantized)[0], np.int8)
    shares = np.bincount(codes.astype(int) + 128) / len(codes)
    entropy = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum() * len(codes) / 8
    for name, coder in (coders() | {"zlib-9": zlib_9}).items():
        assert 0.9 * entropy < coder(codes.tobytes()) < 1.35 * entropy + 100, name


def test_shared_bytes_hold_no_weights(quantized: Quantized) -> None:
    whole, shared = packed(quantized)
    artifact = pack(quantized)
    kept = [s for s in sections(artifact) if s.name in ("codes", "tables", "scales", "halves")]
    assert whole == artifact.size
    assert sum(s.bytes for s in kept) <= whole - shared < whole
