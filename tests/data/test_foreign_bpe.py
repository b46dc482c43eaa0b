"""Byte-pair encodings of others: ids are the library's, bytes are exact, or text is refused."""

import base64
import contextlib
import json
import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from segpt.data.bpe import files, huggingface
from segpt.data.bpe.as_tokenizer import from_bpe
from segpt.data.bpe.codec import BpeCodec
from segpt.data.bpe.patterns import O200K
from segpt.data.tokenizer import load
from segpt.errors import DataError
from segpt.values import Tokenizer
from tests.data.foreign_bpe import (
    BYTE_LEVEL,
    END,
    FALLBACK,
    documents,
    library,
    plain,
    ranks,
    untrained,
)

pytestmark = pytest.mark.slow

R50K = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
KINDS = (*BYTE_LEVEL, *FALLBACK)


@cache
def converted(kind: str) -> Tokenizer:
    return from_bpe(huggingface.read(json.loads(library(kind).to_str())))


def codec_of(tokenizer: Tokenizer) -> BpeCodec:
    codec = load(tokenizer)
    assert isinstance(codec, BpeCodec)
    return codec


def check_document(codec: BpeCodec, document: bytes) -> list[int] | None:
    """The ids of a document, proved to spell it; None if it is refused, as only some may do."""
    try:
        ids = codec.encode(document)
    except DataError:
        assert not codec.lossless
        return None
    previous = np.concatenate([[codec.start], ids])[:-1].astype(np.int64)
    assert codec.piece_bytes(previous, ids).sum() == len(document)
    spelled = codec.decode(ids)
    assert spelled == (b" " + document if codec.model.prefix and document else document)
    assert codec.start not in ids
    return ids.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_random_documents_come_back_with_the_librarys_ids(kind: str) -> None:
    codec, theirs = codec_of(converted(kind)), library(kind)
    assert codec.lossless == (kind in BYTE_LEVEL)
    compared = refused = 0
    for document in documents(400):
        ids = check_document(codec, document)
        text = plain(document, theirs)
        refused += ids is None
        if text is not None and ids is not None:
            assert ids == theirs.encode(text, add_special_tokens=False).ids, document
            compared += 1
    assert compared > 150
    assert refused == 0 or kind in FALLBACK
    assert refused < 250


def test_what_begins_a_document_is_the_templates_or_what_is_asked_for() -> None:
    table = json.loads(library("gpt2").to_str())
    assert huggingface.read(table).start == 0
    assert huggingface.read(table, "<|im_start|>").start == 1
    assert huggingface.read(table, "1").start == 1
    assert huggingface.read(json.loads(library("metaspace").to_str())).start == 1
    with pytest.raises(DataError, match="--start: no control token '<bos>'"):
        huggingface.read(table, "<bos>")


def test_the_text_of_a_control_token_is_text() -> None:
    codec = codec_of(converted("gpt2"))
    ids = codec.encode(END.encode())
    assert 0 not in ids
    assert codec.decode(ids) == END.encode()
    assert codec.sizes[0] == 0


def test_an_added_token_that_is_text_is_itself() -> None:
    codec, theirs = codec_of(converted("qwen2")), library("qwen2")
    ids = codec.encode(b"a <tool_call> b")
    assert ids.tolist() == theirs.encode("a <tool_call> b").ids
    assert theirs.token_to_id("<tool_call>") in ids


def test_bytes_without_a_piece_are_refused_by_name() -> None:
    pieces = [END, *"abc", "Ġ", "ab"]
    tokenizer = untrained(pieces, [("a", "b")])
    tokenizer.add_special_tokens([END])
    assert tokenizer.encode("a\x01b").ids == [1, 2]  # the library loses it in silence
    codec = codec_of(from_bpe(huggingface.read(json.loads(tokenizer.to_str()))))
    assert not codec.lossless
    assert codec.encode(b"ab c").tolist() == [5, 4, 3]
    with pytest.raises(DataError, match="no piece for the byte 0x01"):
        codec.encode(b"a\x01b")
    with pytest.raises(DataError, match="not UTF-8"):
        codec.encode(b"a\xffb")


