"""Records from packed files and the JSON that scoring them leaves behind."""

import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import pytest

from segpt.artifact.container import sections, unpack
from segpt.config.layout import parameters
from segpt.config.score import Frozen, ScoreSpec, Sgd
from segpt.data.text import text_digest
from segpt.errors import ArtifactError, CheckError, SegptError, SpecError
from segpt.leaderboard import page_files, record, store, track_text
from segpt.leaderboard.compressors import PROGRAMS, compressed, compressors
from segpt.leaderboard.entry import Baseline, Entry, Link, Record
from segpt.stages.json_files import write_json
from segpt.stages.pack import documents_path, read_artifact
from segpt.stages.score import score
from segpt.values import Text
from tests.leaderboard import entries
from tests.leaderboard.small_records import DOCUMENTS, packed, scored

TRACKS = f"""
[[tracks]]
name = "small"
about = "Small files."
bytes = 20_000
text = "{text_digest(DOCUMENTS)}"
source = "texts/two.jsonl"

[[tracks]]
name = "tiny"
about = "Tiny files."
bytes = 100
policies = ["frozen"]

[[tracks]]
name = "seeds"
about = "Three of them."
seeds = 3
margin = 0.001
significance = 0.01
"""
PAGE = "# Leaderboard\n\n<!-- records -->\n<!-- /records -->\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three artifacts, each scored; the first under two policies."""
    place = tmp_path_factory.mktemp("made")
    for seed, name in enumerate("abc", 1):
        scored(packed(place / f"{name}.segpt", seed), place / f"{name}.json", Frozen())
    scored(place / "a.segpt", place / "ttt.json", Sgd(chunk=16, rate=0.1))
    return place


@pytest.fixture
def board(tmp_path: Path) -> Path:
    (tmp_path / "tracks.toml").write_text(TRACKS)
    (tmp_path / "README.md").write_text(PAGE)
    (tmp_path / "texts").mkdir()
    rows = "".join(json.dumps({"text": d.decode()}) + "\n" for d in DOCUMENTS)
    (tmp_path / "texts" / "two.jsonl").write_text(rows)
    return tmp_path


def add(board: Path, made: Path, *scores: str, **changes: Any) -> store.Added:
    given: dict[str, Any] = {
        "artifacts": [made / "a.segpt"],
        "name": "first",
        "track": "small",
        "authors": ("Ada",),
        "date": "2025-03-01",
    } | changes
    artifacts = given.pop("artifacts")
    return record.add(
        board, artifacts, [made / s for s in scores or ("a.json",)], record.Description(**given)
    )


def links(board: Path) -> tuple[Link, ...]:
    return store.read_board(board).links


def files(board: Path) -> list[str]:
    return sorted(path.name for path in (board / "records").glob("*"))


