"""Who takes or gives a tensor or an array says its shape.

In the rooms below this holds for public functions, for ``forward`` wherever it is, and for public
classes that are made of arrays. What counts as a shape is in ``SHAPE``: sizes by name in
parentheses, ``(batch, length, width)`` or ``(n,)``; the words "a scalar"; or, where there is no one
shape, "named arrays", "of any shape", "the shape of" something or "the shapes of" several.

Exempt are private functions and classes but for their ``forward``, functions within functions,
special methods but for ``__init__``, and a method without a docstring whose base class says the
shapes for it.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("model", "train", "quant", "eval", "kernels", "artifact", "coding")

Function = ast.FunctionDef | ast.AsyncFunctionDef

# Names of arrays, by the module that they are imported from.
ARRAYS = {"torch": {"Tensor"}, "numpy.typing": {"NDArray", "ArrayLike"}, "segpt.values": {"Arrays"}}
TYPES = (ast.Subscript, ast.BinOp)  # ``NDArray[np.int8]``, ``NDArray[np.int64] | Tensor``
IN_FULL = ("torch.Tensor", "np.ndarray")

# A size is a name of at most four words, a number, an expression of these, or three dots; it is no
# year and no sentence.
_SIZE = r"(?:\.\.\.|\*|(?!\d{4}\b)\w+(?:[ *+/-]+\w+){0,3})"
SHAPE = re.compile(
    rf"\({_SIZE},\)|\({_SIZE}(?:,\s+{_SIZE})+\)"
    r"|\b(?i:a scalar|named arrays|(?:of|in) any shape|the shapes? of)\b"
)


def array_names(modules: Mapping[str, ast.Module]) -> dict[str, re.Pattern[str]]:
    """What is an array in the annotations of each module: imported, or named there or elsewhere.

    ``Codes = NDArray[np.int8]`` makes ``Codes`` one, wherever it is imported. The class ``Tensor``
    of a module without torch is none.
    """
    names = {
        path: {
            alias.name
            for node in module.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            if alias.name in ARRAYS.get(node.module or "", ())
        }
        for path, module in modules.items()
    }
    aliases: set[str] = set()
    for path, module in modules.items():
        for node in module.body:
            if not isinstance(node, ast.Assign) or not isinstance(node.value, TYPES):
                continue
            if pattern_of(names[path]).search(ast.unparse(node.value)):
                aliases |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return {path: pattern_of(own | aliases) for path, own in names.items()}


def pattern_of(names: set[str]) -> re.Pattern[str]:
    every = [rf"(?<![.\w]){name}" for name in sorted(names)] + [re.escape(n) for n in IN_FULL]
    return re.compile(rf"(?:{'|'.join(every)})\b")


def has_array(function: Function, array: re.Pattern[str]) -> bool:
    """Whether an argument or the result is an array, or holds some."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [a for a in (arguments.vararg, arguments.kwarg) if a]
    nodes = [*(a.annotation for a in every), function.returns]
    return any(node and array.search(ast.unparse(node)) for node in nodes)


def has_shape(node: Function | ast.ClassDef) -> bool:
    return bool(SHAPE.search(ast.get_docstring(node) or ""))


def inherited(name: str, of: ast.ClassDef, known: Mapping[str, ast.ClassDef]) -> bool:
    """Whether a method has no docstring of its own, and a base class says the shapes for it."""
    for base in of.bases:
        parent = known.get(re.sub(r"\[.*", "", ast.unparse(base), flags=re.DOTALL))
        if parent is None:
            continue
        for node in parent.body:
            if isinstance(node, Function) and node.name == name:
                return has_shape(node)
        if inherited(name, parent, known):
            return True
    return False


def silent(modules: Mapping[str, ast.Module]) -> Iterator[str]:
    """What says no shape, as ``path:line name``.

    Args:
        modules: the source, by path. Classes are known by their names, which are unique.
    """
    known = {
        node.name: node
        for module in modules.values()
        for node in module.body
        if isinstance(node, ast.ClassDef)
    }
    for path, array in array_names(modules).items():
        for node in modules[path].body:
            if isinstance(node, ast.ClassDef):
                for name, line in silent_in(node, known, array):
                    yield f"{path}:{line} {name}"
            elif not isinstance(node, Function) or node.name.startswith("_"):
                continue
            elif has_array(node, array) and not has_shape(node):
                yield f"{path}:{node.lineno} {node.name}"


def silent_in(
    node: ast.ClassDef, known: Mapping[str, ast.ClassDef], array: re.Pattern[str]
) -> Iterator[tuple[str, int]]:
    """What says no shape in a class: its fields together, and each of its methods."""
    private = node.name.startswith("_")
    fields = [
        field
        for field in node.body
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and not field.target.id.startswith("_")
        and array.search(ast.unparse(field.annotation))
    ]
    if fields and not private and not has_shape(node):
        yield node.name, node.lineno
    for method in node.body:
        if not isinstance(method, Function) or not has_array(method, array):
            continue
        name = f"{node.name}.{method.name}"
        if method.name == "__init__":
            if not private and not has_shape(method) and not has_shape(node):
                yield name, method.lineno
        elif method.name == "forward" or not (private or method.name.startswith("_")):
            mute = ast.get_docstring(method) is None
            if not has_shape(method) and not (mute and inherited(method.name, node, known)):
                yield name, method.lineno


def sources() -> dict[str, ast.Module]:
    paths = [path for room in ROOMS for path in sorted((ROOT / "segpt" / room).rglob("*.py"))]
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in paths
    }


@pytest.mark.slow
def test_every_tensor_has_a_shape() -> None:
    assert list(silent(sources())) == []


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("The logits, (batch, length, vocabulary).", True),
        ("Nats of each target, (targets,).", True),
        ("Rows of (..., 2 * width) as they are.", True),
        ("The norm, a scalar.", True),
        ("What resuming needs, as named arrays.", True),
        ("A moment in the shape of the weight.", True),
        ("A recursion (Jelinek and Mercer, 1980).", False),
        ("The weights (if there are any, as there need not be in every model).", False),
        ("The weights (those of the model).", False),
        ("", False),
    ],
)
def test_what_counts_as_a_shape(text: str, counts: bool) -> None:
    assert bool(SHAPE.search(text)) is counts


def test_a_tensor_without_a_shape_is_noticed() -> None:
    source = '''
from numpy.typing import NDArray
from torch import Tensor

Codes = NDArray[np.int8]

def plain(x: Tensor) -> int:
    """Count it."""

def shaped(x: Tensor) -> int:
    """Count ``x``, (rows, columns)."""

def _private(x: Tensor) -> int: ...

def number(x: int) -> int: ...

def alias(x: Codes) -> int:
    """Sum them."""

class Pair:
    """Two."""

    left: NDArray[np.float64]

class _Hidden:
    left: Tensor

    def forward(self, x: list[Tensor]) -> None: ...

class Base:
    def run(self, x: Tensor) -> Tensor:
        """Run ``x``, (n,)."""

class Same(Base):
    def run(self, x: Tensor) -> Tensor: ...

class Other(Base):
    def run(self, x: Tensor) -> Tensor:
        """Run otherwise."""
'''
    names = [line.split()[1] for line in silent({"a.py": ast.parse(source)})]
    assert names == ["plain", "alias", "Pair", "_Hidden.forward", "Other.run"]
