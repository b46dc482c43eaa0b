"""SuperBPE: byte-pair encoding that goes on across words (Liu et al., arXiv 2503.13423).

Stage 1 learns merges within words, as usual. From the transition on, stage 2 learns merges of what
stands side by side in a line, so that " of the" can become one piece. Text is encoded by all merges
in their order, over the whole document.
"""

import heapq
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from segpt.data.tokenizer import TextSample, vocab_for
from segpt.errors import DataError
from segpt.values import Tokenizer

from .as_tokenizer import from_bpe
from .codec import BpeCodec, build
from .model import BpeModel, from_letters
from .patterns import PATTERNS

PATTERN: Final = "gpt2"
START: Final = 256
SMALLEST: Final = 257  # the 256 bytes and the start
MOST_WORDS: Final = 4  # of a superword
MOST_BYTES: Final = 64  # of any piece that is learnt

_GAP: Final = -1  # between documents
_START_TEXT: Final = b"<|endoftext|>"

Pair = tuple[int, int]


def train_superbpe(
    text: Iterable[bytes],
    vocab: int | None = None,
    *,
    transition: int | None = None,
    pattern: str = PATTERN,
) -> Tokenizer:
    """Learn a lossless SuperBPE tokenizer of ``vocab`` ids; the same text gives the same one.

    Ids are the 256 bytes, the start, and the pieces in the order in which they are learnt.

    Args:
        text: Documents; of a long text a sample is learnt from, as in ``train_bpe``.
        vocab: How many ids; without it what suits the text, or what it supports.
        transition: How many of them stage 1 makes; without it nine tenths, as in the paper.
        pattern: How stage 1 cuts text into words, of :mod:`segpt.data.bpe.patterns`.

    Raises:
        DataError: if the text does not support this, or an argument is out of range.
    """
    sample = TextSample(text)
    size = vocab_for(sample.size) if vocab is None else vocab
    if size < SMALLEST:
        raise DataError(f"a vocabulary needs at least {SMALLEST} ids, got {size}")
    turn = max(SMALLEST, size * 9 // 10) if transition is None else transition
    if not SMALLEST <= turn <= size:
        raise DataError(f"the transition lies between {SMALLEST} and {size} ids, got {turn}")
    if pattern not in PATTERNS:
        known = ", ".join(PATTERNS)
        raise DataError(f"no way to cut text into words is called {pattern!r}; there are {known}")
    texts = [part.decode("utf-8", "ignore") for part in sample.parts]
    words = _learn_words(texts, turn, pattern)
    if vocab is not None and len(words.pieces) < turn:
        raise DataError(
            f"the text supports {len(words.pieces)} ids within words, not {turn}; "
            "give more text or an earlier transition"
        )
    model = _learn_superwords(words, texts, size)
    if vocab is not None and len(model.pieces) < vocab:
        raise DataError(
            f"the text supports {len(model.pieces)} ids, not {vocab}; "
            "give more text or a smaller vocabulary"
        )
    return from_bpe(model)


def may_merge(piece: bytes) -> bool:
    """Whether stage 2 may make a piece.

    It has at most four words of one line. It does not end in a space after a word, and goes on
    after no colon: prompts end there, and a piece that goes on would never follow them.
    """
    return (
        len(piece) <= MOST_BYTES
        and b"\n" not in piece
        and b":" not in piece[:-1]
        and len(piece.split()) <= MOST_WORDS
        and not (piece.endswith(b" ") and piece.strip())
    )


def _learn_words(texts: Sequence[str], turn: int, pattern: str) -> BpeModel:
    """Stage 1: merges within words, up to ``turn`` ids."""
    alphabet = (*(bytes([byte]) for byte in range(256)), _START_TEXT)
    library = build(_model(alphabet, [], pattern))
    from tokenizers import pre_tokenizers, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=turn - 1,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=MOST_BYTES + 1,  # the library excludes it
    )
    library.train_from_iterator(texts, trainer)
    spelled: list[tuple[str, str]] = [
        (left, right) for left, right in json.loads(library.to_str())["model"]["merges"]
    ]
    ids = {piece: i for i, piece in enumerate(alphabet) if i != START}
    pairs: list[Pair] = []
    for left, right in spelled:
        a, b = from_letters(left) or b"", from_letters(right) or b""
        pairs.append((ids[a], ids[b]))
        ids.setdefault(a + b, len(ids) + 1)  # the start has an id, too
    pieces = [*ids]
    return _model((*pieces[:START], _START_TEXT, *pieces[START:]), pairs, "none")


