"""``segpt leaderboard check-folder`` from the terminal: exit codes, lines and JSON."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Run = Callable[..., Result]

LOG = """\
seed: 1
Code size: 22 bytes
Total submission size: 10022 bytes
final val_loss:2.00000000 val_bpb:1.00000000 eval_time:1000ms
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "submission"
    (place / "logs").mkdir(parents=True)
    about = {"author": "Ada", "name": "x", "date": "2026-01-02", "val_loss": 2.0, "val_bpb": 1.0}
    result = {"1": {"val_loss": 2.0, "val_bpb": 1.0, "bytes_total": 10_022}}
    about |= {"seeds": [1], "seed_results": result, "bytes_total": 10_022, "bytes_code": 22}
    (place / "submission.json").write_text(json.dumps(about))
    (place / "README.md").write_text("# x\n\nval_bpb: 1.0000\n")
    (place / "train_gpt.py").write_text("import sys\nprint(sys)\n"[:22])
    (place / "model.bin").write_bytes(bytes(10_000))
    (place / "logs" / "train_seed1.log").write_text(LOG)
    return place


def test_a_sound_folder_takes_one_line(segpt: Run, folder: Path) -> None:
    done = segpt("leaderboard", "check-folder", folder)
    assert (done.exit_code, done.stdout) == (0, f"{folder}: no contradiction\n")
    done = segpt("leaderboard", "check-folder", folder, "--json")
    assert json.loads(done.stdout) == {"folder": str(folder), "contradictions": []}


def test_each_contradiction_takes_a_line(segpt: Run, folder: Path) -> None:
    log = folder / "logs" / "train_seed1.log"
    log.write_text(LOG.replace("10022", "10033").replace("val_bpb:1.0", "val_bpb:1.1"))
    done = segpt("leaderboard", "check-folder", folder)
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert any("10,022 bytes, and logs/train_seed1.log says 10,033" in line for line in lines)
    assert any(line.endswith("[bpb]") for line in lines)
    done = segpt("leaderboard", "check-folder", folder, "--json")
    assert done.exit_code == 1
    assert len(json.loads(done.stdout)["contradictions"]) == len(lines)


def test_a_previous_record_is_a_number_a_folder_or_a_file(
    segpt: Run, folder: Path, tmp_path: Path
) -> None:
    for against in ("1.0", folder, folder / "submission.json"):
        done = segpt("leaderboard", "check-folder", folder, "--against", against)
        assert done.exit_code == 1, done.output
        assert "is 0.00000 BPB (0.00000 nats per token) better than" in done.stdout
    done = segpt("leaderboard", "check-folder", folder, "--against", tmp_path / "none")
    assert done.exit_code == 2
    assert "neither a number nor a file" in done.stderr


def test_no_folder_is_bad_input(segpt: Run, tmp_path: Path) -> None:
    done = segpt("leaderboard", "check-folder", tmp_path / "none")
    assert done.exit_code == 2
    assert "no such folder" in done.stderr