def test_a_long_document_has_the_ids_of_the_whole() -> None:
    text = " ".join(d.decode(errors="ignore") for d in documents(3000, seed=2)).replace(
        "\u2581", ""
    )
    for kind in (*BYTE_LEVEL, "metaspace"):
        codec = codec_of(converted(kind))
        clean = "x" + "".join(text.split("<"))
        ids = codec.encode(clean.encode())
        assert len(clean) > 3 * 2**15
        if kind != "qwen2":  # which normalizes
            assert ids.tolist() == library(kind).encode(clean, add_special_tokens=False).ids, kind


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "normalizer of type 'Lowercase'"),
        ({"normalizer": {"type": "NFKC"}}, "normalizer of type 'NFKC'"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "byte_fallback"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space"),
        ({"decoder": {"type": "WordPiece"}}, "decoder of type 'WordPiece'"),
        ({"post_processor": {"type": "Other"}}, "post-processor of type 'Other'"),
        ({"model": {"type": "Unigram", "vocab": []}}, "type 'Unigram'"),
        ({"model": {"type": "BPE", "vocab": {"a": 5}, "merges": [["a", "b"]]}}, "merge 0"),
        ({"added_tokens": [{"content": "x"}]}, "no id"),
    ],
)
def test_components_that_are_not_known_are_refused(change: dict[str, object], message: str) -> None:
    table = json.loads(library("gpt2").to_str()) | change
    with pytest.raises(DataError, match=message):
        huggingface.read(table, None if "added_tokens" in change else END)


def test_an_expression_that_is_not_on_the_list_is_refused() -> None:
    table = json.loads(library("llama3").to_str())
    table["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"(a+)+$"
    with pytest.raises(DataError, match="not on the list"):
        huggingface.read(table)


@pytest.mark.parametrize("pattern", ["o200k_base", "r50k_base"])
def test_a_rank_file_has_tiktokens_ids(pattern: str, tmp_path: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    table = ranks(library("llama3"))
    place = tmp_path / f"{pattern}.tiktoken"
    place.write_bytes(b"".join(base64.b64encode(p) + b" %d\n" % i for p, i in table.items()))
    model = files.from_ranks(place)
    expression = (
        O200K
        if pattern == "o200k_base"
        else r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
    )
    theirs = tiktoken.Encoding("t", pat_str=expression, mergeable_ranks=table, special_tokens={})
    codec = codec_of(from_bpe(model))
    assert codec.start == len(table)
    for document in documents(400):
        ids = check_document(codec, document)
        try:
            text = document.decode()
        except UnicodeDecodeError:
            continue
        assert ids == theirs.encode_ordinary(text), document
    assert files.ranks_of(model) == place.read_bytes()


def test_gpt2s_two_files_have_the_same_ids(tmp_path: Path) -> None:
    library("gpt2").model.save(str(tmp_path))
    first = codec_of(from_bpe(files.from_folder(tmp_path)))
    second = codec_of(converted("gpt2"))
    for document in documents(100):
        assert first.encode(document).tolist() == second.encode(document).tolist()


def test_gguf_fields_have_the_same_ids() -> None:
    theirs = library("smollm")
    table = json.loads(theirs.to_str())["model"]
    tokens = sorted(table["vocab"], key=table["vocab"].__getitem__)
    merges = [" ".join(pair) for pair in table["merges"]]
    kinds = [3, 3, *[1] * (len(tokens) - 2)]
    codec = codec_of(from_bpe(files.from_gguf_fields(tokens, merges, kinds, "smollm", 1)))
    assert codec.start == 1
    for document in documents(100):
        assert (
            codec.encode(document).tolist()
            == codec_of(converted("smollm")).encode(document).tolist()
        )
    with pytest.raises(DataError, match=r"tokenizer\.ggml\.pre is 'other'"):
        files.from_gguf_fields(tokens, merges, kinds, "other", 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_payload_is_an_error_and_nothing_else(kind: str) -> None:
    tokenizer = converted(kind)
    random_ = random.Random(kind)
    for _ in range(120):
        payload = bytearray(tokenizer.payload)
        where = random_.randrange(min(len(payload), random_.choice([600, len(payload)])))
        match random_.randrange(3):
            case 0:
                payload[where] ^= 1 << random_.randrange(8)
            case 1:
                del payload[where:]
            case _:
                payload[where:where] = random_.randbytes(3)
        with contextlib.suppress(DataError):
            load(Tokenizer(tokenizer.kind, tokenizer.vocab, bytes(payload)))
    for vocab in (0, tokenizer.vocab - 1, tokenizer.vocab + 1, 2**40):
        with pytest.raises(DataError):
            load(Tokenizer(tokenizer.kind, vocab, tokenizer.payload))


@pytest.mark.parametrize("kind", KINDS)
def test_a_payload_is_the_same_however_it_was_made(kind: str) -> None:
    tokenizer = converted(kind)
    assert from_bpe(codec_of(tokenizer).model) == tokenizer
