"""Records verified by scoring again: what agrees, what differs, and what is not at hand."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from segpt.config.base import encode
from segpt.config.conditions import ReadingConditions, stored_policy
from segpt.config.ngram import Ngram
from segpt.config.score import Frozen, InPlace, LowRank, Phased, Policy, ScoreSpec, Sgd
from segpt.data.text import text_digest
from segpt.errors import CheckError, SpecError
from segpt.leaderboard import duration, record, store, verify
from segpt.leaderboard.entry import Baseline, Record, ScoreLine, Verification, figure
from segpt.leaderboard.verdict import Verdict
from segpt.stages.json_files import read_json
from tests.leaderboard import entries
from tests.leaderboard.small_records import DOCUMENTS, packed, scored

TRACKS = f"""
[[tracks]]
name = "small"
about = "Small files."
text = "{text_digest(DOCUMENTS)}"
source = "two.jsonl"
margin = 0.5

[[tracks]]
name = "open"
about = "Any text."
source = "wherever it may be"
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two artifacts, scored in several ways."""
    place = tmp_path_factory.mktemp("made")
    for seed, name in enumerate("ab", 1):
        path = packed(place / f"{name}.segpt", seed)
        scored(path, place / f"{name}.json", Frozen())
        adapted = ScoreSpec(
            mode="rolling",
            boundaries="document",
            context=14,
            batch=2,
            policy=LowRank(rank=2, chunk=8),
            ngram=Ngram(orders=(0, 1), document_orders=(1,), contexts=64),
        )
        scored(path, place / f"{name}-ttt.json", Frozen(), adapted)
    return place


@pytest.fixture
def board(tmp_path: Path) -> Path:
    (tmp_path / "tracks.toml").write_text(TRACKS)
    rows = "".join(json.dumps({"text": d.decode()}) + "\n" for d in DOCUMENTS)
    (tmp_path / "two.jsonl").write_text(rows)
    return tmp_path


def add(board: Path, made: Path, *names: str, track: str = "small", **changes: Any) -> Record:
    scores = [made / f"{name}{end}.json" for name in names for end in ("", "-ttt")]
    given: dict[str, Any] = {"name": "first", "authors": ["Ada"], "date": "2025-03-01"}
    artifacts = [made / f"{name}.segpt" for name in names]
    added = record.add(
        board, artifacts, scores, record.Description(track=track, **(given | changes))
    )
    assert isinstance(added.link.entry, Record)
    return added.link.entry


def verified(
    directory: Path, *names: str, artifacts: Sequence[Path] = (), **options: Any
) -> list[Verdict]:
    board = store.read_board(directory)
    chosen = verify.choose(board, names, remade=options.get("remade", False))
    return [*verify.verify(directory, board, chosen, artifacts=artifacts, **options)]


def forged(board: Path, of: Record, **changes: Any) -> Record:
    """A record whose scores say that every figure is one in a thousand lower; a sound chain."""
    runs = tuple(
        dataclasses.replace(
            run,
            scores=tuple(
                dataclasses.replace(line, bpb=line.bpb * 0.999, nats=line.nats * 0.999)
                for line in run.scores
            ),
        )
        for run in of.runs
    )
    entry = dataclasses.replace(of, runs=runs, bpb=figure(runs).bpb, **changes)
    shutil.rmtree(board / "records")
    (board / "chain.json").unlink()
    store.append_entry(board, entry)
    return entry


def reading_of(line: ScoreLine) -> ScoreSpec:
    return ReadingConditions.read(line.conditions).spec(line.policy)


@pytest.mark.parametrize(
    "spec",
    [
        ScoreSpec(stride=8),
        ScoreSpec(mode="rolling", context=9, boundaries="document", batch=3),
        ScoreSpec(stride=4, context=12, policy=Sgd(chunk=16, rate=0.25, roles=("head",))),
        ScoreSpec(stride=16, policy=Phased(adapters=LowRank(rank=2), fractions=(0.5,))),
        ScoreSpec(stride=1, policy=InPlace(rate=0.1), loops=2, ngram=Ngram(orders=(0, 2))),
    ],
)
def test_how_a_text_was_read_is_found_again(spec: ScoreSpec) -> None:
    conditions = encode(ReadingConditions.of(spec, 16)) | {"causal": "by construction"}
    policy = json.loads(json.dumps(stored_policy(spec)))
    line = entries.line(policy=policy, conditions=conditions)
    assert reading_of(line) == dataclasses.replace(spec, context=spec.reach(16))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conditions": {"mode": "strided"}}, "do not say batch, boundaries, context, loops"),
        ({"policy": {"kind": "oracle"}}, "unknown kind 'oracle'"),
        ({"policy": {"kind": "sgd", "chunk": 0}}, "must be at least 1"),
    ],
)
def test_a_score_that_cannot_be_repeated_says_why(
    made: Path, changes: dict[str, Any], words: str
) -> None:
    path = made / "a.json"
    line = record.score_line(read_json(path, "score"), path)
    with pytest.raises(SpecError, match=words):
        reading_of(dataclasses.replace(line, **changes))


def test_every_score_of_a_record_is_repeated(board: Path, made: Path) -> None:
    entry = add(board, made, "a", "b")
    told: list[tuple[float, str]] = []
    artifacts = [made / "a.segpt", made / "b.segpt"]
    (verdict,) = verified(
        board, artifacts=artifacts, report=lambda done, detail: told.append((done, detail))
    )
    assert verdict.state == "checked"
    assert verdict.missing == ""
    assert [c.what for c in verdict.comparisons] == [
        "run 1, frozen",
        "run 1, low_rank+ngram",
        "run 2, frozen",
        "run 2, low_rank+ngram",
    ]
    assert all(c.agrees and c.difference == 0.0 for c in verdict.comparisons)
    assert (verdict.bpb, verdict.artifact) == (entry.bpb, entry.artifact)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    whole = duration.seconds_of(entry, remade=False)
    assert told[-1][0] == pytest.approx(whole)
    assert whole == sum(line.seconds for run in entry.runs for line in run.scores)


def test_a_figure_that_differs_is_found(board: Path, made: Path) -> None:
    forged(board, add(board, made, "a"))
    assert store.check(board).findings == ()
    (verdict,) = verified(board, artifacts=[made / "a.segpt"])
    assert verdict.differs
    assert verdict.state is None
    assert not any(c.agrees for c in verdict.comparisons)
    found = store.read_board(board)
    with pytest.raises(CheckError, match="first was not verified, so nothing was added"):
        verify.append(board, found, verdict, ["Grace"], "2025-04-01")


def test_what_is_not_at_hand_is_said(board: Path, made: Path) -> None:
    add(board, made, "a", "b")
    (verdict,) = verified(board)
    assert (verdict.state, verdict.comparisons) == (None, ())
    assert "2 of its 2 artifacts are not here" in verdict.missing
    (half,) = verified(board, artifacts=[made / "b.segpt"])
    assert half.state is None
    assert not half.differs
    assert [c.what for c in half.comparisons] == ["run 2, frozen", "run 2, low_rank+ngram"]
    assert "1 of its 2 artifacts are not here" in half.missing
    (board / "two.jsonl").unlink()
    (without,) = verified(board, artifacts=[made / "a.segpt"])
    assert without.missing == "its text is not here; give it with --text"


def test_another_text_is_refused(board: Path, made: Path) -> None:
    add(board, made, "a")
    other = board / "other.txt"
    other.write_text("Another text.")
    (verdict,) = verified(board, artifacts=[made / "a.segpt"], text=other)
    assert "its digest is" in verdict.missing
    free = dataclasses.replace(add(board, made, "b", track="open", name="free"))
    (verdict,) = verified(board, free.name, artifacts=[made / "b.segpt"])
    assert verdict.missing == "its text is not here; give it with --text"
    (verdict,) = verified(board, free.name, artifacts=[made / "b.segpt"], text=other)
    assert "it is of text" in verdict.missing
    assert "give its own with --text" in verdict.missing
    (verdict,) = verified(board, free.name, artifacts=[made / "b.segpt"], text=board / "two.jsonl")
    assert verdict.state == "checked"


def test_a_broken_artifact_does_not_stop_the_rest(board: Path, made: Path) -> None:
    entry = add(board, made, "a")
    add(board, made, "b", name="second")
    found = store.read_board(board)
    place = Path(shutil.copy(made / "a.segpt", board / "copied.segpt"))
    (board / "copied.segpt.documents").write_bytes(b"12345678")
    chosen = verify.choose(found, (), remade=False)
    verdicts = [*verify.verify(board, found, chosen, artifacts=[place, made / "b.segpt"])]
    assert [v.state for v in verdicts] == [None, "checked"]
    assert "is not the list of documents" in verdicts[0].missing
    assert verdicts[0].entry == entry


def test_baselines_are_compressed_again(board: Path) -> None:
    record.add_baseline(board, "bzip2", track="small", name="bzip2", date="2025-03-01")
    (verdict,) = verified(board)
    assert verdict.state == "checked"
    assert verdict.comparisons[0].what == "bzip2"
    assert verdict.artifact is None
    found = store.read_board(board).links[0].entry
    assert isinstance(found, Baseline)
    store.append_entry(board, dataclasses.replace(found, name="worse", compressed=1))
    assert [v.state for v in verified(board)] == ["checked", None]
    assert verified(board, remade=True) == []


def test_entries_are_chosen_by_name(board: Path, made: Path) -> None:
    add(board, made, "a")
    store.append_entry(board, entries.claim(track="small"))
    found = store.read_board(board)
    assert [e.name for e in verify.choose(found, (), remade=False)] == ["first"]
    with pytest.raises(SpecError, match="no entry is named 'frist'; did you mean 'first'"):
        verify.choose(found, ["frist"], remade=False)
    with pytest.raises(SpecError, match="said is a claim: it names no artifact"):
        verify.choose(found, ["said"], remade=False)


def test_what_was_found_is_appended_and_is_the_state(board: Path, made: Path) -> None:
    entry = add(board, made, "a", date="2025-03-01")
    for number in (1, 2):
        found = store.read_board(board)
        (verdict,) = verified(board, artifacts=[made / "a.segpt"])
        added = verify.append(board, found, verdict, ["Grace", "Edsger"], "2025-04-01")
        appended = added.link.entry
        assert isinstance(appended, Verification)
        assert appended.name == ("checked-first" if number == 1 else "checked-first-2")
        assert (appended.state, appended.bpb) == ("checked", entry.bpb)
        assert appended.artifact == entry.artifact
        assert appended.conditions["versions"]["segpt"]
    (row,) = store.read_board(board).standings()["small"]
    assert (row.state, len(row.verifications)) == ("checked", 2)
    assert store.check(board).findings == ()
    with pytest.raises(CheckError, match="is of 2025-02-01, before first"):
        verify.append(board, store.read_board(board), verdict, ["Grace"], "2025-02-01")


def test_long_names_leave_room_for_a_number(board: Path, made: Path) -> None:
    name = "x" * 55 + "-yyyyyyyy"
    add(board, made, "a", name=name)
    for ending in ("-", "-2"):
        found = store.read_board(board)
        (verdict,) = verified(board, artifacts=[made / "a.segpt"])
        added = verify.append(board, found, verdict, ["Grace"], "2025-04-01")
        assert len(added.link.entry.name) <= 64
        assert added.link.entry.name.endswith("-2") == (ending == "-2")


@pytest.mark.parametrize("policy", [Frozen(), Sgd(chunk=16, rate=0.1), InPlace()])
def test_a_line_of_any_policy_names_all_that_repeating_it_needs(policy: Policy) -> None:
    assert isinstance(entries.line(policy=encode(policy)), ScoreLine)
    assert reading_of(
        entries.line(
            policy=encode(policy),
            conditions={
                "mode": "strided",
                "boundaries": "stream",
                "context": 16,
                "stride": 8,
                "batch": 16,
                "loops": None,
            },
        )
    ) == ScoreSpec(context=16, stride=8, policy=policy)
