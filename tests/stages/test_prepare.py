"""Preparing text where something else was prepared before."""

import errno
import shutil
from functools import partial
from pathlib import Path

import pytest

from segpt.config.recipe import Bpe
from segpt.data.tokenizer import BYTES, train_bpe
from segpt.data.tokens import continue_tokens
from segpt.errors import DataError, SegptError
from segpt.stages import prepare as stage
from segpt.stages.prepare import (
    builtin_splits,
    draft_of,
    hold_out,
    place_for,
    prepare,
    prepared,
)
from segpt.values import Text, Tokenizer


@pytest.mark.slow
def test_builtin_text_is_made_anew_for_another_tokenizer(tmp_path: Path) -> None:
    out = tmp_path / "builtin"
    prepare(Text("a", lambda: iter([b"a"])), Text("b", lambda: iter([b"b"])), BYTES, out)
    train, validation = builtin_splits(Bpe(vocab=512), out, lambda split, done: None)
    assert train.tokenizer.vocab == validation.tokenizer.vocab == 512
    assert train.bytes > 1_000_000
    again, _ = builtin_splits(Bpe(vocab=512), out, lambda split, done: None)
    assert again.digest == train.digest


def text(name: str, *documents: bytes) -> Text:
    return Text(name, lambda: iter(documents))


def split(fraction: float, *documents: bytes) -> tuple[bytes, bytes, list[str]]:
    """Both parts of a text, and what was said."""
    said: list[str] = []
    train, held = hold_out(text("t.txt", *documents), fraction, said.append)
    return b"|".join(train), b"|".join(held), said


PARAGRAPHS = b"\n\n".join(b"%d lines\nof text" % i * 5 for i in range(40))


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.5, 0.9])
def test_of_a_single_document_the_last_part_is_held_out(fraction: float) -> None:
    train, held, said = split(fraction, PARAGRAPHS)
    assert train + held == PARAGRAPHS
    assert train.endswith(b"\n\n")
    assert abs(len(held) - fraction * len(PARAGRAPHS)) < 60
    assert said == [
        f"t.txt: too few documents to choose from, so the last {len(held):,} of "
        f"{len(PARAGRAPHS):,} bytes are held out, from the end of a paragraph on"
    ]


@pytest.mark.parametrize(
    ("document", "ends", "border"),
    [
        (b"a line\r\n\r\n" * 50, b"\r\n\r\n", "paragraph"),
        (b"one line\n" * 50, b"\n", "line"),
        (b"word " * 100, b" ", "word"),
        ("日本語".encode() * 50, "日本語".encode()[-3:], "character"),
        (b"\x80" * 50, b"\x80", "character"),
    ],
)
def test_the_best_border_is_taken(document: bytes, ends: bytes, border: str) -> None:
    if border == "character" and document[0] == 0x80:
        with pytest.raises(DataError, match=r"t\.txt is too short to hold out"):
            split(0.1, document)
        return
    train, held, said = split(0.1, document)
    assert train + held == document
    assert held
    assert train[-1:] == ends[-1:]
    assert f"end of a {border} on" in said[0]
    held.decode()


def test_documents_are_held_out_by_their_hash_where_that_leaves_both_sides() -> None:
    documents = [b"document %d" % i for i in range(200)]
    train, held, said = split(0.1, *documents)
    assert not said
    assert sorted([*train.split(b"|"), *held.split(b"|")]) == sorted(documents)
    assert 5 < held.count(b"|") < 40
    again, *_ = split(0.1, *reversed(documents))
    assert set(again.split(b"|")) == set(train.split(b"|"))


def test_a_few_documents_are_cut_where_the_last_part_begins() -> None:
    documents = [PARAGRAPHS[:400], PARAGRAPHS[400:500], PARAGRAPHS[500:]]
    train, held, said = split(1e-9 + 0.002, *documents)
    assert len(said) == 1
    assert (train + held).replace(b"|", b"") == PARAGRAPHS
    assert train.count(b"|") == 2
    assert held.count(b"|") == 0


@pytest.mark.parametrize("document", [b"x", b"\xc3\xa9"])
def test_too_short_to_split(document: bytes) -> None:
    with pytest.raises(DataError, match=r"t\.txt is too short.*--validation"):
        split(0.5, document)


SOURCE: dict[str, object] = {"texts": ["a"], "tokenizer": None}
TRAIN, HELD = [b"some words to train on, %d" % i for i in range(60)], [b"held out"]


