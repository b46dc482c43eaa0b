"""``segpt compare`` on files that ``segpt score`` wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def scores(line: Any, workplace: Path, tmp_path: Path) -> Path:
    """What scoring one checkpoint left behind, as if three seeds had come near it."""
    table = json.loads((workplace / "ttt.json").read_text())
    for name, better in (("a", 1.0), ("b", 0.9)):
        place = tmp_path / name
        place.mkdir()
        for seed in (1, 2, 3):
            factor = better * (1 + 0.001 * seed)
            changed = {key: factor * table[key] for key in ("bpb", "nats", "nats_per_token")}
            origin = {k: v for k, v in table["origin"].items() if k != "artifact"}
            model = {"model": f"{name}{seed}", "origin": origin, "seed": seed, "by_document": None}
            (place / f"{seed}.json").write_text(json.dumps(table | changed | model))
    return tmp_path


def test_directories_of_seeds(scores: Path, run: Run) -> None:
    found = run(scores, "compare", "a", "b", "--json").json
    assert (found["better"], found["over"], found["a"]["seeds"]) == ("B", "runs", [1, 2, 3])
    done = run(scores, "compare", "a", "b")
    assert done.code == 0
    for words in ("A bits per byte", "1 2 3", "paired runs", "Welch", "contest:", "B is better by"):
        assert words in done.stdout


def test_single_files_have_no_winner(scores: Path, run: Run, workplace: Path) -> None:
    table = json.loads((workplace / "ttt.json").read_text())
    done = run(scores, "compare", workplace / "ttt.json", "b/1.json")
    assert done.code == 0
    assert "no verdict" in done.stdout
    assert "cannot be tested" in done.stdout
    found = run(scores, "compare", workplace / "ttt.json", "b/1.json", "--json").json
    assert found["better"] is None
    assert found["a"]["bpb"]["values"] == [table["bpb"]]


def test_bad_input_is_one_line(
    scores: Path, run: Run, line: dict[str, Any], workplace: Path
) -> None:
    (scores / "a" / "4.json").write_text("{}")
    for args, words in (
        (("a", "b"), "4.json: not a score"),
        (("nowhere.json", "b"), "nowhere.json"),
        *(
            ((workplace / line[stage][key], "b"), "is a model, not a score; score it first: segpt")
            for stage, key in (("train", "checkpoint"), ("quantize", "out"), ("pack", "out"))
        ),
    ):
        done = run(scores, "compare", *args)
        assert done.code == 2
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
