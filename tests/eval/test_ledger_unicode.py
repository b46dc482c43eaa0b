"""Random Unicode under every kind of tokenizer: the count is exact, or there is none."""

import io
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sentencepiece

from segpt.data import modelproto
from segpt.data.corpus import builtin
from segpt.data.tokenizer import BYTES, Codec, load, train_bpe
from segpt.errors import ScoreError
from segpt.eval.ledger import EncodedText, account
from segpt.values import Tokenizer

MODELS = Path(__file__).parents[3] / "shared" / "data" / "tokenizers"

FEW, ALL = 3_000, 10_000
COUNTS = [pytest.param(FEW, id="few"), pytest.param(ALL, id="all", marks=pytest.mark.campaign)]

# Code points of each plane that has any, but for surrogates, which text cannot hold.
PLANES = [
    range(0x80),
    range(0x80, 0x800),
    range(0x800, 0xD800),
    range(0xD7F0, 0xD800),
    range(0xE000, 0xE010),
    range(0xE000, 0x10000),
    *(range(plane << 16, plane + 1 << 16) for plane in range(1, 17)),
]
SIGNS = [
    *("\0", "\x01", "\x7f", "\x85", "\xa0", "\xad", "\u2028", "\u2029", "\u3000", "\u200b"),
    *("\ufeff", "\ufffd", "\ufffe", "\uffff", "\ud7ff", "\ue000", "\U0010ffff"),
    *("\u2581", "\u2585", "\u2047", " \u2581", "\u2581 ", "\u2581\u2581"),
    *("\u202a", "\u202e", "\u2066", "\u2069", "\u200e", "\u200f", "\u061c", "שלום", "مرحبا"),
    *("\u0301", "\u0323", "\u0307", "\u0338", "\u20dd", "\u0345", "e\u0301", "é", "ﬁ", "½", "Å"),
    *("👩\u200d👩\u200d👧", "🏳️\u200d🌈", "👍🏽", "🇩🇪", "#️⃣", "\u200d", "\ufe0f"),
    *("\r", "\n", "\r\n", "\n\r", "\r\r\n", "\t", "\v", "\f", "\x1c", "\x1f"),
    *(" ", "  ", "   ", " \n ", "the", " the", " of ", "def f(x):\n    return x", "12345"),
    *("<s>", "</s>", "<unk>", "<pad>", "<0x41>", "한국어", "नमस्ते", "ｶﾞ", "漢字", "\ue001", "\ue004"),
]
BROKEN = [
    *(b"\x80", b"\xbf", b"\xc3", b"\xff", b"\xfe", b"\xe2\x96", b"\xc0\x80", b"\xe0\x80\x80"),
    *(b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80"),
]


def documents(count: int, seed: int = 0) -> Iterator[bytes]:
    """Random documents, of which some are empty, very long, or no UTF-8."""
    draw = random.Random(seed)

    def planes() -> bytes:
        return "".join(chr(draw.choice(draw.choice(PLANES))) for _ in range(length())).encode()

    def plane() -> bytes:
        chosen = draw.choice(PLANES)
        return "".join(chr(draw.choice(chosen)) for _ in range(length())).encode()

    def signs() -> bytes:
        return "".join(draw.choices(SIGNS, k=length())).encode()

    def marks() -> bytes:
        stacked = (chr(draw.randrange(0x300, 0x370)) for _ in range(length()))
        return (draw.choice("aeioun ") + "".join(stacked)).encode()

    def words() -> bytes:
        text = draw.choice(texts())
        begin = draw.randrange(len(text))
        return text[begin : begin + 4 * length()]  # which may cut a character

    def run() -> bytes:
        longest = 20_000 if draw.random() < 0.02 else 300
        return (draw.choice(SIGNS) * draw.randrange(longest)).encode()[:60_000]

    def broken() -> bytes:
        parts = [*(s.encode() for s in draw.choices(SIGNS, k=length())), *draw.choices(BROKEN, k=2)]
        draw.shuffle(parts)
        return b"".join(parts)

    def noise() -> bytes:
        return draw.randbytes(length())

    def length() -> int:
        return draw.choice((0, 1, 2, 5, 12, 30))

    kinds: list[Callable[[], bytes]] = [planes, plane, signs, signs, marks, words, words, run]
    for _ in range(count):
        made = draw.choice([*kinds, broken, noise])()
        around = draw.choice(("", "", "", " ", "\n", "\ufeff", "  "))
        yield around.encode() + made + around.encode()


@cache
def texts() -> list[bytes]:
    return list(builtin("train"))[:80]


def ours(vocab: int) -> Tokenizer:
    return train_bpe(texts(), vocab)


def foreign(data: bytes) -> Tokenizer:
    return Tokenizer("sentencepiece", len(modelproto.read(data).pieces), data)


def made(**options: Any) -> bytes:
    """A model as others make them."""
    written = io.BytesIO()
    usual: dict[str, Any] = {"model_type": "bpe", "vocab_size": 600, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.decode(errors="ignore")[:2_000] for text in texts()]),
        model_writer=written,
        max_sentence_length=10_000,
        minloglevel=2,
        **(usual | options),
    )
    return written.getvalue()


class Case(NamedTuple):
    """A tokenizer; ``file`` is another's that is taken if it is at hand."""

    make: Callable[[], Tokenizer]
    file: str = ""
    lossless: bool = False