def edit(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_a_record_says_what_the_artifact_and_its_scores_say(board: Path, made: Path) -> None:
    added = add(board, made, "a.json", "ttt.json", recipe="segpt demo", about="Random weights.")
    assert added.path == board / "records" / "0001-first.json"
    artifact = read_artifact(made / "a.segpt")
    model = unpack(artifact)
    scores = [json.loads((made / name).read_text()) for name in ("a.json", "ttt.json")]
    (link,) = links(board)
    found = link.entry
    assert isinstance(found, Record)
    assert found == added.link.entry
    assert found.artifact == artifact.digest
    assert found.bytes == (made / "a.segpt").stat().st_size
    assert found.parameters == parameters(model.spec)
    assert found.origin == model.origin
    assert found.sections == {s.name: s.bytes for s in sections(artifact)}
    assert (found.recipe, found.about) == ("segpt demo", "Random weights.")
    assert found.bpb == min(score["bpb"] for score in scores)
    (run,) = found.runs
    assert run.seed == 1
    assert [line.policy for line in run.scores] == [score["policy"] for score in scores]
    assert [line.nats for line in run.scores] == [score["nats"] for score in scores]
    assert added.advance is not None
    assert added.advance.made
    checked = store.check(board)
    assert checked.findings == ()
    assert checked.chain == store.read_board(board).chain


def test_several_artifacts_are_runs_and_scores_find_theirs(board: Path, made: Path) -> None:
    artifacts = [made / f"{name}.segpt" for name in "abc"]
    scores = ("c.json", "a.json", "b.json", "ttt.json")
    added = add(board, made, *scores, artifacts=artifacts, track="seeds")
    found = added.link.entry
    assert isinstance(found, Record)
    assert [run.seed for run in found.runs] == [1, 2, 3]
    assert [len(run.scores) for run in found.runs] == [2, 1, 1]
    assert all(line.model == run.artifact for run in found.runs for line in run.scores)
    assert found.bytes == max(path.stat().st_size for path in artifacts)
    bpb = [json.loads((made / f"{name}.json").read_text())["bpb"] for name in "abc"]
    assert found.bpb == pytest.approx(sum(bpb) / 3, rel=1e-15)
    assert added.advance is not None
    assert added.advance.made
    worse = store.append_entry(board, entries.claim("better", 0.5, "seeds"))
    assert worse.advance is None


def test_runs_without_a_score_and_scores_without_a_run_are_refused(board: Path, made: Path) -> None:
    both = [made / "a.segpt", made / "b.segpt"]
    with pytest.raises(SegptError, match=r"a record needs a score of .*b\.segpt"):
        add(board, made, "a.json", artifacts=both, track="seeds")
    with pytest.raises(CheckError, match=r"c\.json: is of model .*, none of the artifacts"):
        add(board, made, "a.json", "b.json", "c.json", artifacts=both, track="seeds")
    with pytest.raises(CheckError, match="two of its runs have the same artifact"):
        add(board, made, artifacts=[made / "a.segpt"] * 2, track="seeds")
    with pytest.raises(SegptError, match="a record needs an artifact"):
        add(board, made, artifacts=[])
    assert files(board) == []


def test_a_score_of_another_artifact_is_refused(board: Path, made: Path) -> None:
    with pytest.raises(CheckError, match=r"scores\[0\]: is of model .* not of the artifact"):
        add(board, made, artifacts=[made / "b.segpt"])
    assert files(board) == []
    assert not (board / "chain.json").exists()


def test_a_score_of_something_else_than_an_artifact_is_refused(
    board: Path, made: Path, tmp_path: Path
) -> None:
    model = unpack(read_artifact(made / "a.segpt"))
    text = Text("two documents", lambda: iter(DOCUMENTS))
    write_json(tmp_path / "loose.json", score(model, text, ScoreSpec(stride=8)).plain())
    with pytest.raises(CheckError, match="score the packed file itself"):
        add(board, made, str(tmp_path / "loose.json"))


def test_a_score_that_could_not_look_for_training_documents_is_refused(
    board: Path, made: Path, tmp_path: Path
) -> None:
    alone = Path(shutil.copy(made / "a.segpt", tmp_path / "alone.segpt"))
    assert not documents_path(alone).exists()
    unchecked = scored(alone, tmp_path / "unchecked.json", Frozen())
    with pytest.raises(CheckError, match="condition 'overlap' is not proved: 'unchecked"):
        add(board, made, str(unchecked))


def test_an_artifact_over_the_budget_is_refused(board: Path, made: Path) -> None:
    with pytest.raises(CheckError, match="over the budget of 100 of tiny"):
        add(board, made, track="tiny")
    assert not (board / "records").exists()


def test_all_findings_are_told_at_once(board: Path, made: Path) -> None:
    with pytest.raises(CheckError, match=r"over the budget.*policy 'sgd' is not allowed on tiny"):
        add(board, made, "ttt.json", track="tiny")


def test_an_unknown_track_names_the_nearest(board: Path, made: Path) -> None:
    with pytest.raises(CheckError, match="unknown track 'smal'; did you mean 'small'"):
        add(board, made, track="smal")
    with pytest.raises(SpecError, match="unknown track 'smal'; did you mean 'small'"):
        record.add_baseline(board, "xz", track="smal", name="xz", date="2025-03-01")


def test_entries_are_only_ever_appended(board: Path, made: Path) -> None:
    first = add(board, made).path
    before = first.read_bytes()
    with pytest.raises(CheckError, match="has the same name as 0001-first"):
        add(board, made, "b.json", artifacts=[made / "b.segpt"])
    with pytest.raises(CheckError, match="has the same artifact as"):
        add(board, made, "ttt.json", name="second")
    second = add(board, made, "b.json", artifacts=[made / "b.segpt"], name="second").path
    store.append_entry(board, entries.claim(track="tiny"))
    assert files(board) == ["0001-first.json", "0002-second.json", "0003-said.json"]
    assert first.read_bytes() == before
    assert second.name == "0002-second.json"
    assert [link.number for link in links(board)] == [1, 2, 3]
    assert store.check(board).findings == ()


def test_nothing_is_added_to_a_broken_board(board: Path, made: Path) -> None:
    path = add(board, made).path
    path.rename(path.with_name("0001-other.json"))
    with pytest.raises(CheckError, match=r"nothing was added: 0001-other\.json: a file with"):
        add(board, made, name="second")
    with pytest.raises(CheckError, match=r"0001-other\.json"):
        store.read_board(board)


def test_a_damaged_board_is_read_to_its_end(board: Path, made: Path) -> None:
    path = add(board, made).path
    for name in ("one", "two", "three"):
        store.append_entry(board, entries.claim(name, track="tiny"))
    (board / "records" / "0002-one.json").write_text(path.read_text()[:100])
    (board / "records" / "0003-two.json").unlink()
    (board / "records" / "notes").mkdir()
    path.write_text(path.read_text().replace('"first"', '"frist"'))
    told = "\n".join(store.check(board).findings)
    assert "0001-first.json: a file with this number and name is called 0001-frist" in told
    assert "0002-one.json is not valid JSON" in told
    assert "0004-three.json: the entries before it, 3, are missing" in told
    assert "notes: not an entry of the leaderboard; remove it" in told
    assert "chain.json: entries: says 4, and the files give 3" in told


def test_a_head_that_was_kept_must_still_be_there(board: Path, made: Path) -> None:
    add(board, made)
    chain = store.check(board).chain
    assert chain is not None
    store.append_entry(board, entries.claim(track="tiny"))
    assert store.check(board, chain.head).findings == ()
    assert store.check(board, chain.root).findings == ()
    for path in (board / "records").iterdir():
        path.unlink()
    (board / "chain.json").unlink()
    store.append_entry(board, entries.claim("other", track="tiny"))
    (finding,) = store.check(board, chain.head).findings
    assert finding.startswith(f"{chain.head}: no entry has this digest; the chain was made anew")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nats": float("nan")}, r"\$\.nats"),
        ({"bpb": 0.0}, "bpb must be positive"),
        ({"bytes": 0}, "bytes is a count from 1"),
        ({"bytes": 10**400}, "bytes is a count from 1"),
        ({"seconds": -1.0}, "seconds are finite and not negative"),
        ({"policy": {}}, "policy names its kind"),
        ({"origin": {"text": "two documents"}}, "text is a SHA-256"),
        ({"origin": 3}, "not a score; make one with: segpt score"),
        ({"tokens": "many"}, r"\$\.tokens: expected a whole number"),
    ],
)
def test_a_damaged_score_is_refused_by_name(
    board: Path, made: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    damaged = edit(Path(shutil.copy(made / "a.json", tmp_path / "damaged.json")), **changes)
    with pytest.raises(SpecError, match=words) as caught:
        add(board, made, str(damaged))
    assert "damaged.json" in str(caught.value)


def test_text_that_is_not_unicode_is_refused(board: Path, made: Path, tmp_path: Path) -> None:
    table = json.loads((made / "a.json").read_text())
    table["conditions"]["causal"] = "\udcff"
    odd = tmp_path / "odd.json"
    odd.write_text(json.dumps(table))
    with pytest.raises(SegptError, match="holds text that is not Unicode"):
        add(board, made, str(odd))
    assert files(board) == []


def test_files_that_are_something_else_are_refused(board: Path, made: Path) -> None:
    with pytest.raises(ArtifactError, match=r"a\.json"):
        add(board, made, artifacts=[made / "a.json"])
    with pytest.raises(SegptError, match=r"a\.segpt is not valid JSON"):
        add(board, made, "a.segpt")
    with pytest.raises(SegptError, match="a record needs a score"):
        record.add(
            board,
            [made / "a.segpt"],
            [],
            record.Description(name="n", track="small", authors=["A"], date="2025-03-01"),
        )


def test_tracks_are_read_strictly(board: Path) -> None:
    assert [track.name for track in store.read_tracks(board)] == ["small", "tiny", "seeds"]
    place = board / "tracks.toml"
    for wrong, words in (
        (TRACKS.replace("bytes = 100", "byte = 100"), "unknown key 'byte' in track; did you mean"),
        (TRACKS.replace('"frozen"', '"frosen"'), "unknown value 'frosen'; did you mean 'frozen'"),
        (TRACKS.replace('["frozen"]', "[]"), "policies names at least one"),
        (TRACKS.replace('"tiny"', '"small"'), "two tracks are named 'small'"),
        (TRACKS.replace('"tiny"', '"a b"'), "name 'a b'"),
        (TRACKS + 'text = "abc"', "text is a SHA-256 of 64"),
        (TRACKS + "seconds = 0", "seconds must be positive"),
        (TRACKS + "bytes =", "not valid TOML"),
    ):
        place.write_text(wrong)
        with pytest.raises(SpecError, match=words) as caught:
            store.read_tracks(board)
        assert str(place) in str(caught.value)
    place.unlink()
    with pytest.raises(SpecError, match="name the leaderboard's directory with --dir"):
        store.read_tracks(board)


def test_the_pages_are_stale_until_they_are_rendered(board: Path, made: Path) -> None:
    readme, index = board / "README.md", board / "index.html"
    assert page_files.render_pages(board, write=True) == {readme: True, index: True}
    add(board, made)
    before = readme.read_bytes(), index.read_bytes()
    assert page_files.render_pages(board, write=False) == {readme: True, index: True}
    assert (readme.read_bytes(), index.read_bytes()) == before
    page_files.render_pages(board, write=True)
    assert b"| 1 | first | " in readme.read_bytes()
    assert page_files.render_pages(board, write=False) == {readme: False, index: False}
    index.write_bytes(index.read_bytes() + b"\n")
    assert page_files.render_pages(board, write=False) == {readme: False, index: True}
    readme.write_text("no markers")
    with pytest.raises(SegptError, match=r"README\.md: the page needs one line"):
        page_files.render_pages(board, write=True)
    readme.unlink()
    with pytest.raises(SegptError, match="cannot read"):
        page_files.render_pages(board, write=True)


def test_a_baseline_is_of_the_text_of_its_track(board: Path) -> None:
    added = record.add_baseline(board, "xz", track="small", name="xz", date="2025-03-01")
    found = added.link.entry
    assert isinstance(found, Baseline)
    joined = b"".join(DOCUMENTS)
    assert (found.text, found.bytes) == (text_digest(DOCUMENTS), len(joined))
    assert found.compressed <= len(lzma.compress(joined))
    assert "Python" in found.version
    with pytest.raises(SegptError, match="unknown compressor 'xs'; did you mean 'xz'"):
        record.add_baseline(board, "xs", track="small", name="xs", date="2025-03-01")
    with pytest.raises(SegptError, match="the text of tiny is not here; give it with --text"):
        record.add_baseline(board, "xz", track="tiny", name="t", date="2025-03-01")
    other = board / "other.txt"
    other.write_text("Another text.")
    with pytest.raises(CheckError, match=r"other\.txt: its digest is .*, and the text of small"):
        record.add_baseline(board, "xz", track="small", name="o", date="2025-03-01", text=other)
    free = record.add_baseline(
        board, "gzip", track="tiny", name="g", date="2025-03-01", text=other
    ).link.entry
    assert isinstance(free, Baseline)
    assert free.bytes == 13


@pytest.mark.slow
def test_each_compressor_gives_what_all_of_them_give() -> None:
    text = Text("two documents", lambda: iter(DOCUMENTS * 20))
    every = compressors(text)
    assert set(every) == set(PROGRAMS)
    for program in PROGRAMS:
        found = compressed(text, program)
        assert found.bpb == every[program]
        assert found.bytes == 20 * len(b"".join(DOCUMENTS))
        assert found.version


def test_our_own_text_is_the_one_that_the_demo_tracks_name() -> None:
    ours = Path(__file__).resolve().parents[2] / "leaderboard"
    tracks = [t for t in store.read_tracks(ours) if t.name.startswith("demo-")]
    assert len(tracks) == 2
    for track in tracks:
        text = track_text.text_of(ours, track)
        assert text is not None
        assert track.source == "texts/demo.jsonl.xz"
        assert (len(list(text)), sum(map(len, text))) == (82, 237_560)


def test_an_entry_that_no_rule_forbids_is_written_as_it_is(board: Path) -> None:
    entry: Entry = entries.claim(about="a\u202eb <b>", source="javascript:alert(1)", track="tiny")
    added = store.append_entry(board, entry)
    assert links(board)[0].entry == entry == added.link.entry
