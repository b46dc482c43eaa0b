"""Records from a packed file and the JSON that scoring it leaves behind."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segpt.artifact.container import unpack
from segpt.errors import ArtifactError, CheckError, SegptError, SpecError
from segpt.spec.expand import expand
from segpt.spec.layout import Role, layout, parameters
from segpt.spec.model import ModelSpec
from segpt.spec.score import Frozen, ScoreSpec, Sgd
from segpt.spec.track import Record
from segpt.stages import record
from segpt.stages.files import write_json
from segpt.stages.pack import documents_path, pack, read_artifact
from segpt.stages.score import score
from segpt.values import Half, Quantized, Text, Tokenizer, documents_digest

DOCUMENTS = (b"A record is one line of the leaderboard.", b"It is claimed until it is checked.")
TRACKS = """
[[tracks]]
name = "small"
about = "Small files."
bytes = 20_000

[[tracks]]
name = "tiny"
about = "Tiny files."
bytes = 100
policies = ["frozen"]
"""
PAGE = "# Leaderboard\n\n<!-- records -->\n<!-- /records -->\n"


def model_spec() -> ModelSpec:
    mixer = {"heads": 1, "kv_heads": 1, "head_dim": 8, "query_key": ["norm"]}
    layer = {"mixer": mixer, "feed": {"hidden": 16}}
    return expand({"vocab": 257, "width": 8, "context": 16, "depth": 1, "layer": layer})


def packed(out: Path, seed: int) -> Path:
    """An artifact of random weights, with the list of its training documents beside it."""
    spec, generator = model_spec(), np.random.default_rng(seed)
    weights = {
        w.name: Half(generator.normal(w.role is Role.VECTOR, 0.1, w.shape).astype(np.float16))
        for w in layout(spec)
    }
    seen = np.array([1, 2, 3], np.uint64)
    origin = {"recipe": "0123456789abcdef", "documents": documents_digest(seen)}
    pack(Quantized(spec, weights, Tokenizer("bytes", 257), origin, {}, seen), out)
    return out


def scored(artifact: Path, out: Path, policy: Frozen | Sgd) -> Path:
    """What `segpt score ARTIFACT --out OUT` writes."""
    text = Text("two documents", lambda: iter(DOCUMENTS))
    result = score(read_artifact(artifact), text, ScoreSpec(stride=8, policy=policy))
    write_json(out, result.plain())
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two artifacts; the first scored under two policies."""
    place = tmp_path_factory.mktemp("made")
    first, _ = packed(place / "a.segpt", 1), packed(place / "b.segpt", 2)
    scored(first, place / "frozen.json", Frozen())
    scored(first, place / "ttt.json", Sgd(chunk=16, rate=0.1))
    return place


@pytest.fixture
def board(tmp_path: Path) -> Path:
    (tmp_path / "tracks.toml").write_text(TRACKS)
    (tmp_path / "README.md").write_text(PAGE)
    return tmp_path


def add(board: Path, made: Path, *scores: str, **changes: Any) -> Path:
    given: dict[str, Any] = {
        "artifact": made / "a.segpt",
        "name": "first",
        "track": "small",
        "authors": ("Ada",),
        "date": "2025-03-01",
    } | changes
    artifact = given.pop("artifact")
    return record.add(board, artifact, [made / s for s in scores or ("frozen.json",)], **given)


