"""A bundled program does what it did, carries what it reaches and no more, and never changes."""

import ast
import base64
import lzma
import subprocess
import sys
from pathlib import Path

import pytest

from segpt.contest.bundle import pack, sources, unpack
from segpt.contest.minify import Strip, minify, squeezed
from segpt.contest.prune import Prune
from segpt.errors import SegptError

FILES = {
    "__init__.py": '"""A package."""\n__version__ = "9.9"\nUNUSED = 1\n',
    "base.py": '"""Specs."""\n\n\ndef spec(cls):\n    return cls\n',
    "kinds.py": '''"""Kinds."""

from dataclasses import dataclass
from typing import Any

from .base import spec


@spec
@dataclass
class Near:
    """A kind."""

    reach: int = 3


@spec
@dataclass
class Far:
    """Another kind."""

    reach: int = 30


Kind = Near | Far
''',
    "heavy.py": '"""What only far things need."""\n\nWEIGHT = "heavy" * 3\n',
    "work.py": '''"""Work."""

from collections.abc import Mapping

import segpt

from .heavy import WEIGHT
from .kinds import Far, Kind, Near

TABLE = {"{x}": "a  b", 'it"s': 'c'}
REGISTERED = []


def register(function):
    REGISTERED.append(function.__name__)
    return function


@register
def counted() -> None:
    """Kept for what its decorator does."""


def unused(value: Mapping[str, int]) -> int:
    return value["never"]


def run(kind: Kind, *, times: int = 2) -> str:
    """Say what a kind is.

    Args:
        kind: near or far.
        times: how often.
    """
    assert times > 0
    total: int = 0

    def add(amount: int) -> None:
        nonlocal total
        total += amount  # as often as asked

    for index in range(times):
        add(index if isinstance(kind, Near) else 1)
    match kind:
        case Near(reach=reach):
            said = f"near {reach:>{times}} {total!r} {{braces}}"
        case Far(reach=reach):
            said = f"far {reach} {WEIGHT}"
    try:
        if times > 9:
            raise ValueError(f"{times} is too often, and this text is for people")
    except ValueError as error:
        said = type(error).__name__
    return f"{said} {segpt.__version__} {sorted(TABLE)} {REGISTERED}"
''',
}
MAIN = """from segpt.kinds import Near
from segpt.work import run
print(run(Near(), times=4))
print(run(Near(), times=12))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    place = tmp_path / "segpt"
    place.mkdir()
    for name, text in FILES.items():
        (place / name).write_text(text)
    return place


def output(script: Path, *, path: Path | None = None) -> str:
    flags = ["-I"] if path is None else []
    line = [sys.executable, *flags, str(script)]
    done = subprocess.run(
        line, cwd=path or script.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_bundle_says_what_the_program_says(package: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.py"
    plain.write_text(MAIN)
    bundled = tmp_path / "alone" / "bundled.py"
    bundled.parent.mkdir()
    modules = sources(package, ["segpt.work:run", "segpt.kinds:Near"], ["segpt.kinds:Near"], MAIN)
    bundled.write_bytes(pack(modules, "# A header\n", MAIN))
    told = output(bundled)
    assert told == output(plain, path=tmp_path)
    assert "near    3 6 {braces} 9.9" in told
    assert "ValueError 9.9" in told
    assert bundled.read_bytes().startswith(b"# A header\n")
    assert unpack(bundled.read_bytes()) == modules | {"__main__": MAIN}


def test_a_script_that_was_packed_with_lzma_is_read() -> None:
    """As all were, once."""
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 9, "lc": 4, "lp": 0, "pb": 0}]
    body = b"segpt\1VERSION = 1\0__main__\1print(2)"
    packed = lzma.compress(body, lzma.FORMAT_RAW, filters=[filters[0] | {"dict_size": 1 << 20}])
    script = f"exec(unpacked({base64.b85encode(packed).decode()!r}))\n"
    assert unpack(script.encode()) == {"segpt": "VERSION = 1", "__main__": "print(2)"}


def test_it_carries_what_is_reached_and_no_more(package: Path) -> None:
    entries = ["segpt.work:run", "segpt.kinds:Near"]
    whole = sources(package, entries)
    near = sources(package, entries, ["segpt.kinds:Near"])
    assert "segpt.heavy" in whole
    assert "segpt.heavy" not in near
    assert "class Far" in whole["segpt.kinds"]
    assert "class Far" not in near["segpt.kinds"]
    for modules in (whole, near):
        text = "\n".join(modules.values())
        assert "UNUSED" not in text
        assert "unused" not in text
        assert "Args:" not in text
        assert "for people" not in text
        assert "assert" not in text
        assert "def counted" in modules["segpt.work"]  # for the sake of its decorator


def test_a_kind_that_the_program_makes_itself_stays(package: Path) -> None:
    (package / "maker.py").write_text(
        "from .kinds import Far\nfrom .work import run\n\ndef go():\n    return run(Far())\n"
    )
    modules = sources(package, ["segpt.maker:go"], [])
    assert "class Far" in modules["segpt.kinds"]
    assert "segpt.heavy" in modules
    assert "class Near" not in modules["segpt.kinds"]


def test_the_same_input_gives_the_same_bytes(package: Path) -> None:
    first, second = (pack(sources(package, ["segpt.work:run"]), "", MAIN) for _ in range(2))
    assert first == second


def test_an_entry_point_that_is_not_there_is_refused(package: Path) -> None:
    with pytest.raises(SegptError, match=r"segpt\.work has no walk"):
        sources(package, ["segpt.work:walk"])
    with pytest.raises(SegptError, match="no script with modules"):
        unpack(b"print(1)\n")


@pytest.mark.parametrize(
    "source",
    [
        "x = 1\nif x:\n    y = -x ** 2\n    z = (y if y else 'a  b')\n",
        "def f(a, *b, c=1, **d):\n    return lambda q: [a, *b, c, d, q]\n",
        "s = f'{1 + 1 :>10} {{}} {\"a b\"}'\nt = b'\\x00' + rb'\\d'\n",
        "async def f():\n    async with a as b, c as d:\n        yield (await b)\n",
        "x = 1 if 2 else 3\nprint(not x, x is not None, x in (1,), 0x1f or 1.)\n",
        "class A(B, metaclass=C):\n    x: int = 1\n    @property\n    def y(self): return self.x\n",
        "t = '''a\n   b\n'''\nwhile 1:\n    break\nelse:\n    pass\n",
    ],
)
def test_squeezing_changes_nothing_but_the_size(source: str) -> None:
    short = squeezed(ast.unparse(ast.parse(source)))
    assert ast.dump(ast.parse(short)) == ast.dump(ast.parse(source))
    assert len(short) <= len(source)


RENAMED = """
LIMIT = 3
def outer(first, second, given=1):
    total = [first * second + given for first in range(second)]
    def inner(amount):
        nonlocal second
        second += amount
        return second, LIMIT
    class Local:
        kept = total
    try:
        import math as numbers
        raise KeyError(numbers.pi)
    except KeyError as problem:
        caught = type(problem).__name__
    match {"a": 1, "b": 2}:
        case {"a": one, **others}:
            pass
        case [*several] | several:
            one, others = several, None
    with open(__import__("os").devnull) as (handle):
        length = len(handle.read())
    if (found := inner(2)):
        del length
    return total, inner(amount=1), Local.kept, caught, one, others, found
