"""Our tokenizers: any bytes survive, and the merge table is the trained model, token for token."""

import io
import random
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from segpt.data import merges, modelproto
from segpt.data.corpus import builtin
from segpt.data.modelproto import BPE, Kind, SentencePieceModel, VocabularyPiece
from segpt.data.sentencepiece import train
from segpt.data.tokenizer import BYTES, SMALLEST, Codec, from_model_file, load, train_bpe
from segpt.errors import DataError
from segpt.values import Tokenizer

FRAGMENTS: list[str | bytes] = [
    *(b"\xe2\x96\x81", b"\xe2\x96\x85", b"\xe2\x81\x87", b"\xef\xbf\xbd", b"\xef\xbb\xbf"),
    *(b"\0", b"\r\n", b"\r", b"\n\n    ", b"\t", b" ", b"   ", b"\x7f", b"\x1b[0m", b"\x85"),
    *(b"\xff", b"\x80", b"\xc3", b"\xe2\x96", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80"),
    *(b"<s>", b"<unk>", b"</s>", b"<0x41>", b"<|endoftext|>", b"the ", b"    def f(self):\n"),
    *(
        "e\u0301",
        "é",
        "ｱ",
        "ﬁ½",
        "日本語",
        "한국",
        "👩‍👩‍👧",
        "🏳️\u200d🌈",
        "\u202eabc",
        "\u2028",
        "ß",
    ),
    *("नमस्ते", "\u0600", "\ud7ff", "\ue000", "\U0010ffff", "12345", "0.5e-3", "http://a.b/?c=d"),
]
PARTS: list[bytes] = [f.encode() if isinstance(f, str) else f for f in FRAGMENTS]

any_document = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=40).map(str.encode),
    st.lists(st.sampled_from(PARTS), max_size=12).map(b"".join),
)


@cache
def trained() -> Tokenizer:
    return train_bpe(builtin("train"), 1024)


@cache
def codec() -> Codec:
    return load(trained())


def assert_survives(codec: Codec, document: bytes) -> None:
    ids = codec.encode(document)
    assert codec.decode(ids) == document
    assert codec.sizes[ids].sum() == len(document)
    assert codec.start not in ids
    previous = np.concatenate([[codec.start], ids])[:-1]
    assert codec.piece_bytes(previous, ids).sum() == len(document)


@pytest.mark.slow
@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(any_document)
def test_any_bytes_survive(document: bytes) -> None:
    assert_survives(codec(), document)
    assert_survives(load(BYTES), document)


def test_random_mixtures_survive() -> None:
    draw = random.Random(0)
    for _ in range(5_000):
        assert_survives(codec(), b"".join(draw.choices(PARTS, k=draw.randrange(12))))


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC"])
def test_normal_forms_are_told_apart(form: str) -> None:
    text = unicodedata.normalize(form, "Ångström ﬁn ½ naïve ｶﾞ")  # type: ignore[arg-type]
    assert_survives(codec(), text.encode())


def test_every_code_point_survives() -> None:
    planes = [*range(0xD800), *range(0xE000, 0x30000), *range(0xE0000, 0xE1000), 0x10FFFF]
    assert_survives(codec(), "".join(map(chr, planes)).encode())


@pytest.mark.parametrize("odd", [b"\0", b"\xff", b"\xe2\x96\x81", b"\xe2\x96\x85", b"\xed\xa0\x80"])
def test_one_odd_byte_does_not_spell_out_the_document(odd: bytes) -> None:
    plain = b"The quick brown fox jumps over the lazy dog. " * 5
    assert len(codec().encode(plain + odd + plain)) <= 2 * len(codec().encode(plain)) + len(odd) + 2


@pytest.mark.slow
def test_long_documents_encode_as_if_at_once() -> None:
    document = b" ".join(builtin("validation")) * 2
    model = modelproto.write(merges.unpack(trained().payload, 1024))
    whole = sentencepiece.SentencePieceProcessor(model_proto=model).encode(document.decode())
    assert codec().encode(document).tolist() == whole
    assert_survives(codec(), b"x" * 300_000 + " é".encode() * 100_000)


@pytest.mark.slow
def test_the_merge_table_is_the_trained_model_token_for_token() -> None:
    model = train(builtin("train"), 1024)
    assert merges.unpack(merges.pack(model), 1024).pieces == model.pieces
    library = sentencepiece.SentencePieceProcessor(model_proto=modelproto.write(model))
    ours = load(Tokenizer("merges", 1024, merges.pack(model)))
    documents = [d for d in builtin("train") if b"\xe2\x96\x81" not in d][::4]
    assert sum(map(len, documents)) > 500_000
    for document in documents:
        assert ours.encode(document).tolist() == library.encode(document.decode())


def test_a_model_read_and_written_is_the_model() -> None:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words and some more words"] * 9),
        model_writer=written,
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
    )
    model = modelproto.read(written.getvalue())
    assert modelproto.read(modelproto.write(model)) == model
    library = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    pieces = [library.id_to_piece(i) for i in range(library.get_piece_size())]
    assert [piece.text for piece in model.pieces] == pieces
    assert [piece.score for piece in model.pieces] == [
        library.get_score(i) for i in range(len(pieces))
    ]