def edit(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def only_record(board: Path) -> Record:
    (found,) = record.read_records(board).values()
    return found


def test_a_record_says_what_the_artifact_and_its_scores_say(board: Path, made: Path) -> None:
    path = add(board, made, "frozen.json", "ttt.json", recipe="demo")
    assert path == board / "records" / "2025-03-01-first.json"
    artifact = read_artifact(made / "a.segpt")
    model = unpack(artifact)
    scores = [json.loads((made / name).read_text()) for name in ("frozen.json", "ttt.json")]
    found = only_record(board)
    assert found.artifact == artifact.digest
    assert found.bytes == (made / "a.segpt").stat().st_size
    assert found.parameters == parameters(model.spec)
    assert found.origin == model.origin
    assert found.state == "claimed"
    assert found.recipe == "demo"
    assert found.bpb == min(score["bpb"] for score in scores)
    assert [line.policy for line in found.scores] == [score["policy"] for score in scores]
    assert [line.nats for line in found.scores] == [score["nats"] for score in scores]
    assert record.check(board) == []


def test_a_score_of_another_artifact_is_refused(board: Path, made: Path) -> None:
    with pytest.raises(CheckError, match=r"scores\[0\]: is of model .* not of the artifact"):
        add(board, made, artifact=made / "b.segpt")
    assert record.read_records(board) == {}


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


def test_a_record_is_never_overwritten(board: Path, made: Path) -> None:
    path = add(board, made)
    before = path.read_bytes()
    with pytest.raises(CheckError, match="records never change; choose another name"):
        add(board, made, "ttt.json")
    assert path.read_bytes() == before
    with pytest.raises(CheckError, match="has the same artifact as"):
        add(board, made, "ttt.json", name="second")
    with pytest.raises(CheckError, match="has the same name as"):
        add(board, made, "ttt.json", date="2025-03-02")
    assert list((board / "records").iterdir()) == [path]


def test_nothing_is_added_to_a_broken_board(board: Path, made: Path) -> None:
    add(board, made).rename(board / "records" / "2025-03-01-other.json")
    with pytest.raises(CheckError, match=r"2025-03-01-other\.json: a file with this date and name"):
        add(board, made, name="second", track="small")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "../../etc"}, "name '../../etc': write at most 64 lower-case letters"),
        ({"name": "<b>"}, "name '<b>'"),
        ({"name": "a|b"}, "name"),
        ({"date": "2025-02-30"}, "YYYY-MM-DD"),
        ({"date": "20250201"}, "YYYY-MM-DD"),
        ({"authors": ()}, "at least one person"),
        ({"authors": ("Ada", " ")}, "an author has 1 to 100 characters"),
        ({"authors": ("x" * 101,)}, "an author has 1 to 100 characters"),
        ({"authors": ("\udcff",)}, "not Unicode; write it in UTF-8"),
    ],
)
def test_unsound_fields_are_refused(
    board: Path, made: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        add(board, made, **changes)


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
        ({"tokens": "many"}, r"\$\.tokens: expected int"),
    ],
)
def test_a_damaged_score_is_refused_by_name(
    board: Path, made: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    damaged = edit(Path(shutil.copy(made / "frozen.json", tmp_path / "damaged.json")), **changes)
    with pytest.raises(SpecError, match=words) as caught:
        add(board, made, str(damaged))
    assert "damaged.json" in str(caught.value)


def test_files_that_are_something_else_are_refused(board: Path, made: Path) -> None:
    with pytest.raises(ArtifactError, match=r"frozen\.json"):
        add(board, made, artifact=made / "frozen.json")
    with pytest.raises(SegptError, match=r"a\.segpt is not valid JSON"):
        add(board, made, "a.segpt")
    with pytest.raises(SegptError, match="a record needs a score"):
        record.add(
            board, made / "a.segpt", [], name="n", track="small", authors=["A"], date="2025-03-01"
        )


def test_check_lists_broken_records_beside_damaged_ones(board: Path, made: Path) -> None:
    path = add(board, made)
    table = json.loads(path.read_text())
    edit(path, bpb=round(table["bpb"] + 0.001, 12))
    (board / "records" / "2025-01-01-torn.json").write_text(path.read_text()[:100])
    edit(Path(shutil.copy(path, path.with_name("2025-01-02-odd.json"))), autors=["Eve"])
    torn, odd, edited = sorted(record.check(board), key=lambda finding: "bpb is" in finding)
    assert "2025-01-01-torn.json is not valid JSON" in torn
    assert "2025-01-02-odd.json: $: unknown key 'autors' in record; did you mean 'authors'?" in odd
    assert edited.startswith("2025-03-01-first.json: bpb is ")
    with pytest.raises(SegptError, match=r"2025-01-01-torn\.json"):
        record.read_records(board)


def test_tracks_are_read_strictly(board: Path) -> None:
    assert [track.name for track in record.read_tracks(board)] == ["small", "tiny"]
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
            record.read_tracks(board)
        assert str(place) in str(caught.value)
    place.unlink()
    with pytest.raises(SpecError, match="name the leaderboard's directory with --dir"):
        record.read_tracks(board)


def test_the_page_is_stale_until_it_is_rendered(board: Path, made: Path) -> None:
    page = board / "README.md"
    assert record.render_page(board, write=True)
    add(board, made)
    before = page.read_bytes()
    assert record.render_page(board, write=False)
    assert page.read_bytes() == before
    assert record.render_page(board, write=True)
    assert b"| 1 | first | " in page.read_bytes()
    assert not record.render_page(board, write=False)
    page.write_text("no markers")
    with pytest.raises(SegptError, match=r"README\.md: the page needs one line"):
        record.render_page(board, write=True)
    page.unlink()
    with pytest.raises(SegptError, match="cannot read"):
        record.render_page(board, write=True)
