"""Source code in fewer characters that does the same: short names, no texts that nobody reads.

What is renamed are names inside functions (what they bind themselves, and parameters that no call
gives by name), and what is private to a module: functions, classes and values that begin with an
underscore and that no other module mentions.
"""

import ast
import builtins
import io
import itertools
import keyword
import string
import tokenize
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from segpt.errors import SegptError

_READ = "spec"  # decorates a class whose annotations are read
_KINDS_OF_FIELD = frozenset(("ClassVar", "InitVar", "KW_ONLY"))
_RESERVED = frozenset((*keyword.kwlist, *keyword.softkwlist, *dir(builtins)))
_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class Strip(ast.NodeTransformer):
    """Takes out docstrings, assertions, texts of errors, and annotations that nothing reads."""

    def visit_Module(self, node: ast.Module) -> ast.Module:
        node.body = _without_text(node.body)
        self.generic_visit(node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        body = _without_text(node.body) or [ast.Pass()]
        read = any(isinstance(d, ast.Name) and d.id == _READ for d in node.decorator_list)
        node.body = [self._field(s, read) if isinstance(s, ast.AnnAssign) else s for s in body]
        node.body = [s if isinstance(s, ast.AnnAssign) else self.visit(s) for s in node.body]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.body = _without_text(node.body) or [ast.Pass()]
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return ast.Pass()
        self.generic_visit(node)
        return ast.Assign([node.target], node.value)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return ast.Pass()

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        """An error says what it is and where; its text is for people."""
        call = node.exc
        if isinstance(call, ast.Call) and _last_name(call.func).endswith("Error"):
            node.exc = call.func
        self.generic_visit(node)
        return node

    def _field(self, node: ast.AnnAssign, read: bool) -> ast.AnnAssign:
        named = {n.id for n in ast.walk(node.annotation) if isinstance(n, ast.Name)}
        if not read and not named & _KINDS_OF_FIELD:
            node.annotation = ast.Name("int", ast.Load())
        node.value = None if node.value is None else self.visit(node.value)
        return node


def minify(trees: Mapping[str, ast.Module], main: str = "") -> dict[str, str]:
    """The sources of modules that only each other and ``main`` call, shortened together.

    Raises:
        SegptError: if the short form would not mean the same, which is a fault of this module.
    """
    program = ast.parse(main)
    keywords = set(_given([*trees.values(), program]))
    mentions = Counter(n for tree in (*trees.values(), program) for n in _mentioned(tree))
    sources = {}
    for name, tree in trees.items():
        _rename_private(tree, {n for n, modules in mentions.items() if modules > 1} | keywords)
        _rename(tree, keywords)
        sources[name] = squeezed(ast.unparse(ast.fix_missing_locations(tree)))
    return sources


def squeezed(source: str) -> str:
    """``source`` without the spaces it does not need, and one for each level of indentation.

    Raises:
        SegptError: if the result is not the same code.
    """
    lines: list[str] = [""]
    level, last = 0, (0, 0)
    rows = source.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.INDENT:
            level += 1
        elif token.type == tokenize.DEDENT:
            level -= 1
        elif token.type == tokenize.NEWLINE:
            lines.append("")
        elif token.type not in (tokenize.NL, tokenize.ENDMARKER):
            begun = bool(lines[-1])
            gap = "" if not begun else _between(rows, last, token.start)
            needed = gap and (_joins(lines[-1][-1]) and _joins(token.string[0]))
            kept = gap if gap.strip() else (" " if needed else "")
            lines[-1] += (kept if begun else " " * level) + _text(rows, token.start, token.end)
        last = token.end
    short = "\n".join(line for line in lines if line)
    if ast.dump(ast.parse(short)) != ast.dump(ast.parse(source)):
        raise SegptError("the source cannot be shortened without changing it")
    return short


def _joins(character: str) -> bool:
    return character.isalnum() or character in "_\"'" or not character.isascii()


def _between(rows: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    return _text(rows, start, end) if start[0] == end[0] else ""


def _text(rows: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    if start[0] == end[0]:
        return rows[start[0] - 1][start[1] : end[1]]
    inner = rows[start[0] : end[0] - 1]
    return rows[start[0] - 1][start[1] :] + "".join(inner) + rows[end[0] - 1][: end[1]]


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _without_text(body: list[ast.stmt]) -> list[ast.stmt]:
    return [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]


def _given(trees: Collection[ast.Module]) -> Iterator[str]:
    """Names that a call may give: of keywords, of fields, and of texts that could become either."""
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg:
                yield node.arg
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.ClassDef):
                fields = (s.target for s in node.body if isinstance(s, ast.AnnAssign))
                yield from (target.id for target in fields if isinstance(target, ast.Name))


def _mentioned(tree: ast.Module) -> set[str]:
    """Every name in a module, whatever it stands for there."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name():
                names.add(node.id)
            case ast.Attribute():
                names.add(node.attr)
            case ast.arg():
                names.add(node.arg)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.alias():
                names.update(node.name.split("."))
                names.add(node.asname or "")
            case ast.Global() | ast.Nonlocal():
                names.update(node.names)
            case _:
                pass
    return names


def _rename_private(tree: ast.Module, known: set[str]) -> None:
    """Give short names to what is private to a module and not ``known`` to others.

    A name that anything but the top of the module binds too keeps its length.
    """
    tops = Counter(name for statement in tree.body for name in _private(statement))
    uses: Counter[str] = Counter()
    bindings: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            uses[node.id] += 1
            bindings[node.id] += isinstance(node.ctx, ast.Store)
        elif isinstance(node, ast.arg):
            bindings[node.arg] += 1
        elif isinstance(node, _Named):
            bindings[node.name] += 1
        elif isinstance(node, ast.alias):
            bindings[node.asname or node.name] += 1
        elif isinstance(node, ast.Global | ast.Nonlocal):
            bindings.update(node.names)
        elif isinstance(node, _CAPTURES):
            bindings[_captured(node) or ""] += 1
    own = [n for n, count in tops.items() if n not in known and bindings[n] == count]
    taken = _mentioned(tree) | _RESERVED
    short = (n for n in _short() if n not in taken and n.isupper())
    names = dict(zip(sorted(own, key=lambda n: (-uses[n], n)), short, strict=False))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            node.id = names.get(node.id, node.id)
        elif isinstance(node, _Named):
            node.name = names.get(node.name, node.name)


_Named = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _private(statement: ast.stmt) -> Iterator[str]:
    """The private names that a statement of a module binds; those of what is read by name not."""
    if isinstance(statement, _Named):
        read = any(_last_name(d) == _READ for d in statement.decorator_list)
        names = [] if read else [statement.name]
    else:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        names = [target.id for target in targets if isinstance(target, ast.Name)]
    yield from (name for name in names if name.startswith("_") and not name.startswith("__"))


def _rename(tree: ast.Module, keywords: set[str]) -> None:
    """Give short names to what the outermost functions of a module bind."""
    outer = {n.id for n in _outside(tree) if isinstance(n, ast.Name)} | _defined(tree)
    for node in _outside(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            _rename_function(node, keywords, outer)


def _outside(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that are not inside a function, and the outermost functions themselves."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in (*node.decorator_list, node.args):
                yield from ast.walk(part)
        else:
            yield from _outside(node)


def _defined(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in _outside(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
    return names


def _rename_function(node: ast.AST, keywords: set[str], outer: set[str]) -> None:
    bound: Counter[str] = Counter()
    fixed: set[str] = set()  # what another scope or a caller knows by its name
    used: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            used.add(inner.id)
            bound[inner.id] += 1 if isinstance(inner.ctx, ast.Load) else 1000
        elif isinstance(inner, ast.arg):
            used.add(inner.arg)
            bound[inner.arg] += 1000
            if inner.arg in keywords:
                fixed.add(inner.arg)
        elif isinstance(inner, ast.Global | ast.Nonlocal):
            fixed.update(inner.names if isinstance(inner, ast.Global) else ())
        elif isinstance(inner, ast.ClassDef):
            fixed |= {n.id for n in ast.walk(inner) if isinstance(n, ast.Name)} | {inner.name}
        elif isinstance(inner, ast.Import | ast.ImportFrom):
            fixed |= {alias.asname or alias.name.split(".")[0] for alias in inner.names}
        elif inner is not node and isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            used.add(inner.name)
            bound[inner.name] += 1000
        elif isinstance(inner, _CAPTURES) and (name := _captured(inner)) is not None:
            used.add(name)
            bound[name] += 1000
    own = [n for n, count in bound.items() if count >= 1000]
    free = fixed | outer | _RESERVED
    renamed = sorted((n for n in own if n not in free), key=lambda n: (-bound[n] % 1000, n))
    taken = (used - set(renamed)) | free
    names = dict(zip(renamed, (n for n in _short() if n not in taken), strict=False))
    _Renamer(names, node).visit(node)


_CAPTURES = (ast.ExceptHandler, ast.MatchAs, ast.MatchStar, ast.MatchMapping)


def _captured(node: ast.AST) -> str | None:
    name = node.rest if isinstance(node, ast.MatchMapping) else getattr(node, "name", None)
    return name if isinstance(name, str) else None


def _short() -> Iterator[str]:
    for size in itertools.count(1):
        for letters in itertools.product(string.ascii_letters, repeat=size):
            yield "".join(letters)


class _Renamer(ast.NodeTransformer):
    """Renames variables and parameters within one outermost function."""

    def __init__(self, names: Mapping[str, str], outermost: ast.AST) -> None:
        self.names, self.outermost = names, outermost

    def visit_Name(self, node: ast.Name) -> ast.Name:
        node.id = self.names.get(node.id, node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.arg = self.names.get(node.arg, node.arg)
        return node

    def visit_Nonlocal(self, node: ast.Nonlocal) -> ast.Nonlocal:
        node.names = [self.names.get(name, name) for name in node.names]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        if node is not self.outermost:
            node.name = self.names.get(node.name, node.name)
        self.generic_visit(node)
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.MatchMapping) and node.rest is not None:
            node.rest = self.names.get(node.rest, node.rest)
        elif isinstance(node, _CAPTURES) and (name := _captured(node)) is not None:
            node.name = self.names.get(name, name)  # type: ignore[union-attr]
        return super().generic_visit(node)
