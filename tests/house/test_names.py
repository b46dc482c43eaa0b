"""A name means one thing: no public class is called like another, but a spec and its module."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("segpt", "commands")

# Names that the code has left for those of the field, and files that nobody looked for.
RETIRED = {
    "Nothing Descend Adapt Review Past Cache Leaf Adapted Frontier Lesson Lane Taken",
    "Grid Stepped Half Coded Partial attend settle rms told found given",
}
RETIRED_FILES = {
    "case census fit first folder foreign frontier leaves models opening recipes remake standing",
    "stored untuned words",
}


def classes(root: Path) -> dict[str, list[str]]:
    """The modules that define each public class, by its name."""
    modules = defaultdict(list)
    for place in PLACES:
        for path in sorted((root / place).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    modules[node.name].append(path.relative_to(root).as_posix())
    return modules


def doubles(modules: dict[str, list[str]]) -> dict[str, list[str]]:
    """Names of several classes that are not a spec of ``config`` and the module it describes."""
    return {
        name: paths
        for name, paths in modules.items()
        if len(paths) > 2
        or (len(paths) == 2 and sum(path.startswith("segpt/config/") for path in paths) != 1)
    }


@pytest.mark.slow
def test_no_two_classes_have_one_name() -> None:
    assert doubles(classes(ROOT)) == {}


@pytest.mark.slow
def test_no_retired_name_comes_back() -> None:
    names = {name for line in RETIRED for name in line.split()}
    files = {f"{name}.py" for line in RETIRED_FILES for name in line.split()}
    found = []
    for path in (path for place in PLACES for path in sorted((ROOT / place).rglob("*.py"))):
        if path.parent.name != "commands" and path.name in files:
            found.append(path.name)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = (n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef | ast.FunctionDef))
        found += [f"{path.relative_to(ROOT)}: {name}" for name in defined if name in names]
    assert not found


def test_a_double_is_noticed(tmp_path: Path) -> None:
    for path in ("segpt/config/a.py", "segpt/model/a.py", "segpt/data/b.py", "commands/c.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "segpt/config/a.py").write_text("class Pair: ...\nclass _Own: ...\n")
    (tmp_path / "segpt/model/a.py").write_text("class Pair: ...\nclass _Own: ...\n")
    (tmp_path / "segpt/data/b.py").write_text("class Twice: ...\n")
    (tmp_path / "commands/c.py").write_text("class Twice: ...\n")
    assert doubles(classes(tmp_path)) == {"Twice": ["segpt/data/b.py", "commands/c.py"]}
