"""No room, file or function of the code is so large that nobody reads it to the end."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARE = 0.14  # of the library's lines, in one folder
FILE, FUNCTION = 400, 60  # lines
PARAMETERS = 8  # those of a command are its options


def sources(*packages: str) -> dict[Path, str]:
    paths = (path for package in packages for path in sorted((ROOT / package).rglob("*.py")))
    return {path: path.read_text(encoding="utf-8") for path in paths}


def large(text: str) -> Iterator[str]:
    """Functions with too many lines or parameters, but for commands of Click."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if any("command" in ast.unparse(decorator) for decorator in node.decorator_list):
            continue
        signature = node.args
        names = [a.arg for a in (*signature.posonlyargs, *signature.args, *signature.kwonlyargs)]
        count = len([name for name in names if name not in ("self", "cls")])
        if any(ast.unparse(decorator) == "triton.jit" for decorator in node.decorator_list):
            count = 0  # to a GPU every number is handed alone
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > FUNCTION or count > PARAMETERS:
            yield f"{node.name}: {lines} lines, {count} parameters"


def test_no_folder_holds_too_much_of_the_library() -> None:
    lines: Counter[str] = Counter()
    for path, text in sources("segpt").items():
        lines[path.relative_to(ROOT / "segpt").parts[0]] += text.count("\n")
    total = lines.total()
    assert not {room: count for room, count in lines.items() if count > SHARE * total}


def test_no_file_is_too_long() -> None:
    lengths = {str(path): text.count("\n") for path, text in sources("segpt", "commands").items()}
    assert not {name: length for name, length in lengths.items() if length > FILE}


@pytest.mark.slow
def test_no_function_is_too_long_or_wants_too_much() -> None:
    names = [
        f"{path.relative_to(ROOT)}: {what}"
        for path, text in sources("segpt", "commands").items()
        for what in large(text)
    ]
    assert not names


def test_what_is_too_large_is_seen() -> None:
    many = ", ".join(f"p{i}" for i in range(PARAMETERS + 1))
    assert list(large(f"def f({many}): ..."))
    assert not list(large(f"@click.command()\ndef f({many}): ..."))
    assert list(large("def f():\n" + "    x\n" * FUNCTION))
    assert not list(large("def f(self, a):\n" + "    x\n" * (FUNCTION - 1)))
