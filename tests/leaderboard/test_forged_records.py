"""Forged records, each consistent in itself in a chain that its forger made anew: all are refused.

The forger may write anything into a record and repack artifacts, but the files are at hand.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pytest
from click.testing import Result

from segpt.artifact import container
from segpt.config.layout import parameters
from segpt.config.score import Frozen, ScoreSpec
from segpt.data.text import document_hash, text_digest
from segpt.errors import CheckError
from segpt.leaderboard import record, store, verify
from segpt.leaderboard.entry import Record, Run, ScoreLine, figure
from segpt.leaderboard.verdict import Verdict
from segpt.stages.json_files import write_json
from segpt.stages.pack import documents_path, pack, read_artifact
from segpt.stages.score import score
from segpt.values import Artifact, Text, documents_digest
from tests.leaderboard import entries
from tests.leaderboard.small_records import DOCUMENTS, packed, scored

T = TypeVar("T")
Segpt = Callable[..., Result]

TEXT = text_digest(DOCUMENTS)
TRACKS = f"""
[[tracks]]
name = "small"
about = "Small files."
bytes = 20_000
parameters = 100_000
text = "{TEXT}"
source = "two.jsonl"

[[tracks]]
name = "tiny"
about = "Tiny files."
bytes = 2_000
text = "{TEXT}"
source = "two.jsonl"
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two artifacts with their scores."""
    place = tmp_path_factory.mktemp("made")
    for seed, name in enumerate("ab", 1):
        scored(packed(place / f"{name}.segpt", seed), place / f"{name}.json", Frozen())
    return place


@pytest.fixture
def board(tmp_path: Path) -> Path:
    place = tmp_path / "board"
    place.mkdir()
    (place / "tracks.toml").write_text(TRACKS)
    rows = "".join(json.dumps({"text": d.decode()}) + "\n" for d in DOCUMENTS)
    (place / "two.jsonl").write_text(rows)
    return place


def honest(board: Path, made: Path, *names: str) -> Record:
    chosen = names or ("a",)
    added = record.add(
        board,
        [made / f"{name}.segpt" for name in chosen],
        [made / f"{name}.json" for name in chosen],
        record.Description(name="first", track="small", authors=["Ada"], date="2025-03-01"),
    )
    assert isinstance(added.link.entry, Record)
    return added.link.entry


def rewritten(board: Path, entry: Record) -> None:
    """A chain made anew that holds ``entry`` alone, which is sound as far as it can be told."""
    shutil.rmtree(board / "records", ignore_errors=True)
    (board / "chain.json").unlink(missing_ok=True)
    store.append_entry(board, entry)
    assert store.check(board).findings == ()


def verified(board: Path, *artifacts: Path) -> Verdict:
    read = store.read_board(board)
    entry = verify.choose(read, ["first"], remade=False)
    (verdict,) = verify.verify(board, read, entry, artifacts=artifacts)
    return verdict


def lines(entry: Record, **changes: Any) -> Record:
    """The record with every score changed; its figure follows."""
    runs = tuple(
        dataclasses.replace(
            run, scores=tuple(dataclasses.replace(line, **changes) for line in run.scores)
        )
        for run in entry.runs
    )
    return dataclasses.replace(entry, runs=runs, bpb=figure(runs).bpb)


def conditions(entry: Record, **changes: Any) -> Record:
    return lines(entry, conditions={**entry.runs[0].scores[0].conditions, **changes})


def smaller(entry: Record) -> Record:
    """A thousand bytes fewer everywhere that the record says."""
    sections = {**entry.sections, "codes": 0}
    size = sum(sections.values()) - 300
    sections["halves"] -= 300
    run = dataclasses.replace(entry.runs[0], bytes=size)
    return dataclasses.replace(entry, bytes=size, sections=sections, runs=(run,))


def moved(entry: Record) -> Record:
    """Bytes that are said to be of another section; the sum stays."""
    sections = {**entry.sections, "header": entry.sections["header"] - 5}
    return dataclasses.replace(entry, sections=sections | {"halves": sections["halves"] + 5})


def better(entry: Record) -> Record:
    line = entry.runs[0].scores[0]
    return lines(entry, nats=line.nats * 0.99, bpb=line.bpb * 0.99)


def other_track(entry: Record) -> Record:
    """What the track of smaller files would not take."""
    run = dataclasses.replace(entry.runs[0], bytes=1_999)
    sections = {**dict.fromkeys(entry.sections, 0), "halves": 1_999}
    return dataclasses.replace(entry, track="tiny", bytes=1_999, sections=sections, runs=(run,))


# What the forger changes, the field that is named, and what else the line must say.
FORGED: Mapping[str, tuple[Callable[[Record], Record], str, str]] = {
    "bytes": (smaller, "bytes", "claimed"),
    "parameters": (lambda e: dataclasses.replace(e, parameters=1_000), "parameters", "1,000"),
    "sections": (moved, "sections.header", "claimed"),
    "causal": (lambda e: conditions(e, causal="by faith"), "conditions.causal", "by faith"),
    "order": (lambda e: conditions(e, order="two passes"), "conditions.order", "two passes"),
    "coverage": (lambda e: conditions(e, coverage="all"), "conditions.coverage", "all"),
    "invented": (
        lambda e: conditions(e, contest="the targets of sp1024"),
        "conditions.contest",
        "",
    ),
    "beyond": (
        lambda e: conditions(e, beyond_model_context=True),
        "conditions.beyond_model_context",
        "true",
    ),
    "documents": (lambda e: conditions(e, documents=3), "conditions.documents", "3, derived 2"),
    "boundary": (lambda e: conditions(e, boundary_nats=0.5), "conditions.boundary_nats", "0.5"),
    "tokens": (lambda e: lines(e, tokens=1), "runs[0].scores[0].tokens", "claimed 1"),
    "policy": (
        lambda e: lines(e, policy={"kind": "sgd"}),
        "runs[0].scores[0].policy",
        '"chunk": 128',
    ),
    "seed": (
        lambda e: dataclasses.replace(e, runs=(dataclasses.replace(e.runs[0], seed=7),)),
        "runs[0].seed",
        "claimed 7, derived 1",
    ),
    "seed of a score": (lambda e: lines(e, seed=None), "runs[0].scores[0].seed", "derived 1"),
    "recipe": (
        lambda e: dataclasses.replace(e, origin={**e.origin, "recipe": "f" * 16}),
        "origin.recipe",
        "0123456789abcdef",
    ),
    "another origin": (
        lambda e: dataclasses.replace(e, origin={**e.origin, "commit": "a1b2"}),
        "origin.commit",
        "derived nothing",
    ),
    "bpb": (better, "frozen", "DIFFERS"),
    "another track's artifact": (other_track, "bytes", "claimed 1,999"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_record_is_refused_with_field_claim_and_derived_value(
    board: Path, made: Path, segpt: Segpt, kind: str
) -> None:
    forge, field, words = FORGED[kind]
    entry = honest(board, made)
    assert verified(board, made / "a.segpt").state == "checked"
    rewritten(board, forge(entry))
    done = segpt(
        *("leaderboard", "verify", "--artifact", made / "a.segpt"),
        *("--dir", board, "--device", "cpu"),
    )
    assert done.exit_code == 1, done.output
    assert "first: NOT VERIFIED" in done.stdout
    named = [line for line in done.stdout.splitlines() if f"{field}: claimed" in line]
    assert any(words in line and "DIFFERS" in line for line in named), done.stdout


def test_another_tracks_artifact_breaks_the_limit_of_this_one(board: Path, made: Path) -> None:
    rewritten(board, other_track(honest(board, made)))
    verdict = verified(board, made / "a.segpt")
    size = (made / "a.segpt").stat().st_size
    assert any(f"{size:,} bytes, " in f and "of tiny" in f for f in verdict.findings)
    assert verdict.state is None


def test_a_record_whose_figure_is_not_that_of_its_scores_is_refused(
    board: Path, made: Path
) -> None:
    """Written past `add`, which would refuse it; the chain alone is sound."""
    entry = dataclasses.replace(honest(board, made), bpb=1.0)
    links, chain = entries.chained(entry)
    for path in (board / "records").iterdir():
        path.unlink()
    write_json(board / "records" / links[0].file, links[0])
    write_json(board / "chain.json", chain)
    verdict = verified(board, made / "a.segpt")
    assert verdict.state is None
    assert any(fact.field == "bpb" and fact.claimed == 1.0 for fact in verdict.refuted)
    assert any("bpb is 1.0, but its scores give" in finding for finding in verdict.findings)


@pytest.mark.parametrize("days", [2, 400])
def test_a_day_in_the_future_is_refused(board: Path, made: Path, days: int) -> None:
    day = (datetime.now(UTC) + timedelta(days=days)).date().isoformat()
    entry = dataclasses.replace(honest(board, made), date=day)
    with pytest.raises(CheckError, match=f"date is {day}, which is in the future"):
        rewritten(board, entry)
    links, chain = entries.chained(entry)
    write_json(board / "records" / links[0].file, links[0])
    write_json(board / "chain.json", chain)
    (finding,) = store.check(board).findings
    assert f"date is {day}" in finding
    verdict = verified(board, made / "a.segpt")
    assert verdict.state is None
    assert verdict.findings == (finding.removeprefix("0001-first.json: "),)


def test_tomorrow_is_today_elsewhere(board: Path, made: Path) -> None:
    day = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
    rewritten(board, dataclasses.replace(honest(board, made), date=day))
    assert verified(board, made / "a.segpt").state == "checked"


def trained_on(made: Path, out: Path, documents: list[int] | None) -> Path:
    """The artifact of another list of training documents, or with none beside it."""
    held = container.unpack(read_artifact(made / "a.segpt"))
    seen = np.unique(np.array(documents or [], np.uint64))
    origin = {**held.origin, "documents": documents_digest(seen)}
    pack(dataclasses.replace(held, origin=origin, documents=seen), out)
    if documents is None:
        documents_path(out).unlink()
    return out


def unlisted(board: Path, artifact: Path) -> Record:
    """The record of a forger who scored in a place where nothing was known of training."""
    alone = Artifact(artifact.read_bytes(), np.array([1], np.uint64))
    text = Text("two documents", lambda: iter(DOCUMENTS))
    table = score(alone, text, ScoreSpec(stride=8)).plain()
    place = board / "forged.json"
    write_json(place, table)
    line = record.score_line(table, place)
    held = container.unpack(alone)
    run = Run(artifact=alone.digest, bytes=alone.size, seed=1, scores=(line,))
    return entries.record(
        "first",
        track="small",
        runs=(run,),
        bytes=alone.size,
        parameters=parameters(held.spec),
        bpb=line.bpb,
        origin=dict(held.origin),
        sections={s.name: s.bytes for s in container.sections(alone)},
    )


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ([document_hash(d) for d in DOCUMENTS], "2 of the 2 documents"),
        ([document_hash(DOCUMENTS[1]), 5], "1 of the 2 documents"),
        ([], "unchecked"),
        (None, "unchecked"),
    ],
    ids=["trained on the text", "on half of it", "a list of nothing", "no list"],
)
def test_an_overlap_that_nothing_proves_is_not_none(
    board: Path, made: Path, segpt: Segpt, documents: list[int] | None, words: str
) -> None:
    artifact = trained_on(made, board / "forged.segpt", documents)
    rewritten(board, unlisted(board, artifact))
    done = segpt(
        *("leaderboard", "verify", "--artifact", artifact, "--dir", board, "--device", "cpu")
    )
    assert done.exit_code == 1
    (line,) = [row for row in done.stdout.splitlines() if ".overlap: " in row]
    assert 'claimed "none", derived ' in line
    assert words in line
    assert ".documents" in line


def test_a_list_that_the_leaderboard_keeps_proves_what_it_can(board: Path, made: Path) -> None:
    """`add` keeps it, so that a copy of the artifact alone is enough later on."""
    entry = honest(board, made)
    (kept,) = (board / "documents").iterdir()
    assert kept.name == f"{entry.origin['documents']}.documents"
    alone = Path(shutil.copy(made / "a.segpt", board / "alone.segpt"))
    assert verified(board, alone).state == "checked"
    kept.write_bytes(kept.read_bytes()[:-8])
    verdict = verified(board, alone)
    assert verdict.state is None
    assert "is not the list of documents that its name says" in verdict.missing
    kept.unlink()
    assert [fact.field for fact in verified(board, alone).refuted] == [
        "runs[0].scores[0].conditions.overlap"
    ]


def test_one_model_is_not_two_runs(board: Path, made: Path) -> None:
    """The weights of the first run under another seed in the header: another digest."""
    entry = honest(board, made, "a", "b")
    assert verified(board, made / "a.segpt", made / "b.segpt").state == "checked"
    artifact = read_artifact(made / "a.segpt")
    held = container.unpack(artifact)
    again = dataclasses.replace(
        held, origin={**held.origin, "seed": "3"}, documents=artifact.documents
    )
    out = board / "again.segpt"
    pack(again, out)
    scored(out, board / "again.json", Frozen())
    line = record.score_line(json.loads((board / "again.json").read_text()), out)
    second = Run(artifact=line.model, bytes=out.stat().st_size, seed=3, scores=(line,))
    runs = (entry.runs[0], second)
    size = max(run.bytes for run in runs)
    rewritten(board, dataclasses.replace(entry, runs=runs, bytes=size, bpb=figure(runs).bpb))
    verdict = verified(board, made / "a.segpt", out)
    assert verdict.state is None
    (finding,) = verdict.findings
    assert finding.startswith("runs[1].seed: claimed to be another run than runs[0], but")


def test_a_score_of_another_text_is_refused(board: Path, made: Path) -> None:
    """The text of the track is the one that is scored, whatever the conditions say of it."""
    entry = honest(board, made)
    text = Text("longer", lambda: iter([DOCUMENTS[0] * 3]))
    table = score(read_artifact(made / "a.segpt"), text, ScoreSpec(stride=8)).plain()
    kept = {"bytes", "tokens", "nats", "bpb"}
    other = {name: table[name] for name in kept}
    rewritten(board, lines(entry, **other))
    named = {fact.field.rpartition(".")[2] for fact in verified(board, made / "a.segpt").refuted}
    assert {"bytes", "tokens", "nats"} <= named


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": {"kind": "sgd", "chunk": 0}},
        {"policy": {"kind": "frozen", "x": 1}},
        {"conditions": {"mode": "strided", "overlap": "none"}},
    ],
    ids=str,
)
def test_a_score_that_cannot_be_repeated_is_a_finding(
    board: Path, made: Path, changes: dict[str, Any]
) -> None:
    rewritten(board, lines(honest(board, made), **changes))
    verdict = verified(board, made / "a.segpt")
    assert verdict.differs
    assert any("runs[0].scores[0].policy or conditions: " in f for f in verdict.findings)


def forged_value(value: Any) -> Any:
    """Another value of the same type."""
    match value:
        case None:
            return 7
        case str():
            return ("e" if value[0] != "e" else "f") + value[1:]
        case int():
            return value + 1
        case float():
            return value * 0.99
        case Mapping():
            key = "coverage" if "coverage" in value else next(iter(value))
            return {**value, key: forged_value(value[key])}
        case _:
            raise AssertionError(value)


def test_every_field_of_a_record_is_derived_or_said_to_be_unverifiable(
    board: Path, made: Path
) -> None:
    """A field that is new and neither derived nor listed fails here."""
    entry = honest(board, made)
    (run,) = entry.runs
    (line,) = run.scores
    forged: dict[str, Record] = {}
    for field in derived_fields(Record) - {"runs"}:
        forged[f"Record.{field}"] = forged_field(entry, field)
    for field in derived_fields(Run) - {"scores"}:
        forged[f"Run.{field}"] = dataclasses.replace(entry, runs=(forged_field(run, field),))
    for field in derived_fields(ScoreLine):
        changed = dataclasses.replace(run, scores=(forged_field(line, field),))
        forged[f"ScoreLine.{field}"] = dataclasses.replace(entry, runs=(changed,))
    assert len(forged) >= 18
    read = store.read_board(board)
    for name, each in forged.items():
        links, _ = entries.chained(each)
        changed_board = read._replace(links=tuple(links))
        (verdict,) = verify.verify(board, changed_board, [each], artifacts=[made / "a.segpt"])
        assert verdict.state is None, f"{name} is believed"


def derived_fields(cls: type[Any]) -> set[str]:
    """Those that are not listed as unverifiable."""
    from segpt.leaderboard import derive

    fields = {field.name for field in dataclasses.fields(cls)}
    assert derive.UNVERIFIABLE[cls].keys() <= fields
    return fields - derive.UNVERIFIABLE[cls].keys()


def forged_field(value: T, field: str) -> T:
    changes: dict[str, Any] = {field: forged_value(getattr(value, field))}
    return dataclasses.replace(cast(Any, value), **changes)


def test_every_field_is_on_the_page() -> None:
    from segpt.leaderboard import derive

    page = (Path(__file__).resolve().parents[2] / "docs" / "leaderboard.md").read_text()
    rows = [row for row in page.splitlines() if row.startswith("| ")]
    for cls, listed in derive.UNVERIFIABLE.items():
        for field in dataclasses.fields(cls):
            opening = f"| {cls.__name__.lower()} | "
            named = [row for row in rows if f"`{field.name}`" in row and opening.lower() in row]
            assert len(named) == 1, f"{cls.__name__}.{field.name}: {len(named)} rows"
            assert ("not verifiable" in named[0]) == (field.name in listed), named[0]


def test_numbers_that_json_cannot_hold_never_reach_the_chain(board: Path, made: Path) -> None:
    """Infinity in a score would be written, and then no one could read the chain again."""
    table = json.loads((made / "a.json").read_text())
    table["conditions"]["boundary_nats"] = math.inf
    odd = board / "odd.json"
    odd.write_text(json.dumps(table).replace("Infinity", "1e999"))
    with pytest.raises(Exception, match=r"odd\.json.*boundary_nats must be finite"):
        record.add(
            board,
            [made / "a.segpt"],
            [odd],
            record.Description(name="first", track="small", authors=["Ada"], date="2025-03-01"),
        )
    assert store.check(board).findings == ()
    assert not (board / "records").exists()
