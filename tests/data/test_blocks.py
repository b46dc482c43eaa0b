"""Batches depend on seed and step alone, and an epoch leaves no block out nor takes one twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpt.data.batches import Blocks, Order, sequential
from segpt.data.tokens import Stream
from segpt.errors import DataError


def counting(length: int) -> Stream:
    """A stream whose ids are their own positions, in two parts."""
    ids = np.arange(length)
    return Stream([ids[: length // 3], ids[length // 3 :]], vocab=length)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 40), st.integers(2, 400), st.integers(0, 2**32), st.integers(1, 9))
def test_an_epoch_visits_every_block_once(context: int, length: int, seed: int, size: int) -> None:
    if length <= context:
        return
    blocks = Blocks(counting(length), context, seed)
    epoch = blocks.epoch_blocks
    rows = np.concatenate([blocks.batch(step, size) for step in range(-(-3 * epoch // size))])
    assert (np.diff(rows, axis=1) == 1).all()
    for start in range(0, 3 * epoch, epoch):
        firsts = np.sort(rows[start : start + epoch, 0])
        assert (np.diff(firsts) == context).all()
        left_out = length - 1 - epoch * context
        assert 0 <= firsts[0] <= left_out
        assert left_out < 2 * context


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    stream = counting(1000)
    running = Blocks(stream, 16, seed=5)
    batches = [running.batch(step, 7) for step in range(40)]
    for step in (39, 0, 17, 18, 3):
        assert np.array_equal(Blocks(stream, 16, seed=5).batch(step, 7), batches[step])
        assert np.array_equal(running.batch(step, 7), batches[step])
        assert not np.array_equal(Blocks(stream, 16, seed=6).batch(step, 7), batches[step])
    assert batches[0].shape == (7, 17)
    assert batches[0].dtype == np.int64


def test_epochs_differ_in_order_and_in_where_they_cut() -> None:
    blocks = Blocks(counting(1000), 16, seed=0)
    epochs = [blocks.batch(epoch, blocks.epoch_blocks)[:, 0] for epoch in range(12)]
    assert len({int(firsts[0]) // 16 for firsts in epochs}) > 6
    assert len({int(firsts[0]) % 16 for firsts in epochs}) > 6


def test_every_target_is_seen_in_the_long_run() -> None:
    blocks = Blocks(counting(200), 16, seed=0)
    rows = [blocks.batch(epoch, blocks.epoch_blocks) for epoch in range(200)]
    assert {int(i) for batch in rows for i in batch[:, 1:].flat} == set(range(1, 200))


def test_resuming_late_is_cheap() -> None:
    blocks = Blocks(counting(10_000), 8, seed=1)
    late = blocks.batch(10**12, 4)
    assert np.array_equal(late, Blocks(counting(10_000), 8, seed=1).batch(10**12, 4))


@pytest.mark.parametrize(
    ("length", "context", "tokens", "blocks"),
    [(101, 10, 1000, 10), (100, 10, 1000, 9), (101, 10, 35, 3), (101, 10, 3, 1), (11, 10, 10, 1)],
)
def test_sequential_blocks_tile_the_front(
    length: int, context: int, tokens: int, blocks: int
) -> None:
    found = list(sequential(counting(length), context, tokens))
    assert len(found) == blocks
    targets = np.concatenate([block[1:] for block in found])
    assert targets.tolist() == list(range(1, blocks * context + 1))
    assert all(block.shape == (context + 1,) for block in found)


@pytest.mark.parametrize(
    ("tokens", "sizes"), [(35, [10, 10, 10, 5]), (30, [10] * 3), (3, [3]), (1000, [10] * 9 + [9])]
)
def test_the_rest_makes_a_shorter_block(tokens: int, sizes: list[int]) -> None:
    # held-out tokens that do not divide are dropped, or another number of them is reported
    found = list(sequential(counting(100), 10, tokens, rest=True))
    assert [len(block) - 1 for block in found] == sizes
    targets = np.concatenate([block[1:] for block in found])
    assert targets.tolist() == list(range(1, min(tokens, 99) + 1))


def test_in_sequence_blocks_come_as_the_stream_lies() -> None:
    blocks = Blocks(counting(107), 10, seed=4, order="sequential")
    assert blocks.epoch_blocks == 10
    rows = blocks.take(0, 23)
    assert rows[:, 0].tolist() == [10 * (i % 10) for i in range(23)]
    assert np.array_equal(rows, Blocks(counting(107), 10, 9, "sequential").take(0, 23))


@pytest.mark.parametrize("order", ["shuffled", "sequential"])
def test_batches_of_any_sizes_draw_the_same_blocks(order: Order) -> None:
    blocks = Blocks(counting(300), 8, 2, order)
    parts = [blocks.take(0, 3), blocks.take(3, 50), blocks.take(53, 1)]
    assert np.array_equal(np.concatenate(parts), Blocks(counting(300), 8, 2, order).take(0, 54))


@pytest.mark.parametrize("length", [0, 1, 10])
def test_a_short_text_is_said_to_be_short(length: int) -> None:
    with pytest.raises(DataError, match=rf"{length} tokens are less than one block.*shorter"):
        Blocks(counting(length), 10, 0)
    with pytest.raises(DataError, match="less than one block"):
        sequential(counting(length), 10, 10)
