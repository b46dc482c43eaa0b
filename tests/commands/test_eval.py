"""``segpt eval``: one JSON object on stdout, a table for people, and errors that help."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

ROOT = Path(__file__).resolve().parents[2]
ARTIFACT = ROOT / "artifacts" / "demo256-1.segpt"
TASK = """
task: tiny
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{place}/rows.jsonl"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture
def run(anew: Callable[..., Any]) -> Callable[..., Any]:
    """New processes: the harness reads its environment when it is loaded."""
    return anew


@pytest.fixture
def place(tmp_path: Path) -> Path:
    rows = [
        {"query": f"After {i} comes", "choices": [f"{i + 1}", "x"], "gold": 0} for i in range(9)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.yaml").write_text(TASK.format(place=tmp_path))
    return tmp_path


@pytest.mark.slow
def test_results_are_one_object_on_stdout(run: Callable[..., Any], place: Path) -> None:
    pytest.importorskip("lm_eval")
    common = ("eval", ARTIFACT, "--tasks", "tiny", "--include-path", ".", "--device", "cpu")
    home = str(place / "cache")
    done = run(place, *common, "--limit", 6, "--json", "--out", "out.json", HF_HOME=home)
    found = done.json
    assert "it/s]" not in done.stderr
    assert 0 <= found["results"]["tiny"]["acc,none"] <= 1
    assert found["results"]["tiny"]["acc_stderr,none"] >= 0
    assert found["samples"] == {"tiny": 6}
    assert json.loads((place / "out.json").read_text()) == found
    shown = run(place, *common, "--fewshot", 2, "--batch", 1, HF_HOME=home)
    assert shown.code == 0, shown.stderr
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.stdout.split("\n")]
    assert [row[:3] for row in cells if row] == [["tiny", "2", "9"]]


@pytest.mark.slow
def test_an_unknown_task_is_named_with_the_nearest(run: Callable[..., Any], place: Path) -> None:
    pytest.importorskip("lm_eval")
    done = run(place, "eval", ARTIFACT, "--tasks", "tiny,tinny", "--include-path", ".")
    assert done.code == 2
    assert done.stdout == ""
    assert done.stderr == "segpt: no task is named 'tinny'; the nearest of 1 names is 'tiny'\n"


def test_a_missing_harness_is_one_line(
    segpt: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = segpt("eval", ARTIFACT, "--tasks", "tiny")
    assert done.exit_code == 2
    assert "pip install 'segpt[eval]'" in done.output
    assert len(done.output.splitlines()) == 1


def test_no_tasks_is_bad_input(segpt: Callable[..., Result]) -> None:
    assert segpt("eval", ARTIFACT).exit_code == 2
    done = segpt("eval", ARTIFACT, "--tasks", ",")
    assert done.exit_code == 2
    assert "name at least one task" in done.output
