"""Small CORE bundles: the layout of the real one, with items about nothing much."""

import json
import random
import zipfile
from pathlib import Path
from typing import Any

from segpt.tasks.core import TASKS, Baselines, Task

SHARED = Path(__file__).parents[2] / "shared" / "data" / "core"
WORDS = ("a", "of", "red", "sees", "two", "the", "moon", "dog", "tall", "under", "river", "glass")


def record(task: Task, draw: random.Random) -> dict[str, Any]:
    """One item, of the keys that its form has."""

    def words(least: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    match task.form:
        case "multiple_choice":
            options = [f"{word} {words(0, 2)}".strip() for word in draw.sample(WORDS, 4)]
            return {"query": words(4, 9), "choices": options, "gold": draw.randrange(4)}
        case "schema":
            options = [words(3, 5) + " and " + word for word in draw.sample(WORDS, 2)]
            return {
                "context_options": options,
                "continuation": words(2, 4),
                "gold": draw.randrange(2),
            }
        case "language_modeling":
            return {"context": f" {words(4, 9)} ", "continuation": words(1, 2), "category": "x"}


def listed(task: Task, prefix: str = "") -> dict[str, Any]:
    """The entry of a task in core.yaml; JSON is YAML."""
    entry = {
        "label": task.label,
        "dataset_uri": prefix + task.path,
        "num_fewshot": [task.shots],
        "icl_task_type": task.form,
    }
    return entry if task.delimiter == " " else entry | {"continuation_delimiter": task.delimiter}


def write_list(place: Path, entries: list[dict[str, Any]]) -> None:
    """Write core.yaml."""
    (place / "core.yaml").write_text(json.dumps({"icl_tasks": entries}))


def write_table(place: Path, table: Baselines = "v1", **changes: str) -> None:
    """Write eval_meta_data.csv; ``changes`` replaces the baselines of some labels."""
    rows = ["Eval Task,Task Category,Random baseline,Description", 'mmlu,"world, all",25,"a, b"']
    rows += [
        f"{task.label},some,{changes.get(task.label, f'{task.baseline(table):g}')},none"
        for task in TASKS
    ]
    (place / "eval_meta_data.csv").write_text("\n".join(rows) + "\n")


def write_bundle(place: Path, items: int = 12, prefix: str = "", folder: str = "eval_data") -> Path:
    """Write a bundle with ``items`` items in each file."""
    place.mkdir(parents=True, exist_ok=True)
    write_list(place, [*(listed(task, prefix) for task in TASKS), {"label": "mmlu_zeroshot"}])
    write_table(place)
    for task in TASKS:
        draw = random.Random(task.path)
        path = place / folder / task.path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(record(task, draw)) for _ in range(items)]
        path.write_text("\n".join(lines) + "\n")
    return place


def write_archive(path: Path, bundle: Path, **more: bytes) -> Path:
    """Zip a bundle the way the real one is, with ``more`` members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(bundle.rglob("*")):
            if file.is_file():
                packed.write(file, f"eval_bundle/{file.relative_to(bundle)}")
        for name, content in more.items():
            packed.writestr(name, content)
    return path
