"""A spec that names huge sizes in a sound file is refused before anything is allocated for it."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from segpt.config.base import decode, encode
from segpt.config.layout import layout
from segpt.config.model import ModelSpec
from segpt.data.tokenizer import BYTES
from segpt.errors import CheckpointError
from segpt.stages.open_model import from_checkpoint, from_quantized
from segpt.values import Checkpoint, Float16Weight, Quantized

HUGE = 1 << 44
SPEC = decode(
    ModelSpec,
    {
        "vocab": 257,
        "width": 16,
        "context": 8,
        "start": 256,
        "embed": ["token", {"kind": "bigram", "buckets": 16, "width": 4}],
        "layers": [
            {
                "mixer": {"kind": "attention", "heads": 2, "kv_heads": 1, "head_dim": 4},
                "feed": {"kind": "dense", "hidden": 8},
            }
        ],
        "visits": [{"layer": 0}],
        "head": {"kind": "head", "tied": False},
    },
)
WEIGHTS = {w.name: np.zeros(w.shape, np.float32) for w in layout(SPEC)}


def as_checkpoint(spec: ModelSpec) -> Checkpoint:
    return Checkpoint(
        spec=spec,
        weights=WEIGHTS,
        tokenizer=BYTES,
        step=1,
        progress=1.0,
        documents=np.zeros(0, np.uint64),
        origin={},
    )


def as_quantized(spec: ModelSpec) -> Quantized:
    weights = {name: Float16Weight(array.astype(np.float16)) for name, array in WEIGHTS.items()}
    return Quantized(spec=spec, weights=weights, tokenizer=BYTES, origin={})


def opened(kind: str, spec: ModelSpec) -> object:
    if kind == "checkpoint":
        return from_checkpoint(as_checkpoint(spec))
    return from_quantized(as_quantized(spec))


@pytest.mark.parametrize("kind", ["checkpoint", "quantized"])
def test_the_sound_one_opens(kind: str) -> None:
    assert opened(kind, SPEC) is not None


def put(*path: Any) -> Callable[[Any], None]:
    def change(table: Any) -> None:
        for step in path[:-1]:
            table = table[step]
        table[path[-1]] = HUGE

    return change


@pytest.mark.parametrize(
    "change",
    [
        put("vocab"),
        put("width"),
        put("embed", 1, "buckets"),
        put("embed", 1, "width"),
        put("layers", 0, "mixer", "heads"),
        put("layers", 0, "mixer", "head_dim"),
        put("layers", 0, "feed", "hidden"),
        put("head", "multiple"),
    ],
)
@pytest.mark.parametrize("kind", ["checkpoint", "quantized"])
def test_huge_sizes_are_refused(kind: str, change: Callable[[Any], None]) -> None:
    table = encode(SPEC)
    change(table)
    with pytest.raises(CheckpointError, match="expected"):
        opened(kind, decode(ModelSpec, table))


@pytest.mark.parametrize("kind", ["checkpoint", "quantized"])
def test_layers_that_have_no_weights_in_the_file_are_refused(kind: str) -> None:
    many = dataclasses.replace(SPEC, layers=SPEC.layers * 500, visits=tuple(visit_all(SPEC, 500)))
    with pytest.raises(CheckpointError, match="not in both"):
        opened(kind, many)


def visit_all(spec: ModelSpec, count: int) -> list[Any]:
    return [dataclasses.replace(spec.visits[0], layer=layer) for layer in range(count)]


def test_sizes_stay_within_what_python_counts_in() -> None:
    assert sys.maxsize < HUGE * HUGE  # so that products do not wrap around unseen
