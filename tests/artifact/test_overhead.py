"""What a file holds beside its codes at their ideal length, and how fast and small it decodes.

The weights are Gaussian, coded by a trellis of 8 states with steps such that the standard
deviation of the points is 2 to 8 and differs by 10 to 20 percent from column to column, of which
the steps explain 0.8.
"""

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from segpt import trellis
from segpt.artifact import contexts, rans
from segpt.artifact.container import load, pack, sections, unpack
from segpt.artifact.reader import open_artifact
from segpt.config.head import Head
from segpt.config.layer import Attention, Dense, Layer
from segpt.config.layout import Role, layout, parameters
from segpt.config.model import ModelSpec
from segpt.config.parts import Token
from segpt.config.recipe import read_recipe
from segpt.config.route import Visit
from segpt.values import Artifact, Float16Weight, Quantized, QuantizedWeight, Tokenizer
from tests.artifact.weights import make_stepped

# Tokenizer, header, float32 and float16 data and the exponents of the steps are no overhead.
CONTENTS = ("header", "tokenizer", "steps", "rows", "columns", "stored", "scales", "halves")


def quantized(spec: ModelSpec, seed: int) -> Quantized:
    random = np.random.default_rng(seed)
    weights: dict[str, QuantizedWeight] = {}
    for weight in layout(spec):
        if weight.role is Role.VECTOR:
            weights[weight.name] = Float16Weight(
                random.standard_normal(weight.shape).astype(np.float16)
            )
        else:
            sigma, spread = random.uniform(2, 8), random.uniform(0.1, 0.2)
            shape = weight.shape[0], weight.shape[1]
            weights[weight.name] = make_stepped(random, shape, 8, sigma, spread)
    return Quantized(spec, weights, Tokenizer("bytes", 257), {})


def ideal(artifact: Artifact) -> float:
    """Bytes of the codes if every table gave each code exactly its share of the codes it serves."""
    opened = open_artifact(artifact)
    known = opened.contexts
    total = np.zeros((len(known.runs), known.grids * rans.SYMBOLS))
    for entry, codes, rows, columns in zip(
        opened.coded, opened.codes(), known.rows, known.columns, strict=True
    ):
        grids = trellis.grids(codes, entry.states)
        shape = (len(known.runs), known.grids * rans.SYMBOLS)
        total += contexts.count(codes, grids, rows, columns, shape)
    served = np.zeros((int(known.runs.max()) + 1, total.shape[1]))
    np.add.at(served, known.runs, total)
    counts = served.reshape(-1, rans.SYMBOLS)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    return -float((counts * np.log2(np.where(counts > 0, shares, 1))).sum()) / 8


def overhead(artifact: Artifact) -> float:
    """The part of a file that is neither contents nor codes at their ideal length."""
    contents = sum(s.bytes for s in sections(artifact) if s.name in CONTENTS)
    return (artifact.size - contents - ideal(artifact)) / artifact.size


@pytest.mark.slow
def test_a_small_model_has_an_overhead_of_a_fifth_of_a_percent() -> None:
    mixer = Attention(heads=8, kv_heads=4, head_dim=32)
    spec = ModelSpec(
        vocab=2048,
        width=256,
        context=8,
        embed=(Token(),),
        layers=(Layer(mixer=mixer, feed=Dense(hidden=768)),) * 3,
        visits=tuple(Visit(layer=layer) for layer in range(3)),
        head=Head(),
    )
    artifact = pack(quantized(spec, 0))
    assert 900_000 < artifact.size < 1_100_000
    assert overhead(artifact) < 0.002


@pytest.mark.parametrize(
    ("width", "smallest", "largest"),
    [
        pytest.param(256, 7_000_000, 8_750_000, marks=pytest.mark.slow),
        pytest.param(512, 14_000_000, 17_500_000, marks=pytest.mark.campaign),
    ],
)
def test_a_large_model_has_half_of_that_and_decodes_in_seconds(
    tmp_path: Path, width: int, smallest: int, largest: int
) -> None:
    spec = read_recipe("golf16", [f"model.width={width}"]).model
    model = quantized(spec, 1)
    artifact = pack(model)
    assert smallest < artifact.size < largest
    assert overhead(artifact) < 0.001
    path = tmp_path / "model.segpt"
    path.write_bytes(artifact.data)
    del artifact

    start = time.process_time()
    found = unpack(load(path))
    codes = time.process_time() - start
    decoded = {name: coded.decoded() for name, coded in found.weights.items()}
    seconds = time.process_time() - start
    assert found.weights == model.weights
    assert parameters(spec) > 10_000_000 * codes
    assert seconds < 6
    del found, decoded

    tracemalloc.start()
    try:
        found = unpack(load(path))
        decoded = {name: coded.decoded() for name, coded in found.weights.items()}
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(weight.size for weight in decoded.values()) == parameters(spec)
    assert peak < 3 * 4 * parameters(spec)
