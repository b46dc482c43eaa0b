"""The record of what a run has trained on proves itself, and counts every target."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segpt.data.batches import Blocks, Order
from segpt.data.ledger import CoverageLog
from segpt.data.tokens import Stream
from segpt.errors import DataError


def blocks_of(targets: int, context: int, order: Order, seed: int = 3) -> Blocks:
    return Blocks(Stream([np.arange(targets + 1)], vocab=targets + 1), context, seed, order)


def ledger_of(blocks: Blocks) -> CoverageLog:
    return CoverageLog(blocks.targets, blocks.context, blocks.epoch_blocks)


def places(*pairs: tuple[int, int]) -> NDArray[np.int64]:
    return np.array(pairs, np.int64).reshape(-1, 2)


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    st.integers(1, 20),
    st.integers(1, 300),
    st.integers(0, 60),
    st.sampled_from(["shuffled", "sequential"]),
)
def test_counts_are_those_of_the_targets_themselves(
    context: int, more: int, count: int, order: Order
) -> None:
    blocks = blocks_of(context + more, context, order)
    ledger = ledger_of(blocks)
    seen = np.zeros(blocks.targets, np.int64)
    for first in range(count):
        (row,) = blocks.take(first, 1)
        seen[row[1:] - 1] += 1  # ids are places: the target of place 0 is token 1
        ledger.record(blocks.places(first, 1))
    expected = np.bincount(seen)
    assert ledger.times() == {n: int(c) for n, c in enumerate(expected) if c}
    assert ledger.tokens == seen.sum() == count * context
    assert ledger.coverage().distinct == (seen > 0).sum()
    epochs = count // blocks.epoch_blocks
    assert ledger.left_out == epochs * (blocks.targets - blocks.epoch_blocks * context)


@pytest.mark.parametrize("order", ["shuffled", "sequential"])
def test_the_digest_and_the_state_do_not_depend_on_batches(order: Order) -> None:
    blocks = blocks_of(1003, 8, order)
    at_once, in_parts = ledger_of(blocks), ledger_of(blocks)
    at_once.record(blocks.places(0, 300))  # two epochs and a half
    for first, count in ((0, 7), (7, 200), (207, 1)):
        in_parts.record(blocks.places(first, count))
        state, in_parts = in_parts.state(), ledger_of(blocks)
        in_parts.restore(state)
    assert in_parts.digest != at_once.digest
    in_parts.record(blocks.places(208, 92))
    assert in_parts.digest == at_once.digest
    assert in_parts.coverage() == at_once.coverage()
    assert at_once.in_order is (order == "sequential")


@pytest.mark.parametrize(
    ("before", "again", "match"),
    [
        # a file that begins again repeats its samples, and nobody notices
        ([(0, 0), (0, 8)], [(0, 8)], "targets from 8 on would be trained on twice in epoch 0"),
        ([], [(0, 16), (0, 16)], "targets from 16 on"),
        ([(0, 0)], [(0, 4)], "targets from 4 on"),  # half of each
        ([(0, 0), (1, 8)], [(0, 16)], "over"),
        ([], [(1, 0), (0, 0)], "over"),
        ([], [(0, 96)], "does not lie in the text"),
    ],
)
def test_a_target_that_comes_twice_in_an_epoch_is_refused(
    before: list[tuple[int, int]], again: list[tuple[int, int]], match: str
) -> None:
    ledger = CoverageLog(100, 8, 12)
    ledger.record(places(*before))
    with pytest.raises(DataError, match=match):
        ledger.record(places(*again))
    assert ledger.blocks == len(before)


def test_another_epoch_may_take_it_again_elsewhere() -> None:
    ledger = CoverageLog(100, 8, 12)
    ledger.record(places((0, 0), (0, 8), (1, 4)))
    assert ledger.times() == {0: 84, 1: 8, 2: 8}
    assert [tuple(run) for run in ledger.runs()] == [(0, 0, 16), (1, 4, 12)]


def test_a_text_that_is_too_short_is_refused_with_what_is_missing() -> None:
    blocks = blocks_of(1003, 10, "sequential")
    blocks.check_enough(100)
    with pytest.raises(DataError, match=r"1,040 tokens.* needs 40 more than the 1,000"):
        blocks.check_enough(104)
