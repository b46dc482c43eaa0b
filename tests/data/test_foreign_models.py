"""SentencePiece models of others: what they spell is counted as the contest counts it."""

import io
import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from segpt.data import modelproto
from segpt.data.corpus import builtin
from segpt.data.modelproto import SPACE, Kind
from segpt.data.tokenizer import Codec, from_model_file, load
from segpt.errors import DataError
from segpt.values import Tokenizer

SHARED = Path(__file__).parents[3] / "shared" / "data"
MODELS = sorted((SHARED / "tokenizers").glob("*.model"))
SPELLING = [path for path in MODELS if "nobytefallback" not in path.name]

needs_models = pytest.mark.skipif(not MODELS, reason="no foreign models at hand")

TEXT = "The fox ﬁnds ½ a  dog.\n\n\tSo: 12 foxes, 3.5 dogs (and a café) 日本 😀 \r\n "


@cache
def made(**changes: Any) -> bytes:
    """A small model as others make them: NFKC, spaces squeezed, all four control pieces."""
    written = io.BytesIO()
    options: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 420,
        "hard_vocab_limit": False,
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "pad_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "unk_id": 3,
    }
    lines = [d.decode(errors="ignore")[:500] for d in list(builtin("validation"))[:60]]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        max_sentence_length=10_000,
        minloglevel=2,
        **(options | changes),
    )
    return written.getvalue()


def foreign(data: bytes) -> Codec:
    return load(Tokenizer("sentencepiece", len(modelproto.read(data).pieces), data))


def counted(codec: Codec, ids: np.ndarray[Any, Any]) -> int:
    previous = np.concatenate([[codec.start], ids])[:-1]
    return int(codec.piece_bytes(previous, ids).sum())


def contest_bytes(data: bytes, ids: list[int]) -> int:
    """The contest's tables, one token at a time (seeded with the start)."""
    library = sentencepiece.SentencePieceProcessor(model_proto=data)
    total, boundary = 0, True
    for i in ids:
        silent = library.is_control(i) or library.is_unknown(i) or library.is_unused(i)
        if library.is_byte(i):
            total += 1
        elif not silent:
            piece = library.id_to_piece(i)
            lead = piece.startswith(SPACE)
            total += len(piece.removeprefix(SPACE).encode()) + (lead and not boundary)
        boundary = silent
    return total


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
@pytest.mark.parametrize("prefix", [True, False])
def test_bytes_are_those_that_the_library_decodes(kind: str, rule: str, prefix: bool) -> None:
    data = made(model_type=kind, normalization_rule_name=rule, add_dummy_prefix=prefix)
    codec = foreign(data)
    library = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert not codec.lossless
    assert codec.start == library.bos_id() == 1
    for document in [TEXT, "", " ", "a", *(d.decode() for d in list(builtin("validation"))[:20])]:
        ids = codec.encode(document.encode())
        assert ids.tolist() == library.encode(document)
        assert counted(codec, ids) == len(library.decode(ids.tolist()).encode())
        assert counted(codec, ids) == contest_bytes(data, ids.tolist())


def test_a_leading_space_counts_only_after_a_piece() -> None:
    codec = foreign(made(add_dummy_prefix=True))
    (the,) = [i for i in codec.encode(b"a") if codec.decode([i]) == b" a"]
    assert codec.piece_bytes([the], [the]).tolist() == [2]
    for silent in range(4):
        assert codec.piece_bytes([silent], [the]).tolist() == [1]
        assert codec.sizes[silent] == 0
    assert codec.piece_bytes([[the, 1]], [[the, the]]).tolist() == [[2, 1]]


def test_a_lossless_foreign_model_is_known_as_one() -> None:
    codec = foreign(made(normalization_rule_name="identity", remove_extra_whitespaces=False))
    assert codec.lossless
    for document in (TEXT.encode(), b"\xff \xe2\x96\x81\0", b"  a"):
        ids = codec.encode(document)
        assert codec.decode(ids) == document
        assert counted(codec, ids) == len(document)


def test_unknown_characters_are_refused_by_name() -> None:
    codec = foreign(made(byte_fallback=False, vocab_size=300))
    assert codec.encode(b"the first of them").size
    with pytest.raises(DataError, match=r"no piece for '日本'.*lossless"):
        codec.encode("the 日本".encode())
    with pytest.raises(DataError, match="not UTF-8"):
        codec.encode(b"the \xff")


def changed(data: bytes, **changes: Any) -> bytes:
    model = modelproto.read(data)
    return modelproto.write(modelproto.SentencePieceModel(**{**model.__dict__, **changes}))


def test_models_that_miscount_are_refused() -> None:
    data = made()
    pieces = modelproto.read(data).pieces
    without_space = tuple(p for p in pieces if p.text != SPACE)
    without_start = tuple(p for p in pieces if p.kind is not Kind.CONTROL)
    without_byte = tuple(p for p in pieces if p.text != "<0x41>")
    for refused, problem in (
        (changed(data, pieces=without_space), "lone space"),
        (changed(data, pieces=without_start), "neither <s> nor </s>"),
        (changed(data, pieces=without_byte), "not all 256"),
        (changed(data, space_as_suffix=True), "prefixes"),
        (changed(data, escape_spaces=False), "prefixes"),
        (changed(data, algorithm=9), "unknown algorithm 9"),
        (changed(data, pieces=(*pieces, pieces[-1])), "not a SentencePiece model"),
    ):
        with pytest.raises(DataError, match=problem):
            foreign(refused)


def test_a_model_file_becomes_a_tokenizer_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "some.model"
    path.write_bytes(made())
    tokenizer = from_model_file(path)
    assert (tokenizer.kind, tokenizer.payload) == ("sentencepiece", made())
    assert tokenizer.vocab == load(tokenizer).vocab
    path.write_bytes(made()[:-50_000])
    with pytest.raises(DataError, match=r"some\.model: not a SentencePiece model"):
        from_model_file(path)


def corpus(name: str) -> str:
    raw = lzma.decompress((SHARED / "corpus" / name).read_bytes()).decode()
    return raw if ".txt" in name else "\n".join(json.loads(x)["text"] for x in raw.splitlines())


@pytest.mark.slow
@needs_models
@pytest.mark.parametrize("path", SPELLING, ids=lambda path: path.name)
def test_contest_models_count_as_the_contest_does(path: Path) -> None:
    data = path.read_bytes()
    codec = load(from_model_file(path))
    library = sentencepiece.SentencePieceProcessor(model_proto=data)
    text = corpus("fineweb_edu_docs5.jsonl.xz") + TEXT
    ids = codec.encode(text.encode())
    assert ids.tolist() == library.encode(text)
    assert counted(codec, ids) == contest_bytes(data, ids.tolist())
    assert counted(codec, ids) == len(library.decode(ids.tolist()).encode())


@needs_models
def test_the_official_model_loses_a_little_text() -> None:
    codec = load(from_model_file(SHARED / "tokenizers" / "sp8192_official.model"))
    raw = corpus("fineweb_edu_sample.txt.xz")[:300_000].encode()
    ratio = counted(codec, codec.encode(raw)) / len(raw)
    assert not codec.lossless
    assert 0.999 < ratio < 1


@pytest.mark.slow
@needs_models
def test_a_model_without_byte_fallback_refuses_web_text() -> None:
    codec = load(from_model_file(SHARED / "tokenizers" / "sp1024_nfkc_nobytefallback.model"))
    with pytest.raises(DataError, match="no piece for"):
        codec.encode(corpus("fineweb_edu_sample.txt.xz").encode())
