"""Which files are text, in what forms, and what is left out and said."""

import bz2
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from segpt.data import documents as forms
from segpt.data import text as reading
from segpt.data.text import read_text, total_bytes
from segpt.errors import DataError

Write = Callable[[str, bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write(name, data)`` makes a file below the test's directory."""

    def write(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return write


def rows(*texts: str | None) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def read(*paths: Path, field: str = "text") -> tuple[list[bytes], list[str]]:
    """The documents, and what was said about them."""
    said: list[str] = []
    return list(read_text(paths, field=field, notice=said.append)), said


@pytest.mark.parametrize(
    "data",
    [
        b'[{"text": "one"}, {"text": "two \\u00e9"}]',
        b' [ "one" ,\n"two \xc3\xa9" ]\n',
        b'{"text": "one"}\n{"text": "two \\u00e9"}',
        b'{\n  "text": "one",\n  "n": [1, {"deep": 2.5}]\n} {"text": "two \xc3\xa9"}',
        b'[{"text": "one"}]["two \xc3\xa9"]',
        b'\xef\xbb\xbf[{"text": "one"}, {"text": "two \xc3\xa9"}]',
        '[{"text": "one"}, {"text": "two é"}]'.encode("utf-16"),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 2**20])
def test_json_in_every_arrangement(
    write: Write, monkeypatch: pytest.MonkeyPatch, data: bytes, step: int
) -> None:
    monkeypatch.setattr(forms, "_CHUNK", step if step > 1 else 4)
    assert read(write("a.json", data))[0] == [b"one", "two é".encode()]
    assert read(write("b.json.gz", gzip.compress(data)))[0] == [b"one", "two é".encode()]


def test_a_long_json_file_is_read_piece_by_piece(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "_CHUNK", 1000)
    texts = [f"document {i} " + "x" * (i * 37 % 4000) for i in range(500)]
    path = write("a.json", json.dumps([{"id": 7, "text": text} for text in texts]).encode())
    positions: list[int] = []
    text = iter(read_text([path], report=positions.append))
    assert next(text) == texts[0].encode()
    assert [d.decode() for d in text] == texts[1:]
    assert positions[0] < path.stat().st_size // 10
    assert positions[-1] == path.stat().st_size


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b'[{"text": "one"}, {"text": 5}]', "entry 2: no text under 'text'.*text"),
        (b'[{"text": "one"} {"text": "two"}]', "entry 1: not JSON.*comma"),
        (b'[{"text": "one"},', "entry 2: not JSON"),
        (b'[{"text": "one"}', "entry 1: not JSON.*comma"),
        (b'[{"text": "one', "entry 1: not JSON"),
        (b'["one", ]', "entry 1: not JSON"),
        (b'["one"] }', "entry 2: not JSON"),
        (b'["one", "\xff"]', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply|no text"),
        (b'{"data": [{"text": "one"}]}', "entry 1: no text under 'text'.*data"),
        (b"[]", "no text in it"),
        (b"", "no text in it"),
        (b"[12345]", "a number"),
    ],
)
def test_damaged_json_is_named(write: Write, data: bytes, problem: str) -> None:
    with pytest.raises(DataError, match=rf"a\.json.*({problem})"):
        read(write("a.json", data))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.parquet.gz"])
def test_a_document_has_a_limit(write: Write, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(forms, "LARGEST", 100)
    monkeypatch.setattr(forms, "_CHUNK", 10)
    data = json.dumps(["x" * 500]).encode()
    path = write(name, gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(DataError, match=r"a\..*more than"):
        read(path)


def test_endings_in_capitals_and_other_names_for_json_lines(write: Write) -> None:
    paths = [
        write("A.TXT", b"a"),
        write("B.JSONL.GZ", gzip.compress(rows("b"))),
        write("c.ndjson", rows("c")),
        write("d.Txt.Bz2", bz2.compress(b"d")),
    ]
    assert read(*paths)[0] == [b"a", b"b", b"c", b"d"]
    assert read(paths[0].parent)[0] == [b"a", b"b", b"c", b"d"]


def test_frames_of_zstd_may_look_back_two_gigabytes(write: Write) -> None:
    settings = zstandard.ZstdCompressionParameters.from_level(3, window_log=28, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    data = packer.compress(rows("long")) + packer.flush()
    assert read(write("a.jsonl.zst", data))[0] == [b"long"]


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ({"meta": {"text": "x"}}, "meta.text"),
        ({"meta.text": "x", "meta": {"text": "y"}}, "meta.text"),
        ({"a.b": {"c": "x"}, "a": {"b": "y"}}, "a.b.c"),
        ({"a": {"b.c": "x"}}, "a.b.c"),
    ],
)
def test_a_field_inside_another(write: Write, entry: dict[str, object], field: str) -> None:
    assert read(write("a.jsonl", json.dumps(entry).encode()), field=field)[0] == [b"x"]
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = write("a.parquet", b"")
    parquet.write_table(pa.Table.from_pylist([entry]), path)
    assert read(path, field=field)[0] == [b"x"]


def test_what_has_text_is_listed_in_one_line(write: Write) -> None:
    entry = {"meta": {"body": "x"}, "two\nlines": 1, "\ud800": 1, "k" * 100: 1}
    path = write("a.jsonl", json.dumps(entry).encode())
    with pytest.raises(DataError, match=r"meta\.body") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="and 92 more"):
        read(write("b.jsonl", json.dumps({f"key{i}": i for i in range(100)}).encode()))


def test_nulls_are_left_out_and_counted_alike(write: Write) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = ["one", None, "", "two", None]
    table = write("a.parquet", b"")
    parquet.write_table(pa.table({"text": texts}), table)
    for path in (
        table,
        write("a.jsonl", rows(*texts)),
        write("a.json", json.dumps([{"text": text} for text in texts]).encode()),
        write("b.json", json.dumps(texts).encode()),
    ):
        said: list[str] = []
        text = read_text([path], notice=said.append)
        for _ in range(2):
            assert list(text) == [b"one", b"two"]
        assert said == [
            f"{path.name}: 3 of 5 documents hold no text (2 null, 1 empty) and are left out"
        ]
        with pytest.raises(DataError, match="no text in it"):
            read(write("null.jsonl", rows(None, None)))
    nested = write(
        "nested.jsonl", b'{"meta": null}\n{"meta": {"text": null}}\n{"meta": {"text": "x"}}'
    )
    assert read(nested, field="meta.text")[0] == [b"x"]


HIDDEN = [
    "._x.jsonl",
    ".ipynb_checkpoints/x-checkpoint.jsonl",
    ".cache/x.txt",
    ".x.txt",
    "__MACOSX/x.txt",
    "x.txt~",
    "#x.txt#",
    "~$x.txt",
    "x.txt.bak",
    "x.bak/x.txt",
    "runs/demo/metrics.jsonl",
]


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_files_and_copies_are_no_data_unless_named(
    write: Write, tmp_path: Path, name: str
) -> None:
    write("x.txt", b"data")
    write("runs/latest.json", b"{}")
    hidden = write(name, b"\0\5copy")
    assert read(tmp_path)[0] == [b"data"]
    if ".jsonl" in name:
        hidden.write_bytes(rows("named"))
    assert len(read(hidden)[0]) == 1


def test_json_beside_other_texts_describes_them(write: Write, tmp_path: Path) -> None:
    write("info.json", b'{"license": "none"}')
    write("x.txt", b"data")
    documents, said = read(tmp_path)
    assert documents == [b"data"]
    assert len(said) == 1
    assert "1 .json file beside other texts" in said[0]
    (tmp_path / "x.txt").unlink()
    (tmp_path / "info.json").write_bytes(b'["data"]')
    assert read(tmp_path) == ([b"data"], [])


def test_the_same_text_is_read_once_and_said(write: Write, tmp_path: Path) -> None:
    path = write("t.txt", b"some text")
    copy = write("copy/u.txt", b"some text")
    packed = write("t.txt.gz", gzip.compress(b"some text"))
    (tmp_path / "link.txt").symlink_to(path)
    os.link(path, tmp_path / "hard.txt")
    for other in (path, copy, packed, tmp_path / "link.txt", tmp_path / "hard.txt"):
        documents, said = read(path, other)
        assert documents == [b"some text"]
        assert len(said) == 1
        assert "t.txt" in said[0]
        assert "read once" in said[0]
    documents, said = read(tmp_path)
    assert documents == [b"some text"]
    assert "and 3 more files are copies" in said[0] or "and 4 more files are copies" in said[0]
    assert total_bytes([path, path, copy]) == 9
    write("v.txt", b"some test")
    write("w.txt.gz", gzip.compress(b"other text"))
    write("w.txt", b"some text, other than in w.txt.gz")
    assert len(read(tmp_path)[0]) == 4
    assert read(write("e.txt", b""), write("f.txt", b""), path) == ([b"some text"], [])


def test_files_that_differ_late_are_different(write: Write) -> None:
    paths = [write(f"{i}.txt", b"x" * 2**17 + bytes([i])) for i in range(3)]
    assert len(read(*paths)[0]) == 3


def test_a_file_that_changes_meanwhile_is_named(write: Write) -> None:
    path = write("a.jsonl", rows("one", "two"))
    text = read_text([path])
    documents = iter(text)
    next(documents)
    path.write_bytes(rows("one", "two", "three"))
    with pytest.raises(DataError, match=r"a\.jsonl: changed while"):
        list(documents)
    with pytest.raises(DataError, match=r"a\.jsonl: changed while"):
        list(text)


def test_pipes_devices_and_broken_links_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"pipe\.txt: a pipe or a device"):
        read_text([tmp_path / "pipe.txt"])
    with pytest.raises(DataError, match="a pipe or a device"):
        read_text([Path("/dev/null")])
    with pytest.raises(DataError, match=r"gone\.txt: a link to a file that is not there"):
        read_text([tmp_path / "gone.txt"])
    with pytest.raises(DataError, match="no text in this directory"):
        read_text([tmp_path])


