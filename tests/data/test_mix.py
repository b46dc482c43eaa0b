"""A mix keeps the shares of its sources, repeats nothing, and goes on exactly where it stopped."""

from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpt.data.batches import Order
from segpt.data.interleaving import Interleaving
from segpt.data.mix import Mix, MixedBlocks, MixedSource, MixLog, record_of
from segpt.data.tokenizer import BYTES
from segpt.data.tokens import write_tokens
from segpt.errors import DataError
from segpt.values import Text, Tokens

CONTEXT = 8
WEIGHTS = (Fraction(5, 11), Fraction(3, 11), Fraction(2, 11), Fraction(1, 11))


def text_of(folder: Path, name: str, size: int) -> Tokens:
    """A text whose every document is its own."""
    documents = [f"{name} {i} says {i * 7 % 31} once more".encode() for i in range(size)]
    text = Text(name, partial(iter, documents))
    return write_tokens(text, BYTES, folder / name, split="train")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[Tokens]:
    folder = tmp_path_factory.mktemp("mix")
    return [text_of(folder, name, 30 + 9 * i) for i, name in enumerate("abcd")]


def mix_of(texts: list[Tokens], *limits: int | None) -> Mix:
    parts = zip("abcd", texts, WEIGHTS, limits or (None,) * 4, strict=True)
    return Mix(tuple(MixedSource(*part) for part in parts))


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=7), st.integers(0, 3))
def test_every_prefix_is_less_than_a_block_from_every_share(parts: list[int], seed: int) -> None:
    shares = [Fraction(part, sum(parts)) for part in parts]
    walk, counts = Interleaving(shares, seed), [0] * len(parts)
    for position in range(1, 2 * sum(parts) + 1):
        counts[walk.next()] += 1
        assert all(abs(n - share * position) < 1 for n, share in zip(counts, shares, strict=True))
    assert counts == [2 * part for part in parts]


def test_the_seed_decides_among_equals() -> None:
    shares = [Fraction(1, 4)] * 4
    orders = set()
    for seed in range(8):
        walk = Interleaving(shares, seed)
        orders.add(tuple(walk.next() for _ in range(4)))
    assert len(orders) > 1
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)


@pytest.mark.parametrize("order", ["shuffled", "sequential"])
def test_no_sample_repeats_and_the_ledger_proves_the_shares(
    texts: list[Tokens], order: Order
) -> None:
    blocks = MixedBlocks(mix_of(texts), CONTEXT, seed=3, order=order)
    most = next(n for n in range(1, 10_000) if not blocks.has_enough(n)) - 1
    log = record_of(blocks)
    assert isinstance(log, MixLog)
    met = set()
    for first in range(most):
        place = blocks.places(first, 1)
        met.add((int(place[0, 0]), int(place[0, 2])))
        log.record(place)
        for share, count in zip(WEIGHTS, log.counts, strict=True):
            assert abs(count - share * (first + 1)) < 1
    assert len(met) == most == log.blocks
    coverage = log.coverage()
    assert set(coverage.times) <= {"0", "1"}
    assert coverage.distinct == most * CONTEXT
    assert [each.blocks for each in coverage.sources] == log.counts
    blocks.check_enough(most)
    with pytest.raises(DataError, match=r"needs \d+ tokens more of \w than it gives"):
        blocks.check_enough(most + 1)
    with pytest.raises(DataError, match=r"^a: targets from .* trained on twice"):
        log.record(np.array([[0, 0, min(start for source, start in met if source == 0)]]))


def test_blocks_never_cross_sources(texts: list[Tokens]) -> None:
    blocks = MixedBlocks(mix_of(texts), CONTEXT, seed=3)
    places, rows = blocks.places(0, 200), blocks.take(0, 200)
    for (source, _, start), row in zip(places.tolist(), rows, strict=True):
        own = blocks.sources[source].stream.slice(start, start + CONTEXT + 1)
        assert (row == own).all()


def test_places_are_a_function_of_the_number(texts: list[Tokens]) -> None:
    mix = mix_of(texts)
    whole = MixedBlocks(mix, CONTEXT, seed=3).places(0, 600)
    again, log = MixedBlocks(mix, CONTEXT, seed=3), record_of(MixedBlocks(mix, CONTEXT, seed=3))
    for first, count in ((590, 10), (0, 7), (7, 200), (7, 200), (207, 1), (3, 40)):
        assert (again.places(first, count) == whole[first : first + count]).all()
    log.record(whole[:333])
    assert isinstance(log, MixLog)
    resumed, restored = MixedBlocks(mix, CONTEXT, seed=3), MixLog(MixedBlocks(mix, CONTEXT, seed=3))
    restored.restore(log.state())
    assert restored.coverage() == log.coverage()
    resumed.restore(restored.counts)
    assert (resumed.places(333, 100) == whole[333:433]).all()
    with pytest.raises(DataError, match="of another mix"):
        resumed.restore([333, 0, 0, 0])


def test_the_order_within_a_source_does_not_depend_on_the_others(texts: list[Tokens]) -> None:
    first = MixedBlocks(mix_of(texts), CONTEXT, seed=3)
    two = (
        MixedSource("d", texts[3], Fraction(9, 10)),
        MixedSource("a", texts[0], Fraction(1, 10)),
    )
    other = MixedBlocks(Mix(two), CONTEXT, seed=3)
    assert (first.sources[0].places(0, 50) == other.sources[1].places(0, 50)).all()


@pytest.mark.parametrize("order", ["shuffled", "sequential"])
def test_a_quota_is_read_whole_and_no_further(texts: list[Tokens], order: Order) -> None:
    mix = mix_of(texts, 400, 240, 160, 80)
    blocks = MixedBlocks(mix, CONTEXT, seed=3, order=order)
    assert [own.epoch_blocks for own in blocks.sources] == [50, 30, 20, 10]
    assert blocks.has_enough(110)
    assert not blocks.has_enough(111)
    places = blocks.places(0, 110)
    for source, limit in enumerate((400, 240, 160, 80)):
        own = places[places[:, 0] == source]
        assert len(np.unique(own[:, 2])) == len(own) == limit // CONTEXT
        assert own[:, 2].max() + CONTEXT <= limit + CONTEXT
    assert any("1.00 epochs" in line for line in blocks.lines(110))
    assert all("it repeats" in line for line in blocks.lines(220))


def test_texts_that_do_not_belong_together_are_refused(texts: list[Tokens], tmp_path: Path) -> None:
    same = (MixedSource("a", texts[0], Fraction(1, 2)), MixedSource("b", texts[0], Fraction(1, 2)))
    with pytest.raises(DataError, match="are the same text"):
        Mix(same)
    mix = mix_of(texts)
    assert mix.repeated() == 0
    assert mix.shared_with(texts[2]) == {"c": texts[2].documents.size}
    names = dict(zip("abcd", mix.sources, strict=True))
    turned = Mix(tuple(names[name] for name in "badc"))
    assert turned.fingerprint != mix.fingerprint == mix_of(texts).fingerprint
    doubled = write_tokens(
        Text("e", lambda: iter([b"a 1 says 7 once more", b"e " * 40])),
        BYTES,
        tmp_path / "e",
        split="train",
    )
    both = (MixedSource("a", texts[0], Fraction(1, 2)), MixedSource("e", doubled, Fraction(1, 2)))
    with pytest.raises(DataError, match="1 documents are in more than one source"):
        MixedBlocks(Mix(both), CONTEXT, seed=3).check_enough(1)
