"""Files of ids that are linked are read in place, and a change of one of them is an error."""

import hashlib
import io
import json
import os
import struct
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from segpt.data import linked, modelproto
from segpt.data.linked import link_tokens
from segpt.data.text import document_hash, text_digest
from segpt.data.token_files import LLM_C
from segpt.data.tokenizer import BYTES, load
from segpt.data.tokens import ids, overlap, read_tokens, write_tokens
from segpt.errors import DataError
from segpt.stages.link import held_out_beside, link, matched, rotated
from segpt.stages.prepare import as_text, prepare
from segpt.values import Text, Tokenizer, Tokens

DOCUMENTS = [b"first document", "zweites \u2581".encode(), b"\xff\0", b"a" * 100]
START = 256
STREAM = [i for d in DOCUMENTS for i in (START, *d)]


def write(path: Path, stream: list[int], form: str) -> Path:
    """A file of ids as another program writes it."""
    data = np.array(stream)
    if form == "numpy":
        np.save(path, data)
        return path
    magic = {"modded-nanogpt": 20240520, "llm.c": LLM_C}.get(form)
    head = struct.pack("<256i", magic, 1, len(stream), *[0] * 253) if magic else b""
    path.write_bytes(head + data.astype("<u2").tobytes())
    return path


def linked_at(folder: Path, *paths: Path, id_type: str | None = None) -> Tokens:
    folder.mkdir()
    link_tokens(paths, BYTES, folder, split="train", id_type=id_type)
    return read_tokens(folder)


def spread(folder: Path, stream: list[int], size: int) -> list[Path]:
    """A stream in files of so many ids."""
    cuts = [*range(0, len(stream), size), len(stream)]
    return [
        write(folder / f"x_train_{number}.bin", stream[begin:end], "modded-nanogpt")
        for number, (begin, end) in enumerate(pairwise(cuts))
    ]


