"""Tables with string keys and values of any kind stay where JSON, YAML or TOML is read or written.

What one file makes and another reads is a spec: its keys are known to the type checker, and
``encode`` and ``decode`` of :mod:`segpt.config.base` store it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Where such tables may be, by the reason for that.
RAW = {
    "recipes and specs as people write them, or as they were stored": {
        "segpt/config/base.py",
        "segpt/config/conditions.py",
        "segpt/config/expand.py",
        "segpt/config/quant_report.py",
        "segpt/config/recipe.py",
        "segpt/config/resolved.py",
        "segpt/config/run_about.py",
        "segpt/config/stages.py",
        "segpt/values.py",
    },
    "headers and files before they are decoded": {
        "segpt/coding/message.py",
        "segpt/stages/checkpoint_io.py",
        "segpt/stages/prepare.py",
        "segpt/stages/quantized_io.py",
        "segpt/stages/run_directory.py",
        "segpt/stages/session.py",
        "segpt/stages/unfinished.py",
        "segpt/stages/value_directory.py",
        "segpt/workspace/inventory.py",
        "commands/data.py",
    },
    "what others wrote, in any shape": {
        "segpt/contest/claims.py",
        "segpt/data/bpe/huggingface.py",
        "segpt/data/documents.py",
        "segpt/leaderboard/comparison.py",
        "segpt/leaderboard/derive.py",
        "segpt/leaderboard/entry.py",
        "segpt/report/gather.py",
        "segpt/report/load_run.py",
        "segpt/tasks/core_bundle.py",
        "segpt/tasks/pretrained.py",
        "segpt/tasks/run_harness.py",
    },
    "messages between processes": {
        "segpt/audit/run.py",
        "segpt/stages/train.py",
        "segpt/train/mesh.py",
    },
    "what a page or --json shows": {
        "segpt/coding/prove.py",
        "segpt/contest/export.py",
        "segpt/doctor/doctor.py",
        "segpt/leaderboard/page.py",
        "segpt/leaderboard/shown.py",
        "segpt/stages/sample.py",
        "segpt/tasks/asked_model.py",
        "segpt/tasks/evaluate_core.py",
        "commands/_core.py",
        "commands/_entries.py",
        "commands/_report.py",
        "commands/_sampling.py",
        "commands/_verify.py",
        "commands/inspect.py",
        "commands/leaderboard.py",
        "commands/recipes.py",
    },
    "options of the command line by their names, and of libraries": {
        "segpt/workspace/begun_score.py",
        "commands/_scoring.py",
        "commands/doctor.py",
    },
}
ALLOWED = frozenset().union(*RAW.values())


def raw_tables(source: str) -> Iterator[int]:
    """The lines with the type of a table that maps text to anything."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("dict", "Mapping")
            and ast.unparse(node.slice) in ("(str, Any)", "str, Any")
        ):
            yield node.lineno


def with_tables() -> set[str]:
    files = [f for package in ("segpt", "commands") for f in (ROOT / package).rglob("*.py")]
    return {
        file.relative_to(ROOT).as_posix()
        for file in files
        if any(raw_tables(file.read_text(encoding="utf-8")))
    }


@pytest.mark.slow
def test_tables_of_anything_stay_at_the_edge() -> None:
    more = sorted(with_tables() - ALLOWED)
    assert not more, f"make a spec of what these pass on, see segpt/config/run_about.py: {more}"


@pytest.mark.slow
def test_no_file_is_allowed_that_has_none() -> None:
    assert sorted(ALLOWED - with_tables()) == []


def test_each_file_has_one_reason() -> None:
    assert sum(map(len, RAW.values())) == len(ALLOWED)


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("def f(a: dict[str, Any]) -> None: ...", [1]),
        ("x: int\ny: list[Mapping[str, Any]]", [2]),
        ("x: dict[str, int]\ny: Mapping[str, object]", []),
    ],
)
def test_such_tables_are_seen(source: str, lines: list[int]) -> None:
    assert list(raw_tables(source)) == lines
