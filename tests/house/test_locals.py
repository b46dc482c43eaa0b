"""A local says what it holds: no function binds a word that could stand for anything.

``found``, ``told`` and ``given`` are things that somebody found, told or gave, ``one`` is one of
them, ``here`` and ``there`` are places and ``how`` is a way: each has a noun, which is the name.
Fields and public functions are free to be called so, as they have an owner that says of what.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("segpt", "commands")
WORDS = {"found", "told", "given", "one", "how", "here", "there"}
ALLOWED: set[str] = set()  # ``path word``, where the word is the noun; there is none

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def bindings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of everything that functions bind: parameters, targets, inner functions."""
    for function in ast.walk(tree):
        if isinstance(function, Function):
            for node in ast.walk(function):
                if node is not function and (name := bound(node)) is not None:
                    yield int(getattr(node, "lineno", 0)), name


def bound(node: ast.AST) -> str | None:
    """The name that one node binds, if it does."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        return node.id
    if isinstance(node, ast.arg):
        return node.arg
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.alias):
        return getattr(node, "asname", None) or node.name
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
        return node.name
    return node.rest if isinstance(node, ast.MatchMapping) else None


def vague(root: Path) -> list[str]:
    """Where a function binds one of the words, as ``path:line word``."""
    places = []
    for place in PLACES:
        for path in sorted((root / place).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            tree = ast.parse(path.read_text(encoding="utf-8"))
            words = {(line, word) for line, word in bindings(tree) if word in WORDS}
            places += [f"{name}:{n} {w}" for n, w in sorted(words) if f"{name} {w}" not in ALLOWED]
    return places


@pytest.mark.slow
def test_locals_say_what_they_hold() -> None:
    assert vague(ROOT) == []


@pytest.mark.parametrize(
    "body",
    [
        "found = 1",
        "found: int = 1",
        "a, (found, *b) = c",
        "for found in a: pass",
        "[found for found in a]",
        "with a as found: pass",
        "print(found := 1)",
        "lambda found: 1",
        "def found(): pass",
        "def inner(*, found): pass",
        "import a as found",
        "try: pass\n    except E as found: pass",
        "match a:\n        case [found]: pass",
        "match a:\n        case {**found}: pass",
    ],
)
def test_every_way_to_bind_a_name_is_noticed(body: str, tmp_path: Path) -> None:
    for place in PLACES:
        (tmp_path / place).mkdir()
    (tmp_path / "segpt" / "a.py").write_text(f"def f(a):\n    {body}\n")
    (place,) = vague(tmp_path)
    assert place.startswith("segpt/a.py:")
    assert place.endswith(" found")


def test_what_is_no_local_may_be_called_so(tmp_path: Path) -> None:
    for place in PLACES:
        (tmp_path / place).mkdir()
    source = "class A:\n    found: int = 1\n    def here(self):\n        return self.found\n"
    (tmp_path / "segpt" / "a.py").write_text(source)
    assert vague(tmp_path) == []
