"""Whatever lies in a file, a reader takes it or says in one line what is wrong with it.

No reader is left out: every function that opens, parses or decodes anything is found in the code.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.readers import OWN, READERS

ROOT = Path(__file__).parents[2]
SEED = 20_261_130
QUICK, CAMPAIGN = 600, 200_000

# What opens, parses or decodes: methods by their name, functions by module and name.
_METHODS = frozenset(("read_bytes", "read_text", "fromhex", "frombuffer", "fromfile", "memmap"))
_OPENERS = frozenset(("open", "fdopen"))
_PARSERS = {
    "json": ("load", "loads"),
    "yaml": ("safe_load", "load", "SafeLoader"),
    "tomllib": ("load", "loads"),
    "tokenize": ("open",),
    "csv": ("reader", "DictReader"),
    "zipfile": ("ZipFile",),
    "lzma": ("decompress", "LZMADecompressor", "LZMAFile", "open"),
    "gzip": ("decompress", "GzipFile", "open"),
    "bz2": ("decompress", "BZ2File", "open"),
    "zlib": ("decompress", "decompressobj"),
    "zstandard": ("ZstdDecompressor",),
    "brotli": ("decompress", "Decompressor"),
    "parquet": ("ParquetFile", "read_table"),
    "ast": ("parse", "literal_eval"),
    "struct": ("unpack", "unpack_from"),
    "sentencepiece": ("SentencePieceProcessor",),
}
_FROM_PRETRAINED = "from_pretrained"
_SHARED = frozenset(("read_yaml", "read_json"))  # of our own, which hand on plain values


def readings(source: str) -> Iterator[str]:
    """The functions of a module that read something, by their qualified names."""
    tree = ast.parse(source)
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "safetensors.numpy"
        for alias in node.names
        if alias.name == "load"
    }

    def walk(node: ast.AST, place: tuple[str, ...]) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            inner = place
            if isinstance(child, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                inner = (*place, child.name)
            if isinstance(child, ast.Call) and _reads(child, names):
                yield ".".join(inner) or "<module>"
            yield from walk(child, inner)

    return walk(tree, ())


def _reads(call: ast.Call, loads: set[str]) -> bool:
    match call.func:
        case ast.Name(id="open"):
            return True
        case ast.Name(id=name):
            return name in loads or name in _SHARED
        case ast.Attribute(value=ast.Name(id=module), attr=name) if module in _PARSERS:
            return name in _PARSERS[module]
        case ast.Attribute(attr=name) if name in _OPENERS:
            modes = [a.value for a in call.args if isinstance(a, ast.Constant)]
            return not any(isinstance(m, str) and m[:1] in "wax" and m for m in modes)
        case ast.Attribute(attr=name):
            return name in _METHODS or name == _FROM_PRETRAINED
        case _:
            return False


def found() -> dict[str, Path]:
    """Every function of the code that reads something, as ``package.module:function``."""
    names: dict[str, Path] = {}
    for root, prefix in ((ROOT / "segpt", ""), (ROOT / "commands", "commands:")):
        for path in sorted(root.rglob("*.py")):
            module = ".".join(path.relative_to(root).with_suffix("").parts)
            module = f"{prefix}{module}" if prefix else module
            for function in readings(path.read_text(encoding="utf-8")):
                names[f"{module}:{function}"] = path
    return names


def is_covered(name: str) -> bool:
    module = name.rpartition(":")[0]
    return any(each in (name, f"{module}:*") for reader in READERS for each in reader.covers)


@pytest.mark.slow
def test_no_reader_is_missing() -> None:
    left_out = [name for name in found() if not is_covered(name) and name not in OWN]
    assert not left_out, "give each of these a reader in readers.py, or a reason in OWN"


@pytest.mark.slow
def test_no_reason_and_no_reader_is_of_the_past() -> None:
    names = found()
    modules = {name.rpartition(":")[0] for name in names}
    assert not [name for name in OWN if name not in names]
    assert not [
        each
        for reader in READERS
        for each in reader.covers
        if each not in names and not (each.endswith(":*") and each[:-2] in modules)
    ]
    assert all(OWN.values())


@pytest.mark.parametrize(
    "source",
    [
        "def f(p):\n    return p.read_bytes()",
        "def f(p):\n    return json.loads(p)",
        "def f(p):\n    with p.open('rb') as x:\n        pass",
        "def f(p):\n    return np.frombuffer(p)",
        "from safetensors.numpy import load\ndef f(p):\n    return load(p)",
        "def f(p):\n    return tomllib.loads(p)",
    ],
)
def test_the_search_sees_a_new_reader(source: str) -> None:
    assert list(readings(source)) == ["f"]


def run(place: Path, count: int, seed: int, *names: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", str(count), str(seed), str(place), *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def faults(results: list[dict[str, Any]]) -> list[str]:
    return [
        f"{one['reader']}: {kind} ({count} times, first in input {number})"
        for one in results
        for kind, (count, number) in one["faults"].items()
    ]


@pytest.mark.slow
def test_every_reader_takes_or_refuses_what_it_is_given(tmp_path: Path) -> None:
    results = run(tmp_path, QUICK, SEED)
    assert [one["reader"] for one in results] == [reader.name for reader in READERS]
    assert faults(results) == []
    refused = sum(one["refused"] for one in results)
    assert refused > QUICK / 4  # the damage is seen


@pytest.mark.campaign
@pytest.mark.parametrize("half", [0, 1])
def test_campaign(half: int, tmp_path: Path) -> None:
    results = run(tmp_path, CAMPAIGN // 2, SEED + 1 + half)
    for one in results:
        print({key: value for key, value in one.items() if key != "faults"})  # noqa: T201
    assert sum(one["inputs"] for one in results) >= CAMPAIGN // 2 * 0.99
    assert faults(results) == []
