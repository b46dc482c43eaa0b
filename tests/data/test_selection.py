"""Documents are kept by fields beside them and by length, and a text ends at a number of tokens."""

import gzip
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from segpt.data.selection import Selection, read_criterion
from segpt.data.text import read_text
from segpt.data.tokenizer import BYTES
from segpt.data.tokens import continue_tokens, ids
from segpt.errors import DataError
from segpt.values import Text

ROWS: list[dict[str, Any]] = [
    {"text": "first", "score": 2.75, "meta": {"n": 10**30}, "language": "en", "whole": True},
    {"text": "second one", "score": 3, "meta": {"n": 1}, "language": "de", "whole": False},
    {"text": "third", "score": None, "meta": None, "language": None, "whole": None},
    {"text": "fourth \u2581 one", "score": -1e3, "meta": {"n": 3}, "language": "en", "whole": True},
]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"a{kind}"
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    match kind:
        case ".jsonl":
            path.write_bytes(lines)
        case ".jsonl.gz":
            path.write_bytes(gzip.compress(lines))
        case ".json":
            path.write_text(json.dumps(ROWS))
        case _:
            pa = pytest.importorskip("pyarrow")
            parquet = pytest.importorskip("pyarrow.parquet")
            rows = [row | {"meta": row["meta"] and {"n": float(row["meta"]["n"])}} for row in ROWS]
            parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def kept(path: Path, *conditions: str, characters: int = 0) -> list[str]:
    selection = Selection(tuple(map(read_criterion, conditions)), characters)
    return [d.decode().split()[0] for d in read_text([path], selection=selection)]


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".json", ".parquet"])
def test_conditions_hold_in_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    assert kept(path) == ["first", "second", "third", "fourth"]
    assert kept(path, "score>=2.75") == ["first", "second"]
    assert kept(path, "score > 2.75") == ["second"]
    assert kept(path, "score<0") == ["fourth"]
    assert kept(path, "language==en", "score>0") == ["first"]
    assert kept(path, "language!=en") == ["second"]
    assert kept(path, "meta.n>=3") == ["first", "fourth"]
    assert kept(path, "whole==true") == ["first", "fourth"]
    assert kept(path, characters=10) == ["second", "fourth"]
    assert kept(path, characters=12) == ["fourth"]  # of 14 bytes and 12 characters
    assert kept(path, "language==en", characters=6) == ["fourth"]
    with pytest.raises(DataError, match="none of its 4 documents is kept by --keep score>5"):
        kept(path, "score>5")
    with pytest.raises(DataError, match="is kept by --min-chars 13"):
        kept(path, characters=13)


def test_what_is_kept_is_said(tmp_path: Path) -> None:
    lines: list[str] = []
    selection = Selection((read_criterion("score>=2.75"),), 6)
    text = read_text([write(tmp_path, ".jsonl")], selection=selection, notice=lines.append)
    assert len(list(text)) == len(list(text)) == 1
    assert lines == ["a.jsonl: 1 of 4 documents are kept by --keep score>=2.75 --min-chars 6"]


@pytest.mark.parametrize("written", ["score", "score>=", ">=3", "score>=high", "score>nan", "a=3"])
def test_a_condition_that_says_nothing_is_refused(written: str) -> None:
    with pytest.raises(DataError, match="--keep"):
        read_criterion(written)


def test_a_file_without_the_field_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, ".parquet")
    with pytest.raises(DataError, match=r"no column 'scores'; name another with --keep \(found"):
        kept(path, "scores>1")
    (tmp_path / "b.txt").write_text("plain")
    with pytest.raises(DataError, match="a plain text has no field 'score'"):
        kept(tmp_path / "b.txt", "score>1")


@pytest.mark.parametrize("limit", [1, 9, 40, 41, 10_000])
def test_a_text_ends_with_the_document_that_reaches_the_limit(tmp_path: Path, limit: int) -> None:
    documents = [f"{i} is {i * 7}".encode() for i in range(30)]
    text = Text("text", partial(iter, documents))
    write_all = partial(continue_tokens, text, BYTES, split="train", shard_tokens=7)
    tokens = write_all(tmp_path / "whole", limit=limit)
    sizes = [len(document) + 1 for document in documents]
    wanted = next((n for n in range(1, 31) if sum(sizes[:n]) >= limit), 30)
    assert tokens.count == sum(sizes[:wanted])
    assert len(tokens.documents) == wanted
    assert tokens.bytes == tokens.count - wanted

    def stopping() -> object:
        for number, document in enumerate(documents):
            if number == wanted - 1 and wanted > 1:
                raise KeyboardInterrupt
            yield document

    broken = Text("text", stopping)  # type: ignore[arg-type]
    if wanted > 1:
        with pytest.raises(KeyboardInterrupt):
            continue_tokens(
                broken, BYTES, tmp_path / "again", split="train", shard_tokens=7, limit=limit
            )
    again = write_all(tmp_path / "again", limit=limit)
    assert again.digest == tokens.digest
    assert len(ids(again)) == tokens.count