@pytest.mark.parametrize(
    ("form", "name"),
    [("modded-nanogpt", "a.bin"), ("llm.c", "a.bin"), ("headerless", "a.bin"), ("numpy", "a.npy")],
)
def test_every_form_is_the_same_text(tmp_path: Path, form: str, name: str) -> None:
    path = write(tmp_path / name, STREAM, form)
    tokens = linked_at(tmp_path / "t", path, id_type="uint16" if form == "headerless" else None)
    assert ids(tokens).slice(0, tokens.count).tolist() == STREAM
    assert tokens.bytes == sum(map(len, DOCUMENTS))
    assert tokens.documents.tolist() == sorted(map(document_hash, DOCUMENTS))
    assert tokens.text_digest == text_digest(DOCUMENTS)
    assert list(as_text(tokens)) == DOCUMENTS
    (shard,) = tokens.shards
    assert (shard.path, shard.sha256) == (path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert tokens.comparable
    assert tokens.folder == tmp_path / "t"
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == ["documents.bin", "manifest.json"]


@pytest.mark.parametrize("size", [1, 3, 15])
def test_documents_cross_files_and_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(linked, "_CHUNK", 4)
    tokens = linked_at(tmp_path / "t", *spread(tmp_path, STREAM, size))
    assert tokens.text_digest == text_digest(DOCUMENTS)
    assert ids(tokens).slice(0, tokens.count).tolist() == STREAM


def test_ids_that_end_documents_begin_the_next(tmp_path: Path) -> None:
    stream = [*chain.from_iterable((*document, START) for document in DOCUMENTS), START]
    tokens = linked_at(tmp_path / "t", write(tmp_path / "a.bin", stream, "llm.c"))
    assert list(as_text(tokens)) == DOCUMENTS
    assert tokens.text_digest == text_digest(DOCUMENTS)


def test_a_changed_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", STREAM, "llm.c")
    tokens = linked_at(tmp_path / "t", path)
    os.utime(path, ns=(1, 1))
    assert read_tokens(tmp_path / "t").digest == tokens.digest

    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.bin: its SHA-256.*segpt data link"):
        read_tokens(tmp_path / "t")
    assert tokens.shards[0].link is not None
    os.utime(path, ns=(1, tokens.shards[0].link.mtime))
    read_tokens(tmp_path / "t")
    with pytest.raises(DataError, match="its SHA-256"):
        read_tokens(tmp_path / "t", rehash=True)

    path.write_bytes(data[:-2])
    with pytest.raises(DataError, match=r"a\.bin: has 1,\d+ bytes, and had"):
        read_tokens(tmp_path / "t")
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_tokens(tmp_path / "t")


def test_places_and_times_are_no_content(tmp_path: Path) -> None:
    before = linked_at(tmp_path / "t", write(tmp_path / "a.bin", STREAM, "llm.c"))
    (tmp_path / "b").mkdir()
    (tmp_path / "a.bin").rename(tmp_path / "b" / "a.bin")
    os.utime(tmp_path / "b" / "a.bin", ns=(1, 1))
    again = linked_at(tmp_path / "u", tmp_path / "b" / "a.bin")
    assert (again.digest, again.documents.tolist()) == (before.digest, before.documents.tolist())


@pytest.mark.parametrize(
    "change", [{"ids": "O"}, {"ids": "<u4"}, {"offset": -1}, {"size": 2}, {"offset": 0}]
)
def test_a_manifest_that_lies_is_refused(tmp_path: Path, change: dict[str, str | int]) -> None:
    linked_at(tmp_path / "t", write(tmp_path / "a.bin", STREAM, "llm.c"))
    path = tmp_path / "t" / "manifest.json"
    table = json.loads(path.read_text())
    table["sources"][0] |= change
    path.write_text(json.dumps(table))
    with pytest.raises(DataError, match=r"manifest\.json: cannot be read"):
        read_tokens(tmp_path / "t")


def test_ids_of_another_tokenizer(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", [START, 1, 257], "llm.c")
    with pytest.raises(DataError, match="257 is outside the vocabulary of 257"):
        linked_at(tmp_path / "t", path)
    write(tmp_path / "b.bin", [START, START], "llm.c")
    with pytest.raises(DataError, match="no documents"):
        linked_at(tmp_path / "u", tmp_path / "b.bin")
    np.save(tmp_path / "c.npy", np.array([START, 1, -1]))
    with pytest.raises(DataError, match="-1 is outside"):
        linked_at(tmp_path / "v", tmp_path / "c.npy")


def test_files_are_found_in_their_order(tmp_path: Path) -> None:
    names = ["x_train_000002.bin", "x_train_000001.bin", "x_val_000000.bin"]
    for name in (*names, "x_val_bytes_000000.bin", "documents.bin", "y.bin", "offsets_a.npy"):
        write(tmp_path / name, STREAM, "llm.c" if name.endswith("bin") else "numpy")
    train = matched([str(tmp_path / "x_train_*.bin")])
    assert [path.name for path in train] == ["x_train_000001.bin", "x_train_000002.bin"]
    assert [path.name for path in held_out_beside(train)] == ["x_val_000000.bin"]
    everything = matched([str(tmp_path / "*.*")])
    assert [path.name for path in everything] == [*sorted(names), "y.bin"]
    assert rotated(train, 2) == rotated(train, 4) == train[::-1]
    with pytest.raises(DataError, match="--validation"):
        held_out_beside([tmp_path / "y.bin"])
    with pytest.raises(DataError, match="named twice"):
        matched([str(tmp_path / "y.bin"), str(tmp_path / "y*.bin")])
    with pytest.raises(DataError, match="no such file"):
        matched([str(tmp_path / "z*.bin")])
    with pytest.raises(DataError, match="both training and validation"):
        link(train, train, BYTES, tmp_path / "out", source={})


def test_linked_files_are_never_replaced(tmp_path: Path) -> None:
    def text(name: str) -> Text:
        return Text(name, lambda: iter([name.encode(), *(name.encode() + d for d in DOCUMENTS)]))

    splits = prepare(text("a"), text("b"), BYTES, tmp_path / "own")
    train, held = ([s.path for s in tokens.shards] for tokens in splits)
    with pytest.raises(DataError, match="choose another --out"):
        link(train, held, BYTES, tmp_path / "own", source={})
    linked_splits = link(train, held, BYTES, tmp_path / "linked", source={})
    assert [t.text_digest for t in linked_splits] == [t.text_digest for t in splits]
    assert train[0].exists()


@pytest.mark.slow
def test_ids_of_a_tokenizer_of_others(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    from segpt.stages.foreign_tokenizers import open_foreign
    from tests.data import foreign_bpe

    foreign_bpe.library("gpt2").save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_foreign(tmp_path / "tokenizer.json", foreign_bpe.END)
    documents = [text.encode() for text in foreign_bpe.texts()[:5]]
    codec = load(tokenizer)
    stream = [i for d in documents for i in (codec.start, *codec.encode(d).tolist())]
    (tmp_path / "t").mkdir()
    path = write(tmp_path / "a.bin", stream, "llm.c")
    link_tokens([path], tokenizer, tmp_path / "t", split="train")
    tokens = read_tokens(tmp_path / "t")
    assert tokens.comparable
    assert tokens.bytes == sum(map(len, documents))
    assert tokens.text_digest == text_digest(documents)
    assert list(as_text(tokens)) == documents


def test_a_tokenizer_that_loses_text_tells_no_hashes_of_it(tmp_path: Path) -> None:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the dog and the river", "the town and the dog"]),
        model_writer=written,
        model_type="bpe",
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
    )
    data = written.getvalue()
    tokenizer = Tokenizer("sentencepiece", len(modelproto.read(data).pieces), data)
    codec = load(tokenizer)
    documents = [b"the dog", b"the river and the town"]
    stream = [i for d in documents for i in (codec.start, *codec.encode(d).tolist())]
    (tmp_path / "t").mkdir()
    path = write(tmp_path / "a.bin", stream, "llm.c")
    link_tokens([path], tokenizer, tmp_path / "t", split="train")
    tokens = read_tokens(tmp_path / "t")
    assert not tokens.comparable
    assert tokens.bytes == sum(map(len, documents))
    hashes = [document_hash(codec.encode(d).astype("<u4").tobytes()) for d in documents]
    assert tokens.documents.tolist() == sorted(hashes)
    assert overlap(tokens, tokens).tolist() == tokens.documents.tolist()
    text = write_tokens(
        Text("text", lambda: iter(documents)), tokenizer, tmp_path / "own", split="train"
    )
    with pytest.raises(DataError, match=r"a\.bin: .* cannot be compared with those of text"):
        overlap(text, tokens)
