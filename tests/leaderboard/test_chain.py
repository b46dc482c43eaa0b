"""A chain of a thousand entries, damaged in every way: all of it is found."""

import functools
import itertools
import json
import random
from collections.abc import Iterator

import pytest

from segpt.config.base import decode, encode, readable
from segpt.errors import SpecError
from segpt.leaderboard import chain
from segpt.leaderboard.chain import append, digest_of, index_of, place_of, read
from segpt.leaderboard.entry import ROOT, Chain, Entry, Link
from tests.leaderboard.entries import baseline, chained, claim, line, record, verification

Files = dict[str, bytes]

MANY = 1000


open_once = functools.cache(chain._open_link)  # what a file holds depends on nothing else


@pytest.fixture(autouse=True)
def _files_that_stay_are_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains are read thousands of times, and nearly all of their files are as they were."""
    monkeypatch.setattr(chain, "_open_link", open_once)


def linked(entries: list[Entry], root: str = ROOT) -> Files:
    """The files of a chain, behind another root if one is given."""
    files, previous = {}, root
    for number, entry in enumerate(entries, 1):
        link = Link(number=number, previous=previous, entry=entry)
        files[link.file] = readable(link)
        previous = digest_of(files[link.file])
    return files


def index(files: Files) -> bytes:
    return readable(index_of(files))


@functools.cache
def thousand() -> tuple[Files, bytes]:
    entries: list[Entry] = [
        baseline(f"entry-{i}") if i % 3 else claim(f"entry-{i}") for i in range(MANY)
    ]
    files = linked(entries)
    return files, index(files)


@pytest.fixture
def files() -> Files:
    return dict(thousand()[0])


@pytest.fixture
def head() -> bytes:
    return thousand()[1]


@functools.cache
def four() -> tuple[Files, bytes]:
    first = record(about="Größe: \u2028 \U0001f600")
    found = linked([first, claim(values=(1.1,)), baseline(), verification(first)])
    return found, index(found)


def few() -> tuple[Files, bytes]:
    files, head = four()
    return dict(files), head


def places() -> list[int]:
    """Of the thousand: both ends, and others at random."""
    return [0, 1, MANY - 2, MANY - 1, *random.Random(6).sample(range(2, MANY - 2), 2)]


@pytest.mark.slow
def test_a_sound_chain_gives_back_its_entries(files: Files, head: bytes) -> None:
    links, findings = read(files, head)
    assert findings == ()
    assert [link.number for link in links] == list(range(1, MANY + 1))
    assert [link.entry.name for link in links] == [f"entry-{i}" for i in range(MANY)]
    backwards = dict(reversed(files.items()))
    assert read(backwards, head) == (links, ())
    assert index_of(backwards) == index_of(files)


def test_an_empty_chain_is_sound() -> None:
    assert read({}, None) == ((), ())
    assert index_of({}) is None


@pytest.mark.slow
def test_every_changed_byte_of_every_file_is_found() -> None:
    files, head = few()
    generator = random.Random(1)
    for name, data in files.items():
        for place in range(len(data)):
            changed = bytearray(data)
            changed[place] ^= generator.randrange(1, 256)
            _, findings = read({**files, name: bytes(changed)}, head)
            assert findings, place
            assert name in " ".join(findings) or "chain.json: head" in findings[-1], place
    for place in range(len(head)):
        changed = bytearray(head)
        changed[place] ^= generator.randrange(1, 256)
        _, findings = read(files, bytes(changed))
        assert findings, place


@pytest.mark.slow
def test_every_truncation_and_every_addition_is_found() -> None:
    files, head = few()
    for name, data in files.items():
        for size in range(len(data)):
            assert read({**files, name: data[:size]}, head).findings, (name, size)
        for more in (b"\n", b" ", b"\0", b"{}"):
            assert read({**files, name: data + more}, head).findings
            assert read({**files, name: more + data}, head).findings
    for size in range(len(head)):
        assert read(files, head[:size]).findings


def damaged(files: Files, place: int, generator: random.Random) -> Iterator[tuple[str, Files]]:
    """One entry of a chain changed, deleted, swapped, truncated, or put behind another root."""
    names = list(files)
    name, data = names[place], files[names[place]]
    changed = bytearray(data)
    changed[generator.randrange(len(data))] ^= generator.randrange(1, 256)
    yield "changed", {**files, name: bytes(changed)}
    yield "deleted", {other: files[other] for other in names if other != name}
    other = names[generator.choice([i for i in range(len(names)) if i != place])]
    yield "swapped", {**files, name: files[other], other: data}
    yield "truncated", {**files, name: data[: generator.randrange(len(data))]}
    link = json.loads(data)
    link["previous"] = generator.randbytes(32).hex()
    yield "re-rooted", {**files, name: readable(link)}


@pytest.mark.slow
@pytest.mark.parametrize("place", places())
def test_damage_in_a_chain_of_a_thousand_is_found(place: int, files: Files, head: bytes) -> None:
    name = list(files)[place]
    for kind, harmed in damaged(files, place, random.Random(place)):
        findings = read(harmed, head).findings
        assert findings, kind
        told = " ".join(findings)
        following = list(files)[place + 1] if place + 1 < MANY else "chain.json"
        assert name in told or following in told, (kind, findings)


@pytest.mark.campaign
def test_damage_to_each_of_a_thousand_is_found(files: Files, head: bytes) -> None:
    for place in range(MANY):
        harmed = list(damaged(files, place, random.Random(place)))
        kind, found = harmed[place % len(harmed)]
        assert read(found, head).findings, (place, kind)


def test_all_findings_are_told_at_once(files: Files, head: bytes) -> None:
    generator, names = random.Random(2), list(files)
    chosen = sorted(generator.sample(range(MANY), 300))
    for place in chosen:
        files[names[place]] = files[names[place]][:-3]
    _, findings = read(files, head)
    told = {finding.split(":")[0].removesuffix(" is not valid JSON") for finding in findings}
    assert {names[place] for place in chosen} <= told


@pytest.mark.slow
@pytest.mark.parametrize("place", places())
def test_a_chain_that_goes_on_behind_another_root_is_found(
    place: int, files: Files, head: bytes
) -> None:
    """Everything from one entry on is made anew, and the index with it."""
    entries = [json.loads(data)["entry"] for data in files.values()]
    names = list(files)
    other = dict(list(files.items())[:place])
    previous = "1" * 64
    for number in range(place + 1, MANY + 1):
        link = {"entry": entries[number - 1], "kind": "link", "number": number}
        other[names[number - 1]] = readable(link | {"previous": previous})
        previous = digest_of(other[names[number - 1]])
    (finding,) = read(other, index(other)).findings
    assert finding.startswith(f"{names[place]}: follows '111111111111'")
    assert read(other, head).findings


def test_a_chain_made_wholly_anew_is_found_by_a_head_that_was_kept(files: Files) -> None:
    kept = digest_of(files["0700-entry-699.json"])
    assert place_of(files, kept) == "0700-entry-699.json"
    entries = [json.loads(data)["entry"] for data in files.values()]
    entries[10] = entries[10] | {"compressed": 1}
    other, previous = {}, ROOT
    for number, (name, entry) in enumerate(zip(files, entries, strict=True), 1):
        link = {"entry": entry, "kind": "link", "number": number, "previous": previous}
        other[name] = readable(link)
        previous = digest_of(other[name])
    assert read(other, index(other)).findings == ()
    assert place_of(other, kept) is None


@pytest.mark.parametrize(
    ("number", "words"),
    [(2, "0003-xz.json: the entries before it, 2, are missing"), (4, "chain.json: entries")],
)
def test_a_missing_entry_is_named(number: int, words: str) -> None:
    files, head = few()
    (gone,) = [name for name in files if name.startswith(f"{number:04d}")]
    del files[gone]
    assert any(finding.startswith(words) for finding in read(files, head).findings)


def test_several_missing_entries_are_one_finding() -> None:
    files, head = few()
    for name in list(files)[:3]:
        del files[name]
    _, findings = read(files, head)
    assert "0004-again.json: the entries before it, 1 to 3, are missing" in findings


@pytest.mark.parametrize(
    "name",
    [
        *("notes.txt", "DS_Store", "1-tiny.json", "0005-Tiny.json", "0005-tiny.json.bak"),
        *("0005.json", "\u0660\u0660\u0660\u0665-tiny.json"),
    ],
)
def test_a_foreign_file_is_found_and_the_rest_still_read(name: str) -> None:
    files, head = few()
    links, findings = read({**files, name: b"{}"}, head)
    assert findings == (f"{name}: not an entry of the leaderboard; remove it",)
    assert len(links) == 4


def test_an_entry_under_another_name_is_found() -> None:
    files, head = few()
    data = files.pop("0002-said.json")
    for name in ("0002-other.json", "0005-said.json", "00002-said.json"):
        findings = " ".join(read({**files, name: data}, head).findings)
        assert f"{name}: a file with this number and name is called 0002-said.json" in findings


def test_two_entries_of_the_same_number_are_found() -> None:
    files, head = few()
    second = readable(
        Link(number=2, previous=digest_of(files["0001-tiny.json"]), entry=claim("also"))
    )
    findings = read({**files, "0002-also.json": second}, head).findings
    assert any("there is another entry with the number 2" in finding for finding in findings)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a": NaN}', "NaN is not a number of JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"kind": "link"}', "missing key"),
        (b"[]", "expected a table for link"),
        (b"9" * 5000, "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"", "is not valid JSON"),
    ],
)
def test_hostile_files_are_findings(data: bytes, words: str) -> None:
    files, head = few()
    files["0002-said.json"] = data
    links, findings = read(files, head)
    assert any(f.startswith("0002-said.json") and words in f for f in findings), findings
    assert len(links) == 3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"value": 1.1', b'"value": 1.10'),
        (b'"value": 1.1', b'"value": 1.1,\n    "value": 1.1'),
        (b'"name": "said"', b'"name":  "said"'),
        (b'"name": "said"', b'"name": "\\u0073aid"'),
        (b"\n", b"\r\n"),
    ],
)
def test_the_same_content_in_other_bytes_is_found(old: bytes, new: bytes) -> None:
    files, head = few()
    name = "0002-said.json"
    files[name] = files[name].replace(old, new)
    findings = read(files, head).findings
    assert any(f"{name}: not as segpt wrote it; line " in finding for finding in findings)


def test_text_that_is_not_unicode_cannot_be_written() -> None:
    bad = record(scores=[line(conditions={"causal": "\udcff"})])
    with pytest.raises(SpecError, match=r"0001-tiny\.json: holds text that is not Unicode"):
        append({}, bad)


def test_the_index_is_held_against_the_files() -> None:
    files, head = few()
    found = index_of(files)
    assert found is not None
    sound = encode(found)
    for what, value in (("root", ROOT), ("head", ROOT), ("count", 5)):
        other = readable(decode(Chain, sound | {what: value}))
        (finding,) = read(files, other).findings
        assert finding.startswith(f"chain.json: {'entries' if what == 'count' else what}: says")
    assert read(files, None).findings == ("chain.json: missing, and there are 4 entries",)
    (finding,) = read({}, head).findings
    assert finding == "chain.json: says that there are 4 entries, and there are none"


def test_entries_are_appended_one_by_one() -> None:
    entries: list[Entry] = [record(), claim(), baseline()]
    links, ending = chained(*entries)
    assert linked(entries) == {link.file: readable(link) for link in links}
    for before, after in itertools.pairwise(links):
        assert after.previous == digest_of(readable(before))
    assert ending == index_of(linked(entries))