@pytest.mark.parametrize("name", ["a\0b.txt", "x" * 5000 + ".txt", "\ud800.txt"])
def test_impossible_names_are_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="check the path") as caught:
        read_text([tmp_path / name])
    assert str(caught.value).isprintable()


def test_names_that_are_no_utf8_can_be_read_and_printed(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    try:
        path.write_bytes(b"data")
    except OSError:
        pytest.skip("the file system takes no such names")
    for text in (read_text([path]), read_text([tmp_path])):
        assert list(text) == [b"data"]
        assert text.name.encode() == b"caf\\udce9.txt"


def test_numbers_and_depth_beside_the_text_do_not_matter(write: Write) -> None:
    huge = b'{"id": ' + b"9" * 5000 + b', "inf": 1e999, "nan": NaN, "text": "x"}'
    assert read(write("a.jsonl", huge))[0] == [b"x"]
    assert read(write("a.json", b"[" + huge + b"]"))[0] == [b"x"]
    deep = b'{"text": "x", "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(DataError, match=r"a\.jsonl:1: not JSON \(nested too deeply\)"):
        read(write("a.jsonl", deep))
    with pytest.raises(DataError, match=r"b\.jsonl:1: not JSON \(not UTF-8\)"):
        read(write("b.jsonl", b'{"text": "\xff"}'))


def test_every_kind_of_string_in_parquet(write: Write) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = ["one", None, "zwölf"]
    path = write("a.parquet", b"")
    for kind in (
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ):
        parquet.write_table(pa.table({"text": pa.array(texts).cast(kind)}), path)
        assert read(path)[0] == [b"one", "zwölf".encode()], kind
    raw = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    parquet.write_table(pa.table({"text": raw}), path)
    assert read(path)[0] == [b"\xff\xfe"]
    for other in ([["a", "b"]], [1], [{"a": "b"}], [True]):
        parquet.write_table(pa.table({"text": other}), path)
        with pytest.raises(DataError, match=r"a\.parquet: column 'text' is not text but"):
            read(path)


def test_a_document_that_memory_does_not_hold_is_named(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(reading, "documents", fail)
    with pytest.raises(DataError, match=r"a\.txt: a document does not fit into memory"):
        read(write("a.txt", b"x"))