def call():
    return outer(5, 4, given=2)
RESULT = call()
"""


def test_short_names_mean_the_same() -> None:
    tree = ast.parse(RENAMED)
    (short,) = minify({"m": Strip().visit(ast.parse(RENAMED))}).values()
    results = []
    for source in (ast.unparse(tree), short):
        done = subprocess.run(
            [sys.executable, "-c", f"{source}\nprint(RESULT)"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr + source
        results.append(done.stdout)
    assert results[0] == results[1]
    assert "several" not in short
    assert "amount" in short  # given by name
    assert "kept" in short


PRIVATE = """
_LIMIT = 3
_OTHER = 4
_SHARED = 5
_BOUND = 6
class _Kept:
    _LIMIT_OF = 7
    def _method(self, _BOUND):
        return _BOUND + _SHARED
@spec
class _Read:
    size: int = 0
def _caught(value):
    try:
        raise KeyError(value)
    except KeyError as _OTHER:
        return str(_OTHER)
def _counted():
    global _COUNT
    _COUNT = _first(_LIMIT)
    return _COUNT
def _first(_value):
    return _value + _BOUND
def _named():
    return 9
_COUNT = 0
RESULT = _counted(), _caught(1), _Kept()._method(8), _Kept._LIMIT_OF, _Read.__name__, _COUNT, _OTHER
RESULT += (globals()["_named"](),)
"""


def test_what_is_private_to_a_module_is_renamed() -> None:
    other = "from m import _SHARED\n"
    short = minify({"m": ast.parse(PRIVATE), "n": ast.parse(other)})["m"]
    results: list[object] = []
    for text in (PRIVATE, short):
        names: dict[str, object] = {"spec": lambda kind: kind}
        exec(text, names)
        results.append(names["RESULT"])
    assert results[0] == results[1]
    for name in ("_counted", "_first", "_Kept", "_LIMIT "):
        assert name not in short
    for name in ("_SHARED", "_BOUND", "_Read", "_COUNT", "_OTHER", "_named", "_LIMIT_OF"):
        assert name in short


@pytest.mark.parametrize(
    ("source", "pruned"),
    [
        ("if isinstance(x, Dead):\n    a\nelse:\n    b", "b"),
        ("y = a if isinstance(x, Dead) else b", "y = b"),
        ("y = isinstance(x, Dead | Live)", "y = isinstance(x, Live)"),
        ("y = not isinstance(x, Dead) and z", "y = z"),
        ("y = z or isinstance(x, Dead)", "y = z"),
        ("K = Dead | Live | None", "K = Live | None"),
        ("match x:\n    case Dead():\n        a\n    case Live() | Dead():\n        b", None),
        ("match x:\n    case (Dead(), _):\n        a\n    case _:\n        b", None),
    ],
)
def test_branches_of_dead_kinds_go(source: str, pruned: str | None) -> None:
    tree = Prune(lambda node: isinstance(node, ast.Name) and node.id == "Dead")
    found = ast.unparse(ast.fix_missing_locations(tree.visit(ast.parse(source))))
    assert "Dead" not in found
    assert pruned is None or found == pruned
    assert pruned is not None or found.endswith("b")
