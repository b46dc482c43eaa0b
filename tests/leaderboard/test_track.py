"""Tracks and entries refuse what makes no sense, by name."""

from typing import Any

import pytest

from segpt.config.base import canonical, decode, encode, readable
from segpt.errors import SpecError
from segpt.leaderboard.entry import (
    ROOT,
    Chain,
    Claim,
    Entry,
    Link,
    Record,
    Run,
    ScoreLine,
    Verification,
    figure,
)
from segpt.leaderboard.track import Track, Tracks
from tests.leaderboard import entries

KINDS: dict[str, Entry] = {
    "record": entries.record(),
    "claim": entries.claim(),
    "baseline": entries.baseline(),
    "verification": entries.verification(entries.record()),
}
LONG = "x" * 65


def run(*scores: ScoreLine, seed: int = 1) -> Run:
    return Run(artifact=f"{seed:064x}", bytes=10, seed=seed, scores=scores)


@pytest.mark.parametrize("kind", KINDS)
def test_entries_survive_json_with_their_kind(kind: str) -> None:
    link = Link(number=7, previous=ROOT, entry=KINDS[kind])
    plain = encode(link)
    assert plain["entry"]["kind"] == kind
    assert decode(Link, plain) == link
    assert readable(decode(Link, plain)) == readable(link)
    assert link.file == f"0007-{KINDS[kind].name}.json"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "../../etc"}, "name '../../etc': write at most 64 lower-case letters"),
        ({"name": "<b>"}, "name '<b>'"),
        ({"name": LONG}, "name"),
        ({"name": "a\n"}, "name"),
        ({"track": "a b"}, "track 'a b'"),
        ({"date": "2025-02-30"}, "YYYY-MM-DD"),
        ({"date": "20250201"}, "YYYY-MM-DD"),
        ({"date": "2025-02-01 "}, "YYYY-MM-DD"),
        ({"no": 1}, "unknown key 'no'"),
    ],
)
def test_an_entry_has_a_name_a_track_and_a_day(
    kind: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        decode(Link, {"number": 1, "previous": ROOT, "entry": encode(KINDS[kind]) | changes})


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("record", {"authors": []}, "at least one person"),
        ("claim", {"authors": [" "]}, "an author has a name"),
        ("verification", {"authors": ["x" * 101]}, "at most 100 characters"),
        ("record", {"authors": ["\udcff"]}, "not Unicode; write it in UTF-8"),
        ("record", {"about": "x" * 2001}, "about has at most 2,000 characters, got 2,001"),
        ("record", {"recipe": "x" * 2001}, "recipe has at most 2,000"),
        ("record", {"bytes": 0}, "bytes is a count from 1"),
        ("record", {"bytes": 10**400}, "bytes is a count from 1"),
        ("record", {"bpb": 0.0}, "bpb must be positive"),
        ("record", {"bpb": float("nan")}, "finite"),
        ("record", {"runs": []}, "at least one run"),
        ("record", {"origin": {"tokens": 3}}, "fingerprints, which are strings"),
        ("record", {"sections": {"codes": -1}}, "parts of the artifact to their bytes"),
        ("record", {"sections": {"codes": True}}, "parts of the artifact to their bytes"),
        ("claim", {"source": " "}, "where the figure was published"),
        ("claim", {"source": "x" * 501}, "source has at most 500"),
        ("claim", {"value": -1.0}, "value must be positive"),
        ("claim", {"values": [1.0, 0.0]}, "value must be positive"),
        ("claim", {"bytes": 0}, "bytes is a count"),
        ("claim", {"parameters": 0}, "parameters is a count"),
        ("baseline", {"text": "abc"}, "text is a SHA-256"),
        ("baseline", {"compressed": 0}, "compressed is a count"),
        ("baseline", {"program": "x" * 101}, "program has at most 100"),
        ("verification", {"state": "claimed"}, "unknown value 'claimed'"),
        ("verification", {"artifact": "abc"}, "artifact is a SHA-256"),
        ("verification", {"record": "A"}, "record 'A'"),
        ("verification", {"bpb": 0.0}, "bpb must be positive"),
    ],
)
def test_unsound_fields_are_refused(kind: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        decode(type(KINDS[kind]), encode(KINDS[kind]) | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bytes": 0}, "bytes is a count"),
        ({"parameters": 0}, "parameters is a count"),
        ({"text": "abc"}, "text is a SHA-256"),
        ({"seconds": 0.0}, "seconds must be positive"),
        ({"policies": []}, "policies names at least one"),
        ({"policies": ["frosen"]}, "did you mean 'frozen'"),
        ({"seeds": 0}, "seeds is a count"),
        ({"margin": -0.1}, "margin is finite and not negative"),
        ({"significance": 0.6}, r"significance is in \(0, 0.5\]"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"metric": "loss"}, "unknown value 'loss'"),
        ({"name": "A"}, "name 'A'"),
    ],
)
def test_unsound_tracks_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        decode(Track, {"name": "small", "about": ""} | changes)


