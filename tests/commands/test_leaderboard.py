"""The leaderboard from the terminal: exit codes, JSON, and what it must not import."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from segpt.spec.expand import expand
from segpt.spec.layout import Role, layout
from segpt.stages.pack import pack
from segpt.values import Half, Quantized, Tokenizer, documents_digest

Run = Callable[..., Result]

TRACKS = """
[[tracks]]
name = "small"
about = "Small files."
bytes = 20_000
"""
PAGE = "# Leaderboard\n\n<!-- records -->\n<!-- /records -->\n"
AUTHOR = "Eve | <b>`x`</b> [y](https://evil.example)"


@pytest.fixture
def board(tmp_path: Path) -> Path:
    place = tmp_path / "board"
    place.mkdir()
    (place / "tracks.toml").write_text(TRACKS)
    (place / "README.md").write_text(PAGE)
    return place


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    mixer = {"heads": 1, "kv_heads": 1, "head_dim": 8}
    layer = {"mixer": mixer, "feed": {"hidden": 16}}
    spec = expand({"vocab": 257, "width": 8, "context": 16, "depth": 1, "layer": layer})
    generator = np.random.default_rng(1)
    weights = {
        w.name: Half(generator.normal(w.role is Role.VECTOR, 0.1, w.shape).astype(np.float16))
        for w in layout(spec)
    }
    seen = np.array([1, 2, 3], np.uint64)
    origin = {"documents": documents_digest(seen)}
    path = tmp_path / "model.segpt"
    pack(Quantized(spec, weights, Tokenizer("bytes", 257), origin, {}, seen), path)
    return path


@pytest.fixture
def added(segpt: Run, board: Path, artifact: Path, tmp_path: Path) -> Path:
    """The file of the one record of ``board``, made as a contestant would."""
    (tmp_path / "text.txt").write_text("A record is one line of the leaderboard.")
    score = tmp_path / "score.json"
    scored = segpt("score", artifact, tmp_path / "text.txt", "--device", "cpu", "--out", score)
    assert scored.exit_code == 0, scored.output
    done = segpt(
        *("leaderboard", "add", artifact, "--score", score, "--name", "first", "--json"),
        *("--track", "small", "--author", "Ada", "--author", AUTHOR, "--dir", board),
        *("--date", "2025-03-01"),
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["bpb"] == json.loads(score.read_text())["bpb"]
    assert result["bytes"] == artifact.stat().st_size
    assert result["out"] == str(board / "records" / "2025-03-01-first.json")
    return Path(result["out"])


def test_a_sound_board_passes(segpt: Run, board: Path, added: Path) -> None:
    assert added.exists()
    done = segpt("leaderboard", "check", "--dir", board)
    assert (done.exit_code, done.stdout) == (0, "every record is sound\n")
    done = segpt("leaderboard", "check", "--dir", board, "--json")
    assert json.loads(done.stdout) == {"findings": []}


def test_an_edited_record_exits_1_with_the_finding(segpt: Run, board: Path, added: Path) -> None:
    text = added.read_text()
    figure = f'"bpb": {json.loads(text)["bpb"]}'
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
    done = segpt("leaderboard", "check", "--dir", board, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["findings"]


def test_a_stale_page_exits_1_until_it_is_rendered(segpt: Run, board: Path, added: Path) -> None:
    page = board / "README.md"
    done = segpt("leaderboard", "render", "--check", "--dir", board)
    assert done.exit_code == 1
    assert "stale; run: segpt leaderboard render" in done.stdout
    assert page.read_text() == PAGE
    done = segpt("leaderboard", "render", "--dir", board, "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"page": str(page), "stale": True})
    assert added.name in page.read_text()
    assert "<b>" not in page.read_text()
    assert "https://" not in page.read_text()
    done = segpt("leaderboard", "render", "--check", "--dir", board)
    assert (done.exit_code, done.stdout) == (0, f"{page} is up to date\n")


def test_over_budget_exits_1_and_adds_nothing(
    segpt: Run, board: Path, artifact: Path, added: Path, tmp_path: Path
) -> None:
    added.unlink()
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


def test_our_own_board_is_sound_and_its_page_fresh(segpt: Run) -> None:
    ours = Path(__file__).resolve().parents[2] / "leaderboard"
    for arguments in (("check",), ("render", "--check")):
        done = segpt("leaderboard", *arguments, "--dir", ours)
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (("--help",), {"torch", "numpy"}),
        (("add", "--help"), {"torch", "numpy"}),
        (("check", "--help"), {"torch", "numpy"}),
        (("render", "--help"), {"torch", "numpy"}),
        (("check",), {"torch"}),
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
