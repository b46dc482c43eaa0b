"""What holds for every file: docstrings, no code from data, no paths of anyone's machine."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("segpt", "commands", "bench", "tests")
MODULES = sorted(f for package in PACKAGES for f in (ROOT / package).rglob("*.py"))
SHIPPED = [f for f in MODULES if f.relative_to(ROOT).parts[0] in ("segpt", "commands")]

# Modules that turn data into code, and functions that do, by their last name.
RISKY_MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code"}
RISKY_BUILTINS = {"eval", "exec", "compile", "__import__"}
RISKY_CALLS = {
    *("torch.load", "torch.jit.load", "torch.hub.load", "torch.package"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"),
    *("yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader"),
    *("os.system", "os.popen", "np.load", "numpy.load"),
    # torch.distributed pickles objects
    *("dist.all_gather_object", "dist.gather_object", "dist.broadcast_object_list"),
    *("dist.scatter_object_list", "dist.send_object_list", "dist.recv_object_list"),
}


def dotted(node: ast.expr) -> str:
    """``a.b.c`` for an attribute of an attribute of a name; otherwise empty."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := dotted(node.value)):
        return f"{left}.{node.attr}"
    return ""


def risks(source: str) -> Iterator[str]:
    """Every way in which a module could run what it reads."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            joined = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from sorted(joined & RISKY_CALLS)
        yield from (name for name in names if name.split(".")[0] in RISKY_MODULES)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield from {node.id} & RISKY_BUILTINS
        if isinstance(node, ast.Attribute) and dotted(node) in RISKY_CALLS:
            yield dotted(node)
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
            yield node.arg


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_module_opens_with_a_docstring(module: Path) -> None:
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    assert text
    assert text.strip().splitlines()[0].rstrip().endswith((".", "?", ":")), text


@pytest.mark.slow
@pytest.mark.parametrize("module", SHIPPED, ids=lambda f: str(f.relative_to(ROOT)))
def test_no_module_runs_what_it_reads(module: Path) -> None:
    assert list(risks(module.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("source", "risk"),
    [
        ("import pickle", "pickle"),
        ("import os, dill.source", "dill.source"),
        ("from marshal import loads", "marshal"),
        ("from torch import load", "torch.load"),
        ("def f(x):\n    return eval(x)", "eval"),
        ("run = exec", "exec"),
        ("import torch\ntorch.load('x')", "torch.load"),
        ("import yaml\nyaml.load(x, yaml.UnsafeLoader)", "yaml.load"),
        ("np.load(f, allow_pickle=True)", "allow_pickle"),
        ("dist.all_gather_object(out, x)", "dist.all_gather_object"),
    ],
)
def test_the_check_sees_a_planted_risk(source: str, risk: str) -> None:
    assert risk in list(risks(source))
    assert not list(risks("import re\nmodel.eval()\nre.compile('x')\nyaml.safe_load(x)"))


def texts() -> Iterator[Path]:
    """Every text file of the project, found without git so that an sdist can be checked too."""
    folders = (*PACKAGES, "artifacts", "leaderboard", ".ci", ".github")
    kinds = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".json", ".sh", ".html", ""}
    files = [f for f in ROOT.iterdir() if f.is_file()]
    files += [f for folder in folders for f in (ROOT / folder).rglob("*") if f.is_file()]
    for file in files:
        if file.suffix in kinds and "__pycache__" not in file.parts:
            yield file


@pytest.mark.slow
def test_no_path_of_a_private_machine_is_named() -> None:
    """Tests reach optional data beside the checkout by names, never by such a path."""
    words = [f"/{word}/" for word in ("work", "root", "home", "Users")] + ["shared" + "/"]
    private = re.compile("|".join(rf"(?<![\w.-]){re.escape(word)}" for word in words))
    found = []
    for file in texts():
        for number, line in enumerate(file.read_text("utf-8", "replace").splitlines(), 1):
            if private.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)
