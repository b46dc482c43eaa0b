"""Text for quantization: what calibrates, what tunes, and what has been seen."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from segpt.config.quant import QuantSpec
from segpt.data.tokenizer import BYTES, load
from segpt.data.tokens import ids, write_tokens
from segpt.errors import DataError
from segpt.stages.calibrate import drawn, in_order, quantize_on, seen
from segpt.stages.calibration_text import BATCH_TOKENS, CalibrationText
from segpt.values import QuantizeProgress, Tokens, TrellisWeight
from segpt.values import Text as Documents
from tests.reports import quality_of
from tests.stages.random_models import CONTEXT, blocks, checkpoint

WORDS = [f"Document {i} about the number {i * i}.".encode() for i in range(400)]


def written(place: Path, documents: list[bytes]) -> Tokens:
    text = Documents("some text", lambda: iter(documents))
    return write_tokens(text, BYTES, place, split="train")


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return written(tmp_path / "train", WORDS)


def test_blocks_are_drawn_without_end_and_the_same_every_time(tokens: Tokens) -> None:
    epoch = tokens.count // CONTEXT // 16 + 1
    found, again = (list(itertools.islice(drawn(tokens, CONTEXT), 2 * epoch)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    assert {block.shape for block in found} == {(16, CONTEXT + 1)}
    assert not np.array_equal(found[0], found[1])
    text = ids(tokens).slice(0, tokens.count)
    windows = {bytes(row) for row in np.lib.stride_tricks.sliding_window_view(text, CONTEXT + 1)}
    assert {bytes(row.astype(text.dtype)) for row in found[0]} <= windows


def test_seen_is_what_occurs(tokens: Tokens) -> None:
    found = seen(tokens)
    expected = {*b"".join(WORDS), load(BYTES).start}
    assert set(np.flatnonzero(found).tolist()) == expected
    assert found.shape == (tokens.tokenizer.vocab,)


def test_seen_reads_piece_by_piece(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = seen(tokens)
    monkeypatch.setattr("segpt.stages.calibrate.CHUNK", 7)
    assert np.array_equal(seen(tokens), whole)
    monkeypatch.setattr("segpt.stages.calibrate.SEEN_TOKENS", 20)
    first = ids(tokens).slice(0, 20)
    assert set(np.flatnonzero(seen(tokens)).tolist()) == set(first.tolist())


def test_held_out_text_is_read_in_order(tokens: Tokens) -> None:
    rows = np.concatenate(list(in_order(tokens, CONTEXT, 40 * CONTEXT)))
    text = ids(tokens).slice(0, tokens.count)
    assert rows.shape == (40, CONTEXT + 1)
    assert np.array_equal(rows[:, :-1].ravel(), text[: rows[:, :-1].size])


def test_text_is_read_lazily_and_then_again() -> None:
    read = 0

    def reading() -> Iterator[NDArray[np.int64]]:
        nonlocal read
        for block in source:
            read += 1
            yield block

    source = [np.full((200, 33), number) for number in range(3)]
    text = CalibrationText(reading(), 10)
    rows = BATCH_TOKENS // 32
    assert read == 0
    assert text(0).shape == (rows, 32)
    assert read == 1
    whole = np.concatenate([text(i) for i in range(12)])
    assert read == 3
    expected = np.concatenate([block[:, :-1] for block in source])
    assert np.array_equal(whole, expected)
    assert np.array_equal(text(12), text(0))
    assert np.array_equal(text(12 * 5 + 7), text(7))


@pytest.mark.parametrize("asked", [1, 100, 5000, 10**9])
def test_the_first_tokens_come_in_whole_rows_and_once(asked: int) -> None:
    done: list[int] = []
    text = CalibrationText(blocks(50), 50)
    found = np.concatenate(list(text.first(asked, done.append)))
    there = sum(block[:, :-1].size for block in blocks(50))
    assert found.size == min(there, -(-asked // CONTEXT) * CONTEXT)
    assert np.array_equal(
        found, np.concatenate([block[:, :-1] for block in blocks(50)])[: len(found)]
    )
    assert done[-1] == min(asked, there)


def test_text_the_model_was_not_trained_on_is_refused(tokens: Tokens, tmp_path: Path) -> None:
    source = checkpoint(vocab=257)
    with pytest.raises(DataError, match="not the one the checkpoint was trained on"):
        quantize_on(source, QuantSpec(), tokens, tokens)


@pytest.mark.slow
def test_a_checkpoint_is_quantized_on_its_text(tokens: Tokens, tmp_path: Path) -> None:
    held_out = written(tmp_path / "held", WORDS[:40])
    source = dataclasses.replace(checkpoint(vocab=257), origin={"tokens": tokens.fingerprint})
    saved: list[QuantizeProgress] = []
    spec = QuantSpec(rate=3.0, search=0, tune_steps=1, calibration_tokens=2048, report_tokens=512)
    found = quantize_on(source, spec, tokens, held_out, save=saved.append)
    assert quality_of(found).tokens == 512
    table = found.weights["table"]
    assert isinstance(table, TrellisWeight)
    assert table.stored is None  # random rows have nothing in common
    assert quantize_on(source, spec, tokens, held_out, resume=saved[-1]) == found
