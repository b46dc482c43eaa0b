"""Quantized models and unfinished ones on disk: what is read is what was written, or an error."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segpt.config.base import canonical
from segpt.config.layout import layout
from segpt.errors import CheckpointError
from segpt.stages import quantized_io, run_directory, unfinished, value_directory
from segpt.values import (
    Float16Weight,
    Quantized,
    QuantizedWeight,
    QuantizeProgress,
    TrellisWeight,
    UniformWeight,
)
from tests.artifact.weights import stepped
from tests.stages.random_models import checkpoint

ORIGIN = {"checkpoint": "0123456789abcdef", "quantize": "fedcba9876543210"}


def every_kind() -> dict[str, QuantizedWeight]:
    """In an order that is not that of the names."""
    return {
        "table": stepped(0),
        "b": stepped(1, stored=None, shared=None),
        "a": stepped(2, stored=None, shared=None, centre=None, states=1),
        "z": UniformWeight(6, np.ones((2, 3), np.int8), np.full((2, 1), 0.1, np.float16)),
        "c": Float16Weight(np.ones(3, np.float16)),
    }


def partial() -> QuantizeProgress:
    return QuantizeProgress(
        done=3,
        scale=0.1 + 0.2,
        weights={
            "table": np.arange(6, dtype=np.float32).reshape(2, 3),
            "c": np.ones(3, np.float32),
        },
        coded=every_kind(),
        multipliers={"up": 2**0.25, "query": 1 / 3},
        planned=(1 / 3, 1e9 + 0.1),
        drift=-1e-17,
        dampings={"a": 0.01, "b": None},
    )


def test_a_partial_comes_back_bit_for_bit(tmp_path: Path) -> None:
    before = partial()
    unfinished.save_partial(tmp_path / "p", before, ORIGIN)
    after = unfinished.read_partial(tmp_path / "p", ORIGIN)
    assert after.weights.keys() == before.weights.keys()
    for name, value in before.weights.items():
        assert after.weights[name].dtype == np.float32
        assert np.array_equal(after.weights[name], value)
    assert dataclasses.replace(after, weights={}) == dataclasses.replace(before, weights={})
    assert list(after.coded) == list(before.coded)


def test_an_empty_partial_is_allowed(tmp_path: Path) -> None:
    unfinished.save_partial(tmp_path / "p", QuantizeProgress(), ORIGIN)
    assert unfinished.read_partial(tmp_path / "p", ORIGIN) == QuantizeProgress()


def test_the_next_partial_replaces_the_last(tmp_path: Path) -> None:
    for done in (1, 2):
        before = dataclasses.replace(partial(), done=done, weights={})
        unfinished.save_partial(tmp_path / "p", before, ORIGIN)
    assert unfinished.read_partial(tmp_path / "p", ORIGIN).done == 2
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("other", [{"checkpoint": "other"}, {"quantize": "other"}, {"more": "1"}])
def test_another_origin_is_refused(tmp_path: Path, other: dict[str, str]) -> None:
    unfinished.save_partial(tmp_path / "p", partial(), ORIGIN)
    with pytest.raises(CheckpointError, match="other settings; leave out --resume") as error:
        unfinished.read_partial(tmp_path / "p", ORIGIN | other)
    assert error.value.exit_code == 2


def test_no_partial_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="leave out --resume"):
        unfinished.read_partial(tmp_path / "p", ORIGIN)


def quantized() -> Quantized:
    source = checkpoint()
    draw = np.random.default_rng(0)
    weights: dict[str, QuantizedWeight] = {
        w.name: Float16Weight(np.ones(w.shape, np.float16))
        if len(w.shape) < 2
        else TrellisWeight(
            8,
            draw.integers(-9, 10, w.shape).astype(np.int8),
            0.5,
            np.zeros(w.shape[0], np.int8),
            np.ones(w.shape[1], np.int8),
        )
        for w in layout(source.spec)
    }
    return Quantized(source.spec, weights, source.tokenizer, {"tokens": "x"})


@pytest.mark.parametrize("documents", [None, np.array([1, 2], np.uint64)])
def test_a_quantized_model_comes_back_bit_for_bit(tmp_path: Path, documents: Any) -> None:
    before = dataclasses.replace(quantized(), documents=documents)
    quantized_io.save_quantized(tmp_path / "q", before)
    after = quantized_io.read_quantized(tmp_path / "q")
    assert after == before
    assert after.fingerprint == before.fingerprint
    assert list(after.weights) == list(before.weights)
    assert after.report == before.report
    assert (after.documents is None) is (documents is None)


@pytest.mark.parametrize("kind", ["partial", "quantized"])
@pytest.mark.parametrize("name", ["header.json", "weights.safetensors"])
def test_damage_is_found_and_named(tmp_path: Path, kind: str, name: str) -> None:
    place = tmp_path / "p"
    if kind == "partial":
        unfinished.save_partial(place, partial(), ORIGIN)
    else:
        quantized_io.save_quantized(place, quantized())
    damaged = place / name
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(CheckpointError, match=name):
        unfinished.read_partial(
            place, ORIGIN
        ) if kind == "partial" else quantized_io.read_quantized(place)


def test_a_partial_is_neither_checkpoint_nor_quantized(tmp_path: Path) -> None:
    unfinished.save_partial(tmp_path / "p", partial(), ORIGIN)
    assert run_directory.kind_of(tmp_path / "p") == "partial"
    with pytest.raises(CheckpointError, match="expected a quantized"):
        quantized_io.read_quantized(tmp_path / "p")
    quantized_io.save_quantized(tmp_path / "q", quantized())
    with pytest.raises(CheckpointError, match="expected a partial"):
        unfinished.read_partial(tmp_path / "q", ORIGIN)


def test_models_quantized_before_there_were_designed_steps_are_read(tmp_path: Path) -> None:
    """Their headers name no stepped weights."""
    source = quantized()
    weights: dict[str, QuantizedWeight] = {
        name: Float16Weight(coded.decoded().astype(np.float16))
        for name, coded in source.weights.items()
    }
    quantized_io.save_quantized(tmp_path / "q", dataclasses.replace(source, weights=weights))
    place = tmp_path / "q" / "header.json"
    header = json.loads(place.read_text())
    assert header.pop("stepped") == {}
    del header["digest"]
    header["digest"] = hashlib.sha256(canonical(header)).hexdigest()
    place.write_text(json.dumps(header))
    assert quantized_io.read_quantized(tmp_path / "q").weights == weights


@pytest.mark.parametrize("report", [{"roles": 3}, {"unheard": 1}, [1], "none"])
def test_a_report_that_is_not_as_it_is_written_names_the_file(tmp_path: Path, report: Any) -> None:
    quantized_io.save_quantized(tmp_path / "q", quantized())
    header, files = value_directory.read_value(tmp_path / "q", "quantized")
    value_directory.write_value(tmp_path / "q", "quantized", header | {"report": report}, files)
    for read in (quantized_io.read_quantized, quantized_io.read_quantized_header):
        with pytest.raises(
            CheckpointError, match=r"header\.json is not as this segpt .*\$\.report"
        ):
            read(tmp_path / "q")
