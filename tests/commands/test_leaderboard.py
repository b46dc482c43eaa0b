"""The leaderboard from the terminal: exit codes, JSON, and what it must not import."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.leaderboard.small_records import packed

Run = Callable[..., Result]

OURS = Path(__file__).resolve().parents[2] / "leaderboard"
TRACKS = """
[[tracks]]
name = "small"
about = "Small files."
bytes = 20_000
source = "text.txt"

[[tracks]]
name = "core"
about = "Tasks."
metric = "core"
"""
PAGE = "# Leaderboard\n\n<!-- records -->\n<!-- /records -->\n"
TEXT = "A record is one line of the leaderboard."
AUTHOR = "Eve | <b>`x`</b> [y](https://evil.example)"


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "board"
    place.mkdir()
    (place / "tracks.toml").write_text(TRACKS)
    (place / "README.md").write_text(PAGE)
    (place / "text.txt").write_text(TEXT)
    return place


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return packed(tmp_path / "model.segpt", 1)


@pytest.fixture
def added(segpt: Run, board: Path, artifact: Path, tmp_path: Path) -> Path:
    """The file of the one record of ``board``, made as a contestant would."""
    score = tmp_path / "score.json"
    scored = segpt(
        *("score", artifact, board / "text.txt", "--stride", 8, "--device", "cpu", "--out", score)
    )
    assert scored.exit_code == 0, scored.output
    done = segpt(
        *("leaderboard", "add", artifact, "--score", score, "--name", "first", "--json"),
        *("--track", "small", "--author", "Ada", "--author", AUTHOR, "--dir", board),
        *("--date", "2025-03-01", "--about", "Random.", "--recipe", "segpt demo"),
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["bpb"] == json.loads(score.read_text())["bpb"]
    assert result["bytes"] == artifact.stat().st_size
    assert result["out"] == str(board / "records" / "0001-first.json")
    assert result["advance"]["made"]
    return Path(result["out"])


def claim(segpt: Run, board: Path, name: str = "said", *more: object) -> Result:
    return segpt(
        *("leaderboard", "claim", "--name", name, "--track", "small", "--author", "Grace"),
        *("--value", 1.5, "--source", "a paper", "--dir", board, *more),
    )


def test_a_sound_board_passes_and_prints_its_head(segpt: Run, board: Path, added: Path) -> None:
    assert added.exists()
    done = segpt("leaderboard", "check", "--dir", board)
    first, second = done.stdout.splitlines()
    assert (done.exit_code, first) == (0, "every entry is sound")
    found = json.loads(segpt("leaderboard", "check", "--dir", board, "--json").stdout)
    assert found["findings"] == []
    assert found["entries"] == 1
    assert second == f"head of 1 entries: {found['head']}"
    assert claim(segpt, board).exit_code == 0
    done = segpt("leaderboard", "check", "--dir", board, "--head", found["head"])
    assert done.exit_code == 0
    done = segpt("leaderboard", "check", "--dir", board, "--head", "0" * 64)
    assert done.exit_code == 1
    assert "no entry has this digest" in done.stdout
    assert "head of" not in done.stdout


def test_an_empty_board_is_sound(segpt: Run, board: Path) -> None:
    done = segpt("leaderboard", "check", "--dir", board)
    assert (done.exit_code, done.stdout) == (0, "every entry is sound\n")
    assert segpt("leaderboard", "render", "--dir", board).exit_code == 0
    assert segpt("leaderboard", "show", "--dir", board).exit_code == 0
    done = segpt("leaderboard", "verify", "--dir", board)
    assert (done.exit_code, done.stdout) == (1, "0 of 0 entries verified\n")


def test_an_edited_record_exits_1_with_all_findings(segpt: Run, board: Path, added: Path) -> None:
    text = added.read_text()
    figure = f'"bpb": {json.loads(text)["entry"]["bpb"]}'
    first = figure.index(".") + 1
    edited = figure[:first] + str(int(figure[first]) ^ 1) + figure[first + 1 :]
    head, found, tail = text.rpartition(figure)
    assert found in head  # the record's own stands before that of its score
    for changed in (text.replace(figure, edited, 1), head + edited + tail):
        added.write_text(changed)
        done = segpt("leaderboard", "check", "--dir", board)
        assert done.exit_code == 1
        assert f"{added.name}: " in done.stdout
        assert "bpb is" in done.stdout
        assert "chain.json: head: says" in done.stdout
    done = segpt("leaderboard", "check", "--dir", board, "--json")
    assert done.exit_code == 1
    assert len(json.loads(done.stdout)["findings"]) > 2
    assert json.loads(done.stdout)["head"] is None
    for command in ("render", "show", "verify"):
        done = segpt("leaderboard", command, "--dir", board)
        assert done.exit_code == 1
        assert "chain.json" in done.stderr


def test_stale_pages_exit_1_until_they_are_rendered(segpt: Run, board: Path, added: Path) -> None:
    readme, index = board / "README.md", board / "index.html"
    done = segpt("leaderboard", "render", "--check", "--dir", board)
    assert done.exit_code == 1
    assert done.stdout.count("is stale; run: segpt leaderboard render") == 2
    assert readme.read_text() == PAGE
    assert not index.exists()
    done = segpt("leaderboard", "render", "--dir", board, "--json")
    both = [str(readme), str(index)]
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"pages": both, "stale": both})
    assert added.name in readme.read_text()
    assert "<b>" not in readme.read_text()
    assert "https://" not in readme.read_text()
    done = segpt("leaderboard", "render", "--check", "--dir", board)
    assert (done.exit_code, done.stdout) == (
        0,
        f"{readme} is up to date\n{index} is up to date\n",
    )
    assert claim(segpt, board).exit_code == 0
    assert segpt("leaderboard", "render", "--check", "--dir", board).exit_code == 1


def test_a_record_is_told_whether_it_advances_its_track(
    segpt: Run, board: Path, artifact: Path, tmp_path: Path
) -> None:
    score = tmp_path / "score.json"
    segpt("score", artifact, board / "text.txt", "--stride", 8, "--device", "cpu", "--out", score)
    assert claim(segpt, board, "lower", "--values", "1.4,1.6", "--bytes", 900).exit_code == 0
    done = segpt(
        *("leaderboard", "add", artifact, "--score", score, "--name", "first"),
        *("--track", "small", "--author", "Ada", "--dir", board),
    )
    assert done.exit_code == 0
    first, second, third = done.stdout.splitlines()
    assert "bits per byte in" in first
    assert second.startswith("first is listed, but does not advance small: it is worse by ")
    assert third == f"render the pages: segpt leaderboard render --dir {board}"


def test_claims_and_baselines_are_added(segpt: Run, board: Path) -> None:
    done = claim(segpt, board, "said", "--parameters", 7, "--date", "2024-02-29", "--json")
    assert json.loads(done.stdout) == {
        "out": str(board / "records" / "0001-said.json"),
        "name": "said",
        "track": "small",
        "value": 1.5,
    }
    done = segpt("leaderboard", "baseline", "xz", "--track", "small", "--dir", board)
    assert done.exit_code == 0, done.output
    found = json.loads((board / "records" / "0002-xz-small.json").read_text())["entry"]
    assert (found["program"], found["bytes"]) == ("xz", len(TEXT))
    assert claim(segpt, board, "odd", "--values", "1.5,many").exit_code == 2
    assert claim(segpt, board, "said").exit_code == 1
    assert claim(segpt, board, "Said").exit_code == 2
    done = segpt("leaderboard", "baseline", "zip", "--track", "small", "--dir", board)
    assert done.exit_code == 2
    done = segpt("leaderboard", "baseline", "xz", "--track", "core", "--dir", board)
    assert done.exit_code == 2
    assert "the text of core is not here" in done.stderr


def test_standings_are_shown(segpt: Run, board: Path, added: Path) -> None:
    assert added.exists()
    assert claim(segpt, board).exit_code == 0
    done = segpt("leaderboard", "show", "--dir", board)
    assert done.exit_code == 0
    assert "small, by BPB: lower is better" in done.stdout
    assert "core, by CORE: higher is better" in done.stdout
    assert done.stdout.index("said") < done.stdout.index("first")
    done = segpt("leaderboard", "show", "--track", "small", "--dir", board, "--json")
    (name, rows), *others = json.loads(done.stdout)["tracks"].items()
    assert (name, others) == ("small", [])
    assert [row["name"] for row in rows] == ["said", "first"]
    assert rows[1]["total"] > rows[1]["value"]
    done = segpt("leaderboard", "show", "--track", "smal", "--dir", board)
    assert done.exit_code == 2
    assert "did you mean 'small'" in done.stderr


def test_an_entry_is_shown_in_full(segpt: Run, board: Path, added: Path) -> None:
    record = json.loads(added.read_text())["entry"]
    done = segpt("leaderboard", "show", "first", "--dir", board)
    assert done.exit_code == 0
    for words in (
        "first, entry 1 on small, of 2025-03-01",
        f"by Ada, {AUTHOR}",
        "Random.",
        record["runs"][0]["artifact"],
        record["runs"][0]["scores"][0]["text"],
        f"recipe: {record['origin']['recipe']}",
        "stride: 8",
        "tokenizer: 0",
        "segpt demo",
        "rank 1, claimed, on the Pareto front",
        "advanced its track when it was added: the first entry of small",
    ):
        assert words in done.stdout, words
    done = segpt("leaderboard", "show", "first", "--dir", board, "--json")
    found = json.loads(done.stdout)
    assert found["entry"] == record
    assert (found["rank"], found["state"]) == (1, "claimed")
    done = segpt("leaderboard", "show", "frist", "--dir", board)
    assert done.exit_code == 2
    assert "did you mean 'first'" in done.stderr


def test_what_a_terminal_would_act_on_is_escaped(segpt: Run, board: Path) -> None:
    hostile = "\x1b[31mred\x1b]8;;https://evil.example\x07 \u202etxt [bold]"
    done = claim(segpt, board, "said", "--about", hostile)
    assert done.exit_code == 0
    done = segpt("leaderboard", "show", "said", "--dir", board)
    assert "\\x1b[31mred\\x1b]8;;https://evil.example\\x07 \\u202etxt [bold]" in done.stdout
    assert not {"\x1b", "\u202e", "\x07"} & set(done.stdout)


def test_a_record_is_verified_and_its_state_appended(
    segpt: Run, board: Path, added: Path, artifact: Path
) -> None:
    assert (
        segpt("leaderboard", "baseline", "gzip", "--track", "small", "--dir", board).exit_code == 0
    )
    before = added.read_bytes()
    shared = ("--dir", board, "--device", "cpu")
    done = segpt("leaderboard", "verify", "--artifact", artifact, *shared)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("first: frozen: claimed ")
    assert lines[0].endswith(": the same")
    assert lines[1] == "first: checked"
    assert lines[2].endswith(" other fields derived again, all the same")
    assert lines[-1] == "2 of 2 entries verified"
    done = segpt(
        *("leaderboard", "verify", "first", "--artifact", artifact, "--append", *shared),
        *("--author", "Grace", "--json"),
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["added"] == [str(board / "records" / "0003-checked-first.json")]
    (entry,) = found["entries"]
    assert entry["state"] == "checked"
    assert entry["comparisons"][0]["agrees"]
    assert entry["findings"] == []
    assert all(field["agrees"] for field in entry["fields"])
    assert {"bytes", "parameters", "origin.seed", "sections.header"} <= {
        field["field"] for field in entry["fields"]
    }
    assert added.read_bytes() == before
    shown = json.loads(segpt("leaderboard", "show", "first", "--dir", board, "--json").stdout)
    assert shown["state"] == "checked"
    assert segpt("leaderboard", "check", "--dir", board).exit_code == 0
    assert "checked" in segpt("leaderboard", "show", "checked-first", "--dir", board).stdout


def test_artifacts_beside_the_board_are_found(
    segpt: Run, board: Path, added: Path, artifact: Path
) -> None:
    shared = ("--dir", board, "--device", "cpu")
    done = segpt("leaderboard", "verify", *shared)
    assert done.exit_code == 1
    assert "1 of its 1 artifacts are not here" in done.stdout
    stranger = packed(board / "other.segpt", 2)
    done = segpt("leaderboard", "verify", "--artifact", stranger, *shared)
    assert done.exit_code == 1
    assert f"{stranger} is the artifact of no entry that is verified" in done.stderr
    beside = board.parent / "artifacts"
    beside.mkdir()
    for path in (artifact, artifact.with_name(artifact.name + ".documents")):
        shutil.copy(path, beside / path.name)
    (beside / "broken.segpt").write_bytes(b"no artifact")
    done = segpt("leaderboard", "verify", *shared)
    assert done.exit_code == 0, done.output
    assert "first: checked" in done.stdout
    assert added.exists()


def test_a_record_that_differs_exits_1(
    segpt: Run, board: Path, added: Path, artifact: Path
) -> None:
    (board / "text.txt").write_text(TEXT)
    plain = json.loads(added.read_text())
    score = plain["entry"]["runs"][0]["scores"][0]
    for table in (plain["entry"], score):
        table["bpb"] *= 0.9
    score["nats"] *= 0.9
    shutil.rmtree(board / "records")
    (board / "chain.json").unlink()
    from segpt.config.base import decode
    from segpt.leaderboard import store
    from segpt.leaderboard.entry import Record

    store.append_entry(board, decode(Record, plain["entry"]))
    done = segpt(
        *("leaderboard", "verify", "--artifact", artifact, "--dir", board, "--device", "cpu"),
        *("--append", "--author", "Grace", "--json"),
    )
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert found["added"] == []
    assert found["entries"][0]["comparisons"][0]["difference"] > 0
    assert found["entries"][0]["state"] is None


def test_unsafe_recipes_and_missing_authors_are_refused(
    segpt: Run, board: Path, added: Path
) -> None:
    assert added.exists()
    done = segpt("leaderboard", "verify", "--append", "--dir", board)
    assert done.exit_code == 2
    assert "--append needs --author" in done.stderr
    done = segpt("leaderboard", "verify", "second", "--dir", board)
    assert done.exit_code == 2
    done = segpt("leaderboard", "verify", "--artifact", board / "none.segpt", "--dir", board)
    assert done.exit_code == 2


def test_over_budget_exits_1_and_adds_nothing(
    segpt: Run, board: Path, artifact: Path, added: Path, tmp_path: Path
) -> None:
    added.unlink()
    (board / "chain.json").unlink()
    (board / "tracks.toml").write_text(TRACKS.replace("20_000", "100"))
    done = segpt(
        *("leaderboard", "add", artifact, "--score", tmp_path / "score.json", "--name", "big"),
        *("--track", "small", "--author", "Ada", "--dir", board),
    )
    assert done.exit_code == 1
    assert "over the budget of 100 of small" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list((board / "records").iterdir()) == []


def test_bad_input_exits_2(segpt: Run, tmp_path: Path) -> None:
    done = segpt("leaderboard", "check", "--dir", tmp_path)
    assert done.exit_code == 2
    assert "tracks.toml" in done.stderr
    done = segpt("leaderboard", "add", tmp_path / "none.segpt", "--track", "small")
    assert done.exit_code == 2


def test_our_own_board_is_sound_and_its_pages_fresh(segpt: Run) -> None:
    for arguments in (("check",), ("render", "--check")):
        done = segpt("leaderboard", *arguments, "--dir", OURS)
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize("page", ["README.md", "index.html"])
def test_a_fault_in_our_own_board_is_found(segpt: Run, tmp_path: Path, page: str) -> None:
    """What `make leaderboard` must fail on: an edited entry, and a stale page."""
    place = Path(shutil.copytree(OURS, tmp_path / "board"))
    stale = (place / page).read_text().replace("lower", "higher", 1)
    (place / page).write_text(stale)
    assert segpt("leaderboard", "render", "--check", "--dir", place).exit_code == 1
    assert segpt("leaderboard", "check", "--dir", place).exit_code == 0
    first = min((place / "records").iterdir())
    first.write_text(first.read_text().replace('"date": "2', '"date": "1'))
    done = segpt("leaderboard", "check", "--dir", place)
    assert done.exit_code == 1
    assert first.name in done.stdout
    assert segpt("leaderboard", "render", "--check", "--dir", place).exit_code == 1


@pytest.mark.slow
def test_our_own_baselines_are_verified(segpt: Run) -> None:
    names = [f"{program}-demo-256kb" for program in ("bzip2", "xz", "zstd", "brotli")]
    done = segpt("leaderboard", "verify", *names, "--dir", OURS, "--json")
    assert {entry["state"] for entry in json.loads(done.stdout)["entries"]} == {"checked"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (("--help",), {"torch", "numpy"}),
        (("add", "--help"), {"torch", "numpy"}),
        (("check", "--help"), {"torch", "numpy"}),
        (("verify", "--help"), {"torch", "numpy"}),
        (("render", "--help"), {"torch", "numpy"}),
        (("check",), {"torch"}),
        (("show",), {"torch"}),
        (("baseline", "gzip", "--track", "small"), {"torch"}),
        (("render",), {"torch"}),
    ],
)
def test_what_is_not_imported(board: Path, arguments: tuple[str, ...], absent: set[str]) -> None:
    code = (
        "import sys; from segpt.__main__ import load_commands\n"
        f"failed = load_commands().main({['leaderboard', *arguments]!r}, standalone_mode=False)\n"
        f"sys.exit(failed or ' '.join({absent!r} & sys.modules.keys()) or 0)"
    )
    place = board.rename(board.with_name("leaderboard")).parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