def test_tracks_have_names_of_their_own() -> None:
    with pytest.raises(SpecError, match="two tracks are named 'large'"):
        Tracks(tracks=(entries.LARGE, entries.LARGE))


def test_only_core_is_better_when_higher() -> None:
    assert [
        Track(name="t", about="", metric=metric).sign for metric in ("bpb", "tokens", "core")
    ] == [1, 1, -1]


def test_the_figure_is_of_the_best_policy_that_scored_every_run() -> None:
    line = entries.line
    both = [
        run(line(6000.0), line(5000.0, "sgd")),
        run(line(6100.0), line(5200.0, "sgd"), line(100.0, "low_rank"), seed=2),
    ]
    found = figure(both)
    assert found.policy == "sgd"
    assert found.by_run == (line(5000.0).bpb, line(5200.0).bpb)
    assert found.bpb == pytest.approx(line(5100.0).bpb)
    assert figure(both[1:]).policy == "low_rank"


def test_scorings_that_draw_are_averaged_within_their_run() -> None:
    line = entries.line
    drawn = run(*(line(nats, seed=seed) for seed, nats in enumerate((5000.0, 7000.0))))
    (found,) = figure([drawn]).by_run
    assert found == pytest.approx(line(6000.0).bpb)


def test_runs_that_share_no_policy_have_no_figure() -> None:
    line = entries.line
    with pytest.raises(SpecError, match="no policy scored every run"):
        figure([run(line()), run(line(kind="sgd"), seed=2)])


def test_the_value_of_a_baseline_is_bits_per_byte() -> None:
    assert entries.baseline(bytes=1000, compressed=250).value == 2.0
    assert entries.record().value == entries.record().bpb


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"number": 0}, "number is a count"),
        ({"previous": "0"}, "previous is a SHA-256"),
        ({"entry": {"kind": "recrod"}}, "did you mean 'record'"),
        ({"entry": {}}, "unknown kind"),
    ],
)
def test_a_link_is_read_strictly(changes: dict[str, Any], words: str) -> None:
    plain = encode(Link(number=1, previous=ROOT, entry=entries.claim())) | changes
    with pytest.raises(SpecError, match=words):
        decode(Link, plain)


def test_an_index_is_read_strictly() -> None:
    sound = {"root": ROOT, "head": ROOT, "count": 1}
    assert canonical(decode(Chain, sound)) == canonical(Chain(root=ROOT, head=ROOT, count=1))
    for changes in ({"root": ""}, {"head": "x"}, {"count": 0}):
        with pytest.raises(SpecError):
            decode(Chain, sound | changes)


def test_a_record_names_the_artifact_that_is_submitted() -> None:
    runs = (run(entries.line()), run(entries.line(), seed=2))
    record: Record = entries.record(runs=runs)
    assert record.artifact == runs[0].artifact


def test_what_has_no_artifact_need_not_name_one() -> None:
    plain = encode(KINDS["verification"]) | {"artifact": None}
    assert decode(Verification, plain).artifact is None
    assert decode(Claim, encode(entries.claim())).bytes is None