@pytest.mark.slow
def test_learning_is_deterministic_and_spells_well() -> None:
    again = train_bpe(builtin("train"), 1024)
    assert again == trained()
    assert again.fingerprint == trained().fingerprint
    documents = list(builtin("validation"))
    tokens = sum(len(codec().encode(document)) for document in documents)
    assert sum(map(len, documents)) / tokens > 2.2
    assert len(trained().payload) < 3_000


def test_newlines_and_runs_of_spaces_are_learnt() -> None:
    assert len(codec().encode(b"\n\n")) == 1
    assert len(codec().encode(b" " * 8)) == 1


def test_a_text_without_spaces_still_has_a_piece_for_one() -> None:
    tokenizer = train_bpe([b"abababab", b"abcabc"], 265)
    assert load(tokenizer).encode(b" ").tolist() != load(BYTES).encode(b" ").tolist()
    assert len(load(tokenizer).encode(b" ")) == 1


def test_pieces_that_no_merge_makes_are_spelled_out() -> None:
    texts = ["ab", "cde", "abc", "▁x▁", "a", "b", "c", "d", "e", "x", "▁"]
    head = load(BYTES).vocab + 1
    base = merges.unpack(trained().payload, 1024).pieces[:head]
    pieces = (*base, *(VocabularyPiece(t, -float(i)) for i, t in enumerate(texts)))
    model = SentencePieceModel(
        pieces=pieces, algorithm=BPE, byte_fallback=True, dummy_prefix=False, squeeze_spaces=False
    )
    payload = merges.pack(model)
    assert merges.unpack(payload, len(pieces)) == model
    assert_survives(load(Tokenizer("merges", len(pieces), payload)), b"abc cde x  x abcde")


@pytest.mark.parametrize(
    ("documents", "vocab", "problem"),
    [
        ([b"hello world"], SMALLEST - 1, f"at least {SMALLEST}"),
        ([b"hello world"], 265, "no room for the characters.*at least 266"),
        ([b"hello world"], 5000, "yields only 284 of 5,000"),
        ([], 300, "no text to learn"),
        ([b"\0\xff\xe2\x96\x81"], 300, "no text to learn"),
    ],
)
def test_texts_that_do_not_support_the_vocabulary(
    documents: list[bytes], vocab: int, problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        train_bpe(documents, vocab)


def test_long_texts_are_sampled_the_same_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segpt.data.tokenizer.SAMPLE", 200_000)
    documents = list(builtin("train"))
    whole = train_bpe(documents[:100], 400)
    sampled = train_bpe(documents, 400)
    assert sampled == train_bpe(documents[::-1], 400) != whole
    codec = load(sampled)
    ids = sum(len(codec.encode(document)) for document in documents[::20])
    assert sum(map(len, documents[::20])) / ids > 1.3


@pytest.mark.parametrize("wrong", [-1, 1024, 2**40])
def test_ids_outside_the_vocabulary_are_refused(wrong: int) -> None:
    for codec in (load(trained()), load(BYTES)):
        with pytest.raises(DataError, match="outside the vocabulary"):
            codec.decode([5, wrong])


@pytest.mark.parametrize(
    "tokenizer",
    [
        Tokenizer("bytes", 256),
        Tokenizer("bytes", 257, b"x"),
        Tokenizer("merge", 300, b""),
        Tokenizer("merges", 300, b""),
        Tokenizer("merges", 259, b"x\0"),
        Tokenizer("merges", 260, b"  \0"),
        Tokenizer("merges", 300, b" a\0"),
        Tokenizer("sentencepiece", 300, b""),
    ],
)
def test_damaged_tokenizers_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError):
        load(tokenizer)


def test_a_merge_table_cannot_spell_gigabytes() -> None:
    """Each piece doubles the one before: 20 merges would make a piece of a megabyte."""
    pairs = [(max(0, n - 1), max(0, n - 1)) for n in range(2, 22)]
    planes = np.array(pairs, dtype="<u2").T
    payload = b"a \0" + b"".join(
        (side >> s & 255).astype("u1").tobytes() for side in planes for s in (0, 8)
    )
    with pytest.raises(DataError, match="damaged merge table"):
        load(Tokenizer("merges", 258 + 2 + 20, payload))


def test_kinds_of_pieces_are_those_of_the_library() -> None:
    model = merges.unpack(trained().payload, 1024)
    library = sentencepiece.SentencePieceProcessor(model_proto=modelproto.write(model))
    for i, piece in enumerate(model.pieces):
        assert library.is_byte(i) == (piece.kind is Kind.BYTE)
        assert library.is_control(i) == (piece.kind is Kind.CONTROL)
    assert library.bos_id() == codec().start == 1
    assert (library.eos_id(), library.pad_id(), library.unk_id()) == (-1, -1, 0)


def test_a_missing_model_file_is_named() -> None:
    with pytest.raises(DataError, match=r"none\.model.*give an intact"):
        from_model_file(Path("none.model"))