def run(out: Path, stop_after: int | None = None, **changes: object) -> list[str]:
    """Prepare, stopping like Ctrl-C does after so many documents; the vocabularies trained."""
    trained: list[str] = []
    count = 0

    def make() -> Tokenizer:
        trained.append("trained")
        return train_bpe(TRAIN, 300)

    def report(split: str, done: int) -> None:
        nonlocal count
        count += 1
        if count == stop_after:
            raise KeyboardInterrupt

    prepare(text("a", *TRAIN), text("b", *HELD), make, out, report, source=SOURCE | changes)
    return trained


def contents(place: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()
    }


@pytest.mark.parametrize("stop_after", [1, 25, 60, 61])
def test_a_preparation_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    monkeypatch.setattr(stage, "continue_tokens", partial(continue_tokens, shard_tokens=100))
    run(tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(out, stop_after)
    assert not out.exists()
    assert run(out) == []  # the tokenizer was kept
    assert contents(out) == contents(tmp_path / "whole")
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["out", "whole"]
    assert prepared(out, SOURCE) is not None
    assert prepared(out, SOURCE | {"texts": ["b"]}) is None


def test_what_was_begun_for_another_text_is_not_taken(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(out, 30)
    assert run(out, texts=["b"]) == ["trained"]
    assert not draft_of(out).exists()


@pytest.mark.slow
def test_damaged_beginnings_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "continue_tokens", partial(continue_tokens, shard_tokens=100))
    run(tmp_path / "whole")
    begun = ("tokenizer.json", "train/begun.json", "train/train_000000.bin", "train/manifest.json")
    for name in begun:
        for damage in (b"", b"{}", b"[1]", b'{"shards": [[1e999, 1]]}'):
            out = tmp_path / "out"
            with pytest.raises(KeyboardInterrupt):
                run(out, 61 if "manifest" in name else 40)
            (draft_of(out) / name).write_bytes(damage)
            run(out)
            assert contents(out) == contents(tmp_path / "whole"), name
            shutil.rmtree(out)


def test_an_old_text_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out)
    before = contents(out)
    with pytest.raises(KeyboardInterrupt):
        run(out, 40, texts=["b"])
    assert contents(out) == before


def test_a_document_in_both_leaves_nothing(tmp_path: Path) -> None:
    both = text("a", b"one", b"two"), text("b", b"two")
    with pytest.raises(DataError, match="1 documents are in both a and b"):
        prepare(*both, BYTES, tmp_path / "out", source=SOURCE)
    assert not list(tmp_path.iterdir())


def test_nothing_but_a_prepared_text_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out)
    thesis = out / "train" / "thesis.txt"
    thesis.write_text("ten years")
    for source in (SOURCE, None):
        with pytest.raises(DataError, match="'train', which is no prepared text"):
            prepare(text("a", b"1"), text("b", b"2"), BYTES, out, source=source)
    assert thesis.read_text() == "ten years"
    thesis.unlink()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="is a file"):
        prepare(text("a", b"1"), text("b", b"2"), BYTES, tmp_path / "file")


def test_another_text_of_the_same_name_gets_a_place_of_its_own(tmp_path: Path) -> None:
    place = tmp_path / "mine"
    assert place_for(place, SOURCE) == place
    run(place)
    assert place_for(place, SOURCE) == place
    other = SOURCE | {"texts": ["b"]}
    assert place_for(place, other) == tmp_path / "mine-2"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "mine-2", 10, texts=["b"])
    assert place_for(place, other) == tmp_path / "mine-2"
    assert place_for(place, SOURCE | {"texts": ["c"]}) == tmp_path / "mine-3"


def test_a_disk_that_is_full_is_named_and_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write refuses without a name, as those to an open file do; a read that fails keeps its."""
    both, report = (text("a", *TRAIN), text("b", *HELD)), lambda split, done: None
    for name, refused in ((None, SegptError), (str(tmp_path / "my.txt"), OSError)):

        def fail(*args: object, filename: str | None = name) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", filename)

        with monkeypatch.context() as patch:
            patch.setattr("segpt.data.tokens._Writer.append", fail)
            with pytest.raises(refused, match="No space left") as error:
                prepare(*both, BYTES, tmp_path / "text", report, source=SOURCE)
        if name is None:
            assert "text: No space left on device; what is finished is kept" in str(error.value)
        assert not (tmp_path / "text").exists()
    assert prepare(*both, BYTES, tmp_path / "text", report, source=SOURCE)[0].count
