"""``segpt average``: from a run to a checkpoint that the rest of the line takes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from segpt.stages import checkpoint_io, quantized_io, run_directory

Command = Callable[..., Result]


@pytest.fixture
def place(
    line: dict[str, Any], workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A fresh copy of the workplace, with the run that keeps steps 20 and 30."""
    assert line["train"]["steps"] == 30
    shutil.copytree(workplace / "runs", tmp_path / "runs")
    for name in ("tiny.yaml", "train.jsonl", "held.jsonl"):
        shutil.copy(workplace / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    pointer = tmp_path / "runs" / "latest.json"
    known = json.loads(pointer.read_text())
    pointer.write_text(json.dumps(known | {"checkpoint": "runs/tiny"}))
    return tmp_path


@pytest.mark.slow
def test_the_line_goes_on_from_an_average(place: Path, segpt: Command) -> None:
    done = segpt("average", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["checkpoint"] == "runs/tiny-average"
    assert (found["steps"], found["decay"]) == ([20, 30], 0.8)
    assert (
        checkpoint_io.read_checkpoint(Path(found["checkpoint"])).fingerprint == found["fingerprint"]
    )
    score = segpt("score", found["checkpoint"], "--json")
    assert score.exit_code == 0, score.output
    assert 0 < json.loads(score.stdout)["bpb"] < 9
    quantized = segpt("quantize", "--bits", "6", "--json")
    assert quantized.exit_code == 0, quantized.output
    assert quantized_io.read_quantized(Path(json.loads(quantized.stdout)["out"])).spec is not None


def test_a_mean_of_named_checkpoints(place: Path, segpt: Command) -> None:
    paths = run_directory.checkpoints(Path("runs/tiny"))
    done = segpt("average", *reversed(paths), "--mean", "--out", "mean")
    assert done.exit_code == 0, done.output
    assert "mean of steps 20, 30" in done.stdout
    first, second = (checkpoint_io.read_checkpoint(p).weights["table"] for p in paths)
    found = checkpoint_io.read_checkpoint(Path("mean")).weights["table"]
    assert found == pytest.approx((first + second) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mean", "--decay", "0.5"], "--decay or --mean"),
        (["--decay", "1.0"], "not in the range"),
        (["--last", "1"], "not in the range"),
        (["runs/nowhere"], "does not exist"),
        (["runs/tiny.segpt"], "is a file and not a checkpoint"),
        (["--out", "runs/tiny"], "give another --out"),
        (["runs/tiny", "--out", "runs/tiny/step-00000020"], "give another --out"),
    ],
)
def test_bad_input_leaves_everything_as_it_was(
    place: Path, segpt: Command, arguments: list[str], message: str
) -> None:
    before = sorted(str(p) for p in Path("runs").rglob("*"))
    done = segpt("average", *arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert sorted(str(p) for p in Path("runs").rglob("*")) == before
