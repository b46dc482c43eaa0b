"""Tokens on disk: every id is what was written, and whatever is not is refused."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from segpt.data import manifest, merges
from segpt.data.corpus import builtin
from segpt.data.modelproto import BPE, SentencePieceModel, VocabularyPiece
from segpt.data.shard_file import HEADER, MAGIC
from segpt.data.text import document_hash, text_digest
from segpt.data.tokenizer import BYTES, load, train_bpe
from segpt.data.tokens import Stream, ids, overlap, read_tokens, write_tokens
from segpt.errors import DataError
from segpt.values import Text, Tokenizer, Tokens

DOCUMENTS = [b"first document", "zweites Dokument \u2581".encode(), b"\xff\0", b"a" * 100]


def text(documents: list[bytes], name: str = "some text") -> Text:
    return Text(name, lambda: iter(documents))


def written(out: Path, documents: list[bytes] = DOCUMENTS, shard_tokens: int = 30) -> Tokens:
    return write_tokens(text(documents), BYTES, out, split="train", shard_tokens=shard_tokens)


def plain(documents: list[bytes], tokenizer: Tokenizer = BYTES) -> list[int]:
    codec = load(tokenizer)
    return [i for d in documents for i in (codec.start, *codec.encode(d).tolist())]


def wide(vocab: int) -> Tokenizer:
    """A tokenizer with pairs of 300 letters as pieces, so that any vocabulary can be had."""
    letters = [chr(0x4E00 + i) for i in range(300)]
    pairs = [a + b for a in letters for b in letters][: vocab - 258 - 301]
    head = merges.unpack(train_bpe([b"a"], 260).payload, 260).pieces[:258]
    texts = [*pairs, "▁", *letters]
    pieces = (*head, *(VocabularyPiece(t, -float(i)) for i, t in enumerate(texts)))
    model = SentencePieceModel(
        pieces=pieces, algorithm=BPE, byte_fallback=True, dummy_prefix=False, squeeze_spaces=False
    )
    return Tokenizer("merges", vocab, merges.pack(model))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tokens = written(tmp_path / "tokens")
    expected = plain(DOCUMENTS)
    assert ids(tokens).slice(0, len(expected)).tolist() == expected
    assert (tokens.count, len(tokens.shards)) == (len(expected), -(-len(expected) // 30))
    assert [s.tokens for s in tokens.shards[:-1]] == [30] * (len(tokens.shards) - 1)
    assert tokens.bytes == sum(map(len, DOCUMENTS))
    assert tokens.documents.tolist() == sorted(map(document_hash, DOCUMENTS))
    assert (tokens.tokenizer, tokens.split) == (BYTES, "train")
    again = read_tokens(tmp_path / "tokens")
    assert again.fingerprint == tokens.fingerprint
    assert again.shards == tokens.shards


def test_a_trained_tokenizer_travels_with_the_tokens(tmp_path: Path) -> None:
    documents = list(builtin("validation"))
    tokenizer = train_bpe(documents, 512)
    seen: list[int] = []
    write_tokens(text(documents), tokenizer, tmp_path / "t", split="validation", report=seen.append)
    tokens = read_tokens(tmp_path / "t")
    assert tokens.tokenizer == tokenizer
    codec = load(tokens.tokenizer)
    found = ids(tokens).slice(0, tokens.count)
    assert codec.decode(found) == b"".join(documents)
    assert codec.sizes[found].sum() == tokens.bytes == seen[-1]
    assert (found == codec.start).sum() == len(tokens.documents) == len(seen)


def test_the_layout_is_that_of_the_field(tmp_path: Path) -> None:
    (shard,) = written(tmp_path / "tokens", shard_tokens=1000).shards
    assert shard.path.name == "train_000000.bin"
    raw = shard.path.read_bytes()
    assert np.frombuffer(raw[:HEADER], "<i4").tolist() == [MAGIC, 1, shard.tokens, *[0] * 253]
    assert np.frombuffer(raw[HEADER:], "<u2").tolist() == plain(DOCUMENTS)
    assert hashlib.sha256(raw).hexdigest() == shard.sha256
    manifest = json.loads((tmp_path / "tokens" / "manifest.json").read_text())
    assert manifest["text"] == "some text"
    assert manifest["text_digest"] == text_digest(DOCUMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("vocab", [65_535, 65_536, 65_537])
def test_ids_at_the_edge_of_16_bits_survive(tmp_path: Path, vocab: int) -> None:
    tokenizer = wide(vocab)
    last = chr(0x4E00 + 299).encode()
    tokens = write_tokens(text([last, b"x " + last]), tokenizer, tmp_path / "t", split="train")
    found = ids(tokens).slice(0, tokens.count)
    assert found.tolist() == plain([last, b"x " + last], tokenizer)
    assert found.max() == vocab - 1
    width = 2 if vocab <= 65_536 else 4
    raw = tokens.shards[0].path.read_bytes()
    assert len(raw) == HEADER + width * tokens.count
    assert np.frombuffer(raw[:HEADER], "<i4")[1] == width // 2
    assert read_tokens(tmp_path / "t").count == tokens.count


def test_any_slice_crosses_shards(tmp_path: Path) -> None:
    for limit in (5, 7, 1000):
        stream = ids(written(tmp_path / "t", shard_tokens=limit))
        expected = plain(DOCUMENTS)
        assert len(stream) == len(expected)
        for start in range(0, len(expected) + 1, 5):
            for stop in range(start, len(expected) + 1, 3):
                assert stream.slice(start, stop).tolist() == expected[start:stop]
    with pytest.raises(IndexError):
        stream.slice(0, len(expected) + 1)
    with pytest.raises(IndexError):
        stream.slice(-1, 3)


def test_one_planted_document_is_found(tmp_path: Path) -> None:
    ours = [f"document {i}".encode() for i in range(500)]
    others = [f"other {i}".encode() for i in range(500)]
    planted = [*others[:250], ours[123], *others[250:]]
    a, b, c = (
        written(tmp_path / name, documents, shard_tokens=10_000)
        for name, documents in {"a": ours, "b": planted, "c": others}.items()
    )
    assert overlap(a, b).tolist() == [document_hash(ours[123])]
    assert not overlap(a, c).size


def test_the_fingerprint_names_the_content(tmp_path: Path) -> None:
    tokens = written(tmp_path / "a")
    renamed = write_tokens(
        text(DOCUMENTS, "other name"), BYTES, tmp_path / "b", split="train", shard_tokens=30
    )
    assert renamed.fingerprint == tokens.fingerprint
    assert written(tmp_path / "c", [*DOCUMENTS, b"x"]).fingerprint != tokens.fingerprint
    joined = [b"".join(DOCUMENTS[:2]), *DOCUMENTS[2:]]
    assert written(tmp_path / "d", joined).fingerprint != tokens.fingerprint


def broken_text() -> Iterator[bytes]:
    yield b"fine"
    raise DataError("a.jsonl:2: not JSON")


def test_a_text_that_fails_leaves_the_old_tokens(tmp_path: Path) -> None:
    old = written(tmp_path / "t")
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        write_tokens(Text("broken", broken_text), BYTES, tmp_path / "t", split="train")
    with pytest.raises(DataError, match="no documents"):
        write_tokens(text([]), BYTES, tmp_path / "t", split="train")
    assert read_tokens(tmp_path / "t").fingerprint == old.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    assert written(tmp_path / "t", [b"new"]).bytes == 3


@pytest.mark.parametrize("name", ["thesis.tex", "train_1.bin", "manifest.json.txt"])
def test_a_directory_of_other_things_is_never_replaced(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    written(out)
    (out / name).write_text("years of work")
    for path in (out, out / name):
        with pytest.raises(DataError, match="other things than tokens"):
            written(path)
    assert (out / name).read_text() == "years of work"


def test_damaged_tokens_and_empty_directories_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    written(out)
    (out / "train_000000.bin").write_bytes(b"")
    (out / "manifest.json").write_bytes((out / "manifest.json").read_bytes()[:-9])
    (out / "train_000099.bin").write_bytes(b"")
    assert written(out).count == read_tokens(out).count
    assert not (out / "train_000099.bin").exists()
    (tmp_path / "empty").mkdir()
    assert written(tmp_path / "empty").count


@pytest.mark.parametrize("name", ["manifest.json", "train_000000.bin", "documents.bin"])
def test_files_that_only_have_our_names_are_not_replaced(tmp_path: Path, name: str) -> None:
    other = {"manifest.json": b'{"name": "an app"}', "train_000000.bin": bytes(2048)}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(other.get(name, b"mine"))
    with pytest.raises(DataError, match="other things than tokens"):
        written(tmp_path / "out")
    assert (tmp_path / "out" / name).read_bytes() == other.get(name, b"mine")


@pytest.mark.parametrize(
    ("split", "limit"), [("../x", 5), ("", 5), ("a b", 5), ("a", 0), ("a", 2**31)]
)
def test_arguments_out_of_range(tmp_path: Path, split: str, limit: int) -> None:
    with pytest.raises(DataError):
        write_tokens(text(DOCUMENTS), BYTES, tmp_path / "t", split=split, shard_tokens=limit)


def flip(path: Path, offset: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("name", "offset"),
    [
        *(("train_000001.bin", offset) for offset in (0, 4, 8, 13, HEADER - 1, HEADER, -1)),
        *(("documents.bin", offset) for offset in (0, -1)),
    ],
)
def test_a_flipped_bit_is_found(tmp_path: Path, name: str, offset: int) -> None:
    written(tmp_path)
    flip(tmp_path / name, offset)
    with pytest.raises(DataError, match=rf"{name}: .*segpt data prepare"):
        read_tokens(tmp_path)


@pytest.mark.parametrize("offset", [0, 4, 8, 13])
def test_a_wrong_header_is_found_even_unverified(tmp_path: Path, offset: int) -> None:
    written(tmp_path)
    flip(tmp_path / "train_000001.bin", offset)
    with pytest.raises(DataError, match=r"train_000001\.bin: not a shard of 30 tokens.*2024052"):
        read_tokens(tmp_path, verify=False)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["train_000001.bin", "documents.bin", "manifest.json"])
def test_files_cut_off_longer_or_missing_are_found(tmp_path: Path, name: str, verify: bool) -> None:
    written(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    for damaged in (whole[:-2], whole[: len(whole) // 2], b"", whole + b"{"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{name}: .*segpt data prepare"):
            read_tokens(tmp_path, verify=verify)
    path.unlink()
    with pytest.raises(DataError, match=rf"{name}: .*segpt data prepare"):
        read_tokens(tmp_path, verify=verify)


def test_a_changed_manifest_is_found(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "manifest.json"
    original = json.loads(path.read_text())
    changes: list[dict[str, object]] = [
        {"count": original["count"] + 1},
        {"bytes": 7},
        {"split": "../../elsewhere"},
        {"surprise": 1},
        {"shards": []},
        {"digest": "0" * 64},
        {"tokenizer": original["tokenizer"] | {"vocab": 300}},
        {"tokenizer": original["tokenizer"] | {"payload": "AAAA"}},
        {"tokenizer": original["tokenizer"] | {"payload": "?"}},
        {"documents": {"count": 4, "sha256": None}},
        {"text_digest": "\ud800"},
    ]
    for change in changes:
        path.write_text(json.dumps(original | change))
        with pytest.raises(DataError, match=r"manifest\.json: .*segpt data prepare"):
            read_tokens(tmp_path)
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_tokens(tmp_path)


def test_an_id_outside_the_vocabulary_is_found_even_unverified(tmp_path: Path) -> None:
    tokens = written(tmp_path, shard_tokens=1000)
    raw = bytearray(tokens.shards[0].path.read_bytes())
    raw[HEADER + 10 : HEADER + 12] = (257).to_bytes(2, "little")
    tokens.shards[0].path.write_bytes(raw)
    stream = ids(read_tokens(tmp_path, verify=False))
    assert stream.slice(0, 5).tolist() == plain(DOCUMENTS)[:5]
    with pytest.raises(DataError, match=r"vocabulary of 257.*segpt data prepare"):
        stream.slice(0, 6)


def test_a_stream_of_arrays(tmp_path: Path) -> None:
    stream = Stream([np.arange(3), np.arange(4, dtype=np.uint16)], vocab=4)
    assert stream.slice(1, 6).tolist() == [1, 2, 0, 1, 2]
    assert len(Stream([], vocab=4)) == 0
    with pytest.raises(DataError):
        Stream([np.array([-1])], vocab=4).slice(0, 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bytes", 10**400),
        ("bytes", -1),
        ("bytes", True),
        ("bytes", 1.5),
        ("count", 10**400),
        ("documents", {"count": 10**400, "sha256": "0" * 64}),
        ("documents", {"count": -1, "sha256": "0" * 64}),
        ("documents", []),
        ("shards", {}),
        ("shards", [{"count": True, "sha256": ""}]),
        ("split", 5),
        ("split", "\ud800"),
        ("text", None),
        ("tokenizer", {"form": "bytes", "vocab": 257, "payload": "\ud800"}),
        ("tokenizer", {"form": "bytes", "vocab": [257], "payload": ""}),
    ],
)
def test_manifests_of_odd_values_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: object
) -> None:
    written(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    # A forger seals what is written; so no seal is looked at here.
    monkeypatch.setattr(manifest, "_digest", lambda manifest: manifest.digest)
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_tokens(tmp_path)