def _learn_superwords(words: BpeModel, texts: Iterable[str], size: int) -> BpeModel:
    """Stage 2: merges within lines, up to ``size`` ids or until no pair occurs twice.

    The most frequent pair comes first, of several the one of the smallest ids. A piece that
    another pair has made is not made again: so the merges before this one change nothing that it
    makes, and their order is all that encoding needs.
    """
    pieces, pairs = list(words.pieces), [(a, b) for a, b in words.merges.tolist()]
    known = set(pieces)
    if len(pieces) < size:
        codec = BpeCodec(words)
        gap = np.array([_GAP])
        parts = [part for text in texts for part in (codec.encode(text.encode()), gap)]
        stream = _Stream(np.concatenate([gap, *parts]).astype(np.int64))
        for left, right in stream.frequent():
            made = pieces[left] + pieces[right]
            if made in known or not may_merge(made):
                continue
            stream.merge((left, right), len(pieces))
            pairs.append((left, right))
            pieces.append(made)
            known.add(made)
            if len(pieces) == size:
                break
    return _model(tuple(pieces), pairs, "none")


def _model(pieces: tuple[bytes, ...], pairs: list[Pair], pattern: str) -> BpeModel:
    merges = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return BpeModel(pieces, merges, pattern, START, control=frozenset({START}))


class _Stream:
    """Ids side by side, and how often each pair of them is; merging keeps the counts up to date."""

    def __init__(self, ids: NDArray[np.int64]) -> None:
        """Count the pairs of ``ids``, (length,), which begin and end with a gap."""
        self._ids: list[int] = ids.tolist()
        self._before = list(range(-1, len(ids) - 1))
        self._after = list(range(1, len(ids) + 1))
        self._places: defaultdict[Pair, list[int]] = defaultdict(list)
        left, right = ids[:-1], ids[1:]
        inside = np.flatnonzero((left != _GAP) & (right != _GAP))
        for place, a, b in zip(
            inside.tolist(), left[inside].tolist(), right[inside].tolist(), strict=True
        ):
            self._places[a, b].append(place)
        self._counts = {pair: len(places) for pair, places in self._places.items()}
        self._queue = [(-count, pair) for pair, count in self._counts.items() if count > 1]
        heapq.heapify(self._queue)

    def frequent(self) -> Iterator[Pair]:
        """The pairs that occur twice or more, the most frequent first, each once."""
        while self._queue:
            count, pair = heapq.heappop(self._queue)
            current = self._counts[pair]
            if current == -count:
                yield pair
            elif current > 1:
                heapq.heappush(self._queue, (-current, pair))

    def merge(self, pair: Pair, made: int) -> None:
        """Replace each ``pair``, from left to right, by the new id ``made``."""
        ids, before, after, counts = self._ids, self._before, self._after, self._counts
        fresh: set[Pair] = set()
        for place in sorted(self._places.pop(pair)):
            second = after[place]
            if ids[place] != pair[0] or ids[second] != pair[1]:
                continue  # an earlier merge took one of them
            first, last = before[place], after[second]
            ids[place], ids[second] = made, _GAP
            after[place], before[last] = last, place
            counts[pair] -= 1
            for old, new, start in (
                ((ids[first], pair[0]), (ids[first], made), first),
                ((pair[1], ids[last]), (made, ids[last]), place),
            ):
                if _GAP not in old:
                    counts[old] -= 1
                    counts[new] = counts.get(new, 0) + 1
                    self._places[new].append(start)
                    fresh.add(new)
        for new in fresh:
            if counts[new] > 1:
                heapq.heappush(self._queue, (-counts[new], new))