CASES = {
    "bytes": Case(lambda: BYTES, lossless=True),
    "400 merges": Case(lambda: ours(400), lossless=True),
    "1500 merges": Case(lambda: ours(1500), lossless=True),
    "normalised": Case(
        lambda: foreign(made(byte_fallback=True, add_dummy_prefix=False)), "sp8192_official"
    ),
    "without bytes": Case(
        lambda: foreign(made(add_dummy_prefix=False, character_coverage=1.0)),
        "sp1024_nfkc_nobytefallback",
    ),
    "prefixed": Case(
        lambda: foreign(
            made(
                byte_fallback=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
            )
        ),
        "sp8192_identity_dummyprefix",
    ),
    "with symbols of its own": Case(
        lambda: foreign(
            made(
                byte_fallback=True,
                add_dummy_prefix=False,
                model_type="unigram",
                user_defined_symbols=["\ue001", "\ue002", "\ue003", "\ue004", "\u2581of"],
            )
        ),
        "sp8192_caseops",
    ),
    "a lossless one of others": Case(
        lambda: foreign(
            made(
                byte_fallback=True,
                add_dummy_prefix=False,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
            )
        ),
        lossless=True,
    ),
}


@cache
def tokenizer(name: str) -> Tokenizer:
    path = MODELS / f"{CASES[name].file}.model"
    return foreign(path.read_bytes()) if path.is_file() else CASES[name].make()


class Tables:
    """The byte tables of a SentencePiece model, from what the library says of each piece."""

    def __init__(self, data: bytes) -> None:
        self.library = library = sentencepiece.SentencePieceProcessor(model_proto=data)
        everything = range(library.get_piece_size())
        self.boundary = [
            library.is_control(i) or library.is_unknown(i) or library.is_unused(i)
            for i in everything
        ]
        self.leading = [
            not self.boundary[i] and library.id_to_piece(i).startswith("\u2581") for i in everything
        ]
        self.base = [self._base(i) for i in everything]

    def _base(self, i: int) -> int:
        if self.boundary[i]:
            return 0
        if self.library.is_byte(i):
            return 1
        rest = self.library.id_to_piece(i).removeprefix("\u2581")
        return len(rest.replace("\u2581", " ").encode())

    def sizes(self, ids: list[int]) -> list[int]:
        """Of each id, after a boundary."""
        before = [True, *(self.boundary[i] for i in ids)]
        return [
            self.base[i] + (self.leading[i] and not boundary)
            for i, boundary in zip(ids, before, strict=False)
        ]


def scored(codec: Codec, document: bytes) -> EncodedText | ScoreError:
    try:
        return account([document], codec)
    except ScoreError as error:
        return error


def must_be_exact(codec: Codec, document: bytes) -> bool:
    found = scored(codec, document)
    if isinstance(found, ScoreError):
        assert not document
        assert "no bytes" in str(found)
        return False
    assert found.denominator == "bytes"
    assert found.bytes == found.raw == len(document)
    assert found.sizes.min() >= 0
    assert found.ids[0] == codec.start not in found.ids[1:]
    assert codec.decode(found.ids) == codec.decode(found.ids[1:]) == document
    return True


def must_be_as_tabled(codec: Codec, tables: Tables, document: bytes) -> bool:
    found = scored(codec, document)
    if isinstance(found, ScoreError):
        why = str(found)
        try:
            ids = tables.library.encode(document.decode())
        except UnicodeDecodeError:
            assert "document 1: a document is not UTF-8" in why
            return False
        if any(map(tables.library.is_unknown, ids)):
            assert "document 1: this tokenizer has no piece for" in why
        else:
            assert "no bytes" in why
            assert not sum(tables.sizes(ids))
        return False
    ids = tables.library.encode(document.decode())
    assert not any(tables.boundary[i] for i in ids)
    assert found.denominator == "pieces"
    assert found.raw == len(document)
    assert found.ids.tolist() == [codec.start, *ids]
    assert found.sizes.tolist() == tables.sizes(ids)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", CASES)
def test_a_count_is_exact_or_refused(name: str, count: int) -> None:
    codec, known = load(tokenizer(name)), CASES[name].lossless
    assert codec.lossless == known
    tables = None if known else Tables(tokenizer(name).payload)
    whole: list[bytes] = []
    for document in documents(count):
        if tables is None:
            must_be_exact(codec, document)
            whole.append(document)
        elif must_be_as_tabled(codec, tables, document):
            whole.append(document)
    assert len(whole) > count / 10
    # As one stream, each document counts what it counts alone.
    ledger = account(whole, codec)
    alone = [len(d) if tables is None else account([d], codec).bytes for d in whole]
    assert ledger.by_document(ledger.sizes).tolist() == alone
    assert ledger.bytes == sum(alone)
    assert ledger.raw == sum(map(len, whole))
    assert ledger.documents == len(whole)
    assert (ledger.ids[ledger.starts] == codec.start).all()
    assert not ledger.sizes[ledger.borders].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("part", ["x", " ", "\r\n", "\u2581", " e\u0301", "👩\u200d🚀", "a\0 b"])
def test_very_long_runs(name: str, part: str) -> None:
    codec, document = load(tokenizer(name)), (part * 70_000).encode()
    if codec.lossless:
        assert must_be_exact(codec, document)
    else:
        must_be_as_tabled(codec, Tables(tokenizer(name).payload), document)


@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name].lossless])
def test_one_document_that_cannot_be_counted_refuses_the_text(name: str) -> None:
    codec = load(tokenizer(name))
    with pytest.raises(ScoreError, match="document 3: a document is not UTF-8"):
        account([b"the first", b"the second", b"the \xff", b"the last"], codec)


def test_text_that_a_tokenizer_drops_is_told() -> None:
    """Both counts are kept, and nats go over what the pieces spell."""
    document = "a \u200b \u200b ½ ﬁ".encode()
    ledger = account([document], load(tokenizer("normalised")))
    assert ledger.denominator == "pieces"
    assert (ledger.raw, ledger.bytes) == (len(document), len("a 1\u20442 fi".encode()))
