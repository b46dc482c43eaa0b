"""SuperBPE: what is learnt and how text is encoded are what the definition says."""

import random
from collections import Counter
from itertools import pairwise

import pytest

from segpt.data.bpe.as_tokenizer import bpe_model
from segpt.data.bpe.model import BpeModel
from segpt.data.bpe.superbpe import SMALLEST, may_merge, train_superbpe
from segpt.data.tokenizer import load
from segpt.errors import DataError
from segpt.values import Tokenizer

pytest.importorskip("tokenizers")
pytestmark = pytest.mark.slow

VOCAB = 310
TRANSITIONS = (SMALLEST, 290, VOCAB)
WORDS = [
    "the",
    "of",
    "in",
    "and",
    "cat",
    "dog",
    "sees",
    "runs",
    "don't",
    "12",
    "345",
    "aaaa",
    "a:",
    "(b)",
    "über\nif\n\n",
    "",
    "",
    "",
    "x",
    "====",
    "一二",
]


def texts(count: int = 12, seed: int = 0) -> list[bytes]:
    draw = random.Random(seed)
    weights = [1 / (i + 1) for i in range(len(WORDS))]
    return [" ".join(draw.choices(WORDS, weights, k=60)).encode() for _ in range(count)]


def trained(transition: int) -> Tokenizer:
    return train_superbpe(texts(), VOCAB, transition=transition)


def replaced(ids: list[int], pair: tuple[int, int], made: int) -> list[int]:
    out: list[int] = []
    place = 0
    while place < len(ids):
        if tuple(ids[place : place + 2]) == pair:
            out.append(made)
            place += 2
        else:
            out.append(ids[place])
            place += 1
    return out


def encoded(model: BpeModel, document: bytes) -> list[int]:
    """By the definition: the earliest merge that fits, leftmost first, until none fits."""
    ranks = {(a, b): rank for rank, (a, b) in reversed([*enumerate(model.merges.tolist())])}
    ids = list(document)
    while fits := [(ranks[p], i) for i, p in enumerate(pairwise(ids)) if p in ranks]:
        _, i = min(fits)
        ids[i : i + 2] = [model.normal[model.pieces[ids[i]] + model.pieces[ids[i + 1]]]]
    return ids


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_superwords_are_those_of_the_definition(transition: int) -> None:
    model = bpe_model(trained(transition))
    pieces = list(model.pieces[:transition])
    pairs = [
        (a, b)
        for a, b in model.merges.tolist()
        if model.normal[model.pieces[a] + model.pieces[b]] < transition
    ]
    stage_1 = BpeModel(
        tuple(pieces), model.merges[: len(pairs)], "none", model.start, control=model.control
    )
    streams = [encoded(stage_1, text) for text in texts()]
    while len(pieces) < VOCAB:
        counts = Counter(pair for ids in streams for pair in pairwise(ids))
        fit = [
            (-count, pair)
            for pair, count in counts.items()
            if (made := pieces[pair[0]] + pieces[pair[1]]) not in pieces and may_merge(made)
        ]
        _, pair = min(fit)
        streams = [replaced(ids, pair, len(pieces)) for ids in streams]
        pieces.append(pieces[pair[0]] + pieces[pair[1]])
        pairs.append(pair)
    assert tuple(pieces) == model.pieces
    assert [list(pair) for pair in pairs] == model.merges.tolist()
    assert [load(trained(transition)).encode(text).tolist() for text in texts()] == streams


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_encoding_is_that_of_the_definition(transition: int) -> None:
    tokenizer = trained(transition)
    codec, model = load(tokenizer), bpe_model(tokenizer)
    for text in [*texts(seed=1), b"", b"a", b"aaaaaaa", b"  the of\n\n  the of"]:
        assert codec.encode(text).tolist() == encoded(model, text)


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_any_bytes_come_back(transition: int) -> None:
    codec = load(trained(transition))
    draw = random.Random(0)
    for document in [bytes(range(256)), draw.randbytes(999), *texts(3, seed=2), b"<|endoftext|>"]:
        ids = codec.encode(document)
        assert codec.decode(ids) == document
        assert codec.sizes[ids].sum() == len(document)
    assert codec.lossless
    assert codec.vocab == VOCAB


def test_training_repeats_itself_whatever_the_order_of_the_text() -> None:
    first = trained(290)
    assert first == trained(290)
    assert first == train_superbpe(texts()[::-1], VOCAB, transition=290)


def test_pieces_go_across_words_from_the_transition_on() -> None:
    pieces = bpe_model(trained(290)).pieces
    words = [len(piece.split()) for piece in pieces]
    assert max(words[:290]) == 1
    assert 1 < max(words[290:]) <= 4
    assert all(map(may_merge, pieces[290:]))


def test_earlier_transitions_give_fewer_tokens_than_words_do() -> None:
    early, late = (load(trained(transition)) for transition in (290, VOCAB))
    fewer = sum(len(early.encode(text)) for text in texts(seed=3))
    assert fewer < sum(len(late.encode(text)) for text in texts(seed=3))


@pytest.mark.parametrize(
    ("piece", "allowed"),
    [
        (b" of the", True),
        (b" one two three four", True),
        (b" one two three four five", False),
        (b" of the ", False),
        (b"    ", True),
        (b"the answer:", True),
        (b": the", False),
        (b"a\nb", False),
        (b"=" * 65, False),
    ],
)
def test_which_superwords_there_are(piece: bytes, *, allowed: bool) -> None:
    assert may_merge(piece) == allowed


@pytest.mark.parametrize(
    ("vocab", "transition", "pattern", "message"),
    [
        (256, None, "gpt2", "at least 257"),
        (300, 256, "gpt2", "between 257 and 300"),
        (300, 301, "gpt2", "between 257 and 300"),
        (300, None, "gpt3", "'gpt3'"),
        (9000, 8000, "gpt2", "within words"),
        (9000, 300, "gpt2", "smaller vocabulary"),
    ],
)
def test_what_cannot_be_learnt_is_refused(
    vocab: int, transition: int | None, pattern: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        train_superbpe(texts(), vocab, transition=transition, pattern=pattern)


def test_without_a_vocabulary_the_text_decides() -> None:
    assert SMALLEST < train_superbpe(texts()).vocab < 512


def test_runs_of_few_letters_are_encoded_by_the_definition() -> None:
    draw = random.Random(0)
    documents = ["".join(draw.choices("ab", k=80)).encode() for _ in range(40)]
    tokenizer = train_superbpe(documents, 330, transition=SMALLEST)
    codec, model = load(tokenizer), bpe_model(tokenizer)
    assert len(set(model.pieces)) == 330
    for document in documents[:10]:
        assert codec.encode(document).tolist() == encoded(model, document)
