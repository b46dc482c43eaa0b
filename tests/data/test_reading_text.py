"""Documents come out of every kind of file as they went in, and damage is named."""

import bz2
import gzip
import hashlib
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from segpt.data.text import document_hash, read_text, text_digest, total_bytes
from segpt.errors import DataError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
DOCUMENTS = ["Hällo\r\n  world\n", "  leading", "\u2581 \u0000 \x1b", "日本語 😀"]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def jsonl(documents: list[str]) -> bytes:
    return b"".join(json.dumps({"text": d, "id": 1}).encode() + b"\n" for d in documents)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_plain_file_is_one_document_of_arbitrary_bytes(tmp_path: Path, suffix: str) -> None:
    raw = bytes(range(256)) * 3 + b"\r\n\n"
    path = write(tmp_path / f"a.txt{suffix}", COMPRESS[suffix](raw))
    assert list(read_text([path])) == [raw]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_jsonl(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.jsonl{suffix}", COMPRESS[suffix](jsonl([*DOCUMENTS, ""])))
    text = read_text([path])
    assert [d.decode() for d in text] == DOCUMENTS
    assert list(text) == list(text)
    assert text.name == path.name


@pytest.mark.parametrize("suffix", COMPRESS)
def test_parquet(tmp_path: Path, suffix: str) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    plain = tmp_path / "plain"
    parquet.write_table(pa.table({"body": [*DOCUMENTS, None, ""], "n": [1] * 6}), plain)
    path = write(tmp_path / f"a.parquet{suffix}", COMPRESS[suffix](plain.read_bytes()))
    assert [d.decode() for d in read_text([path], field="body")] == DOCUMENTS
    with pytest.raises(DataError, match=r"a\.parquet.*no column 'text'.*body, n"):
        list(read_text([path]))
    with pytest.raises(DataError, match=r"a\.parquet.*'n' is not text"):
        list(read_text([path], field="n"))
    write(path, COMPRESS[suffix](plain.read_bytes()[:-20]))
    with pytest.raises(DataError, match=r"a\.parquet.*fetch it again"):
        list(read_text([path], field="body"))


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = write(tmp_path / "a.parquet", b"PAR1")
    with pytest.raises(DataError, match=r"a\.parquet.*pip install 'segpt\[parquet\]'"):
        list(read_text([path]))


def test_separator_lines_split_a_plain_file(tmp_path: Path) -> None:
    two = b"two <|endoftext|> still\n <|endoftext|>\n\n"
    raw = b"one\n<|endoftext|>\n<|endoftext|>\r\n" + two + b"<|endoftext|>"
    path = write(tmp_path / "a.txt", raw)
    assert list(read_text([path])) == [b"one\n", two]


def test_directories_are_read_in_order_and_leave_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "b.txt", b"b")
    write(tmp_path / "deep" / "c.jsonl.gz", gzip.compress(jsonl(["c"])))
    write(tmp_path / "a.txt.zst", COMPRESS[".zst"](b"a"))
    write(tmp_path / "notes.md", b"not text to train on")
    first = write(tmp_path / "z.txt", b"z")
    assert list(read_text([first, tmp_path])) == [b"z", b"a", b"b", b"c"]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_cut_off_or_damaged_compressed_files_are_named(tmp_path: Path, suffix: str) -> None:
    whole = COMPRESS[suffix](bytes(i * i % 251 for i in range(50_000)))
    path = tmp_path / f"a.txt{suffix}"
    for size in (len(whole) - 1, len(whole) // 2, 11):
        write(path, whole[:size])
        with pytest.raises(DataError, match=r"a\.txt\..*fetch it again"):
            list(read_text([path]))
    write(path, b"this was never compressed, whatever its name says")
    with pytest.raises(DataError, match=r"a\.txt\..*fetch it again"):
        list(read_text([path]))


def test_frames_in_a_row_are_one_file_and_small_files_may_be_large_inside(tmp_path: Path) -> None:
    big = bytes(40_000_000)
    path = write(tmp_path / "a.txt.zst", COMPRESS[".zst"](big) + COMPRESS[".zst"](b"end"))
    assert list(read_text([path])) == [big + b"end"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "cut', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": "\xff"}', "not JSON"),
        (b'{"body": "x"}', "no text under 'text'.*body"),
        (b'{"text": 5}', "no text under 'text'"),
        (b"[1]", "no text under 'text'.*list"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, problem: str) -> None:
    path = write(tmp_path / "a.jsonl", jsonl(["fine"]) + b"\n" + line + b"\n")
    with pytest.raises(DataError, match=rf"a\.jsonl:3: {problem}"):
        list(read_text([path]))


def test_half_a_surrogate_pair_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a\\ud83dz"}\n')
    assert list(read_text([path])) == [b"a\xed\xa0\xbdz"]


def test_what_cannot_be_read_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.txt: no such file"):
        read_text([tmp_path / "missing.txt"])
    with pytest.raises(DataError, match=r"a\.doc: not a known kind.*\.jsonl"):
        read_text([write(tmp_path / "a.doc", b"x")])
    with pytest.raises(DataError, match="no text in this directory"):
        read_text([tmp_path])
    with pytest.raises(DataError, match="no text given"):
        read_text([])


@pytest.mark.parametrize("data", [b"", b"<|endoftext|>\n\n<|endoftext|>\n"[:14]])
def test_a_text_without_documents_is_an_error(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path / "empty.txt", data)
    with pytest.raises(DataError, match=r"empty\.txt: no text in it"):
        list(read_text([path]))


def test_reading_is_lazy(tmp_path: Path) -> None:
    good = write(tmp_path / "a.jsonl", jsonl(DOCUMENTS) + b"broken")
    damaged = write(tmp_path / "b.txt.gz", b"nothing")
    documents = iter(read_text([good, damaged]))
    assert [next(documents) for _ in DOCUMENTS] == [d.encode() for d in DOCUMENTS]


@pytest.mark.slow
def test_progress_ends_at_the_size_of_the_files(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"a{i}.jsonl{suffix}", compress(jsonl([*DOCUMENTS * 2000, str(i)])))
        for i, (suffix, compress) in enumerate(COMPRESS.items())
    ]
    seen: list[int] = []
    list(read_text(paths, report=seen.append))
    assert seen == sorted(seen)
    assert 0 < seen[0] < seen[-1] == total_bytes(paths)
    assert len(set(seen)) > 20


def test_hashes_are_those_of_sha256() -> None:
    digests = [hashlib.sha256(d.encode()) for d in DOCUMENTS]
    assert [f"{document_hash(d.encode()):016x}" for d in DOCUMENTS] == [
        d.hexdigest()[:16] for d in digests
    ]
    whole = hashlib.sha256(b"".join(d.digest() for d in digests)).hexdigest()
    assert text_digest(d.encode() for d in DOCUMENTS) == whole
    assert text_digest([b"ab", b"c"]) != text_digest([b"a", b"bc"])
