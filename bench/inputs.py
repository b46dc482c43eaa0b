"""What both trees are given to compare them: text, recipes, tasks and a leaderboard.

The text is Python's own help, which is on every machine. Everything is written alike on both
sides, times of files included, and without segpt, so that no tree has a part in it.
"""

import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from pydoc_data import topics
from typing import Any

HERE = Path(__file__).parent
RECIPES = ("fast", "lanes")
WRITTEN = 1_767_225_600  # when all of it was written, as prepared text remembers that
HELD_OUT, LONGEST = 4, 1200  # documents that are scored, and characters of each, about
SHORT = 600  # characters of a note

# Tasks of CORE, one of each form: form, solved items, file, and accuracy of guessing in percent.
CORE: Mapping[str, tuple[str, int, str, int]] = {
    "hellaswag": ("multiple_choice", 10, "language_understanding/hellaswag.jsonl", 25),
    "winograd": ("schema", 0, "language_understanding/winograd_wsc.jsonl", 50),
    "lambada_openai": ("language_modeling", 0, "language_understanding/lambada_openai.jsonl", 0),
}
ITEMS = 12  # of each
TASK = """
task: tiny
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
TRACKS = """
[[tracks]]
name = "small"
about = "Small files."
bytes = 1_000_000
margin = 0.01
"""
PAGE = "# Leaderboard\n\n<!-- records -->\n<!-- /records -->\n"
_WORDS = ("a", "of", "red", "sees", "two", "the", "moon", "dog", "tall", "under", "river", "glass")


def write(place: Path, tree: Path) -> None:
    """Write everything into the directory of a side; the leaderboard of ``tree`` is copied."""
    place.mkdir(parents=True)
    longest, *rest = sorted(topics.topics.values(), key=len, reverse=True)
    held = _pieces(longest)[:HELD_OUT]
    train = [piece for text in rest for piece in _pieces(text) if piece not in held]
    _lines(place / "train.jsonl", [{"text": text} for text in train])
    _lines(place / "held.jsonl", [{"text": text} for text in held])
    (place / "note.txt").write_text(longest[-SHORT:], encoding="utf-8")
    for name in RECIPES:
        shutil.copyfile(HERE / f"unchanged-{name}.yaml", place / f"{name}.yaml")
    _tasks(place)
    _core(place / "core")
    (place / "board").mkdir()
    (place / "board" / "tracks.toml").write_text(TRACKS, encoding="utf-8")
    (place / "board" / "README.md").write_text(PAGE, encoding="utf-8")
    shutil.copytree(tree / "leaderboard", place / "leaderboard")
    for path in place.rglob("*"):
        os.utime(path, (WRITTEN, WRITTEN))


def _pieces(text: str) -> list[str]:
    """A text in documents that end with the paragraph that makes them long enough."""
    pieces = [""]
    for paragraph in text.split("\n\n"):
        if len(pieces[-1]) > LONGEST:
            pieces.append("")
        pieces[-1] += f"{paragraph}\n\n"
    return pieces


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _tasks(place: Path) -> None:
    """A task of lm-evaluation-harness, in local files."""
    rows = [
        {"query": f"After {i} comes", "choices": [f"{i + 1}", "x"], "gold": 0} for i in range(6)
    ]
    _lines(place / "rows.jsonl", rows)
    (place / "tasks").mkdir()
    (place / "tasks" / "tiny.yaml").write_text(TASK, encoding="utf-8")


def _core(place: Path) -> None:
    """A bundle of CORE that holds a task of each form."""
    listed, table = [], ["Eval Task,Task Category,Random baseline,Description"]
    for label, (form, shots, path, baseline) in CORE.items():
        listed.append(
            {"label": label, "dataset_uri": path, "num_fewshot": [shots], "icl_task_type": form}
        )
        table.append(f"{label},some,{baseline},none")
        draw = random.Random(label)
        _lines(place / "eval_data" / path, [_item(form, draw) for _ in range(ITEMS)])
    (place / "core.yaml").write_text(json.dumps({"icl_tasks": listed}), encoding="utf-8")
    (place / "eval_meta_data.csv").write_text("\n".join(table) + "\n", encoding="utf-8")


def _item(form: str, draw: random.Random) -> dict[str, Any]:
    """An item about nothing much, of the keys that its form has."""
    ends = draw.sample(_WORDS, 4)
    text = " ".join(draw.choices(_WORDS, k=6))
    match form:
        case "multiple_choice":
            return {"query": text, "choices": ends, "gold": draw.randrange(4)}
        case "schema":
            options = [f"{text} {end}" for end in ends[:2]]
            rest = " ".join(draw.choices(_WORDS, k=3))
            return {"context_options": options, "continuation": rest, "gold": draw.randrange(2)}
        case _:
            return {"context": f"{text} ", "continuation": ends[0]}
