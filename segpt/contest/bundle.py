"""The source of a program as one small script: the modules it reaches, without what it never uses.

Modules are found by following imports from the names that the program calls; a definition stays if
something that stays refers to it. Docstrings, comments and annotations that nothing reads go. The
same input gives the same bytes.
"""

import ast
import base64
import bz2
import lzma
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from segpt.errors import SegptError

from .minify import Strip, minify
from .prune import Prune, made

PACKAGE = "segpt"
LARGEST = 16 << 20  # bytes of source that a script unpacks to

# Decorators that leave nothing behind elsewhere, so that what they decorate may go.
_PURE = (
    frozenset(("dataclass", "dataclasses.dataclass", "spec", "variant", "cache", "functools.cache"))
    | {"contextmanager"}
    | {"contextlib.contextmanager", "typing.dataclass_transform", "torch.no_grad", "lru_cache"}
)

Name = tuple[str, str]  # a module, and what it binds; the module itself binds ""
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass
class _Statement:
    """A statement of a module, what it binds, and whether it runs for more than that."""

    node: ast.stmt
    binds: tuple[str, ...]
    always: bool


@dataclass
class _Module:
    """A module: its statements, and what its imports bind, by name."""

    name: str
    statements: list[_Statement] = field(default_factory=list)
    imports: dict[str, Name] = field(default_factory=dict)
    effects: set[str] = field(default_factory=set)
    bound: set[str] = field(default_factory=set)


def sources(
    root: Path, entries: Iterable[str], kinds: Iterable[str] | None = None, main: str = ""
) -> dict[str, str]:
    """The minimal source of each module that some entry points need, by name and in order.

    Specs and variants, the classes that are decorated as such, stay only where some value is one.

    Args:
        root: the directory of the package.
        entries: what the program calls, as ``module:name``.
        kinds: the specs that occur in what the program reads, as ``module:class``; the code for
            others goes, but for those that what stays makes itself. None means all.
        main: the source of the program, whose calls may name parameters.

    Raises:
        SegptError: if there is no such module or name.
    """
    package = _Package(root)
    begun = [_entry(text) for text in entries]
    if kinds is None:
        return _Reached(package, begun, None).sources(main)
    live = {_entry(text) for text in kinds}
    while not (reached := _Reached(package, begun, live)).made <= live:
        live |= reached.made
    return reached.sources(main)


def pack(modules: Mapping[str, str], header: str, main: str) -> bytes:
    """A script that carries ``modules`` compressed and imports them from memory.

    Args:
        modules: sources by name.
        header: comments that begin the script, such as its licence.
        main: the source that runs when the modules can be imported.
    """
    parts = [*modules.items(), ("__main__", main)]
    body = "\0".join(f"{name}\1{source}" for name, source in parts)
    payload = base64.b85encode(bz2.compress(body.encode())).decode()
    return (header + _LOADER.replace("PAYLOAD", payload)).encode()


def unpack(script: bytes) -> dict[str, str]:
    """The sources in a script of :func:`pack`, the main one under ``__main__``.

    Raises:
        SegptError: if it is no such script.
    """
    try:
        tree = ast.parse(script)
        texts = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant))
        payload = max((t for t in texts if isinstance(t, str)), key=len, default="")
        data = base64.b85decode(payload)
        decompressor = bz2.BZ2Decompressor() if data.startswith(_BZIP2) else _earlier()
        body = decompressor.decompress(data, LARGEST)
        if not decompressor.eof:
            raise ValueError("the modules in it end too early, or are too large")
        return dict(part.split("\1", 1) for part in body.decode().split("\0"))
    except _NO_SCRIPT as error:
        raise SegptError(f"no script with modules in it: {error}") from error


_NO_SCRIPT = (SyntaxError, ValueError, OSError, RecursionError, MemoryError, lzma.LZMAError)
_BZIP2 = b"BZh"  # sorted by what follows, source takes a twentieth less than LZMA makes of it


def _earlier() -> lzma.LZMADecompressor:
    """What reads the scripts that were packed before bzip2 was."""
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 20, "lc": 4, "lp": 0, "pb": 0}]
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)


_LOADER = """import base64,bz2,sys
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
M=dict(p.split('\\1',1)for p in bz2.decompress(base64.b85decode('PAYLOAD')).decode().split('\\0'))
class L(Loader):
 def find_spec(s,n,p=None,t=None):
  if n in M:return ModuleSpec(n,s,is_package=any(m.startswith(n+'.')for m in M))
 def exec_module(s,m):
  n=m.__name__;m.__file__=__file__+'/'+n.replace('.','/')+'.py';exec(compile(M[n],n,'exec'),m.__dict__)
sys.meta_path.insert(0,L())
exec(compile(M['__main__'],'main','exec'))
"""


def _entry(text: str) -> Name:
    module, _, name = text.partition(":")
    return module, name


class _Package:
    """The modules of a package, each read once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = cache(self._path)
        self.kind = cache(self._kind)
        self.text = cache(lambda module: _read_text(self.path(module)))
        self.tree = cache(self.fresh)
        self.imports = cache(lambda module: _imports(self.tree(module), self.of(module)))

    def fresh(self, module: str) -> ast.Module:
        """The syntax tree of a module, for the caller to change."""
        return ast.parse(self.text(module))

    def of(self, module: str) -> str:
        """The package of a module; a package is its own."""
        path = self.path(module)
        whole = path is not None and path.name == "__init__.py"
        return module if whole else module.rpartition(".")[0]

    def _path(self, module: str) -> Path | None:
        """The file of a module of this package, or None."""
        first, *parts = module.split(".")
        place = self.root.joinpath(*parts)
        for path in (place / "__init__.py", place.parent / f"{place.name}.py"):
            if first == PACKAGE and path.is_file():
                return path
        return None

    def _kind(self, name: Name) -> Name | None:
        """The spec or variant that a name stands for, where it was defined; None of all else."""
        module, word = name
        while self.path(module) is not None:
            for statement in self.tree(module).body:
                if isinstance(statement, ast.ClassDef) and statement.name == word:
                    optional = any(map(_is_optional, statement.decorator_list))
                    return (module, word) if optional else None
            further = self.imports(module).get(word)
            if further is None or further == (module, word):
                return None
            module, word = further
        return None


class _Reached:
    """What is reached from some names."""

    def __init__(
        self, package: "_Package", entries: list[Name], live: Collection[Name] | None
    ) -> None:
        self.package, self.live, self.modules = package, live, dict[str, _Module]()
        self.made: set[Name] = set()
        self.kept: dict[str, dict[int, _Statement]] = {}
        self.names: dict[str, set[str]] = {}
        self.waiting = list(entries)
        while self.waiting:
            self._reach(*self.waiting.pop())

    def sources(self, main: str) -> dict[str, str]:
        trees: dict[str, ast.Module] = {}
        for name in sorted(self.kept):
            module = self.modules[name]
            order = sorted(self.kept[name])
            body = [self._trimmed(name, module.statements[i].node) for i in order]
            kept = [node for node in body if node is not None]
            trees[name] = ast.Module(kept, [])
        return minify(trees, main)

    def _reach(self, module: str, name: str) -> None:
        if not module.startswith(PACKAGE) or self.package.path(module) is None:
            return
        if module not in self.kept:
            self._open(module)
        if name in self.names[module]:
            return
        self.names[module].add(name)
        if not name:
            return
        if self.package.path(f"{module}.{name}") is not None:
            self._reach(f"{module}.{name}", "")
        about = self.modules[module]
        is_bound = False
        for index, statement in enumerate(about.statements):
            if name in statement.binds:
                is_bound = True
                self._keep(module, index)
        if name in about.imports:
            self.waiting.append(about.imports[name])
        elif not is_bound and self.package.path(f"{module}.{name}") is None:
            raise SegptError(f"{module} has no {name}; correct the entry point")

    def _open(self, module: str) -> None:
        if "." in module:
            self._reach(module.rpartition(".")[0], "")
        self.kept[module], self.names[module] = {}, set()
        self.modules[module] = about = self._read(module)
        for index, statement in enumerate(about.statements):
            if statement.always:
                self._keep(module, index)
        for name in sorted(about.effects):
            self._reach(module, name)

    def _keep(self, module: str, index: int) -> None:
        if index not in self.kept[module]:
            statement = self.modules[module].statements[index]
            self.kept[module][index] = statement
            node, about = statement.node, self.modules[module]
            if not isinstance(node, ast.Import | ast.ImportFrom):
                needs = set(self._needs(node, about, self.package.of(module)))
                self.waiting += sorted(needs, reverse=True)
                kinds = (self._kind(inner, about) for inner in made(node))
                self.made.update(kind for kind in kinds if kind is not None)

    def _read(self, name: str) -> _Module:
        tree = self.package.fresh(name)
        package = self.package.of(name)
        before = _used(tree)
        tree = ast.fix_missing_locations(Strip().visit(tree))
        module = _Module(name, imports=_imports(tree, package))
        if self.live is not None:
            tree = Prune(lambda node: self._is_dead(node, module)).visit(tree)
        module.bound = {*module.imports, *(n for node in tree.body for n in _binds(node))}
        unused = set(module.imports) - before
        module.effects = {n for n in unused if module.imports[n][0].startswith(PACKAGE)}
        for node in tree.body:
            module.statements.append(self._statement(node, package))
        return module

    def _statement(self, node: ast.stmt, package: str) -> _Statement:
        if isinstance(node, ast.Import | ast.ImportFrom):
            return _Statement(node, tuple(_bound(node, package)), False)
        binds = _binds(node)
        return _Statement(node, binds, not binds or _has_effect(node))

    def _needs(self, node: ast.AST, module: _Module, package: str) -> Iterator[Name]:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name):
                if inner.id in module.bound:
                    yield module.name, inner.id
            elif isinstance(inner, ast.Attribute) and (path := _dotted(inner)):
                yield from self._dotted(path, module)
            elif isinstance(inner, ast.Import | ast.ImportFrom):
                yield from _bound(inner, package).values()

    def _dotted(self, path: list[str], module: _Module) -> Iterator[Name]:
        """What an attribute of an imported module stands for, as deep as modules go."""
        if not path or path[0] not in module.imports:
            return
        base, name = module.imports[path[0]]
        reached = f"{base}.{name}" if name else base
        for part in path[1:]:
            if self.package.path(reached) is None or not reached.startswith(PACKAGE):
                return
            if self.package.path(f"{reached}.{part}") is None:
                yield reached, part
                return
            reached = f"{reached}.{part}"

    def _is_dead(self, node: ast.expr, module: _Module) -> bool:
        kind = self._kind(node, module)
        return kind is not None and self.live is not None and kind not in self.live

    def _kind(self, node: ast.expr, module: _Module) -> Name | None:
        """The spec or variant that an expression names, where it was defined."""
        path = _dotted(node)
        if len(path) == 1:
            return self.package.kind(module.imports.get(path[0], (module.name, path[0])))
        named = next(self._dotted(path, module), None)
        return None if named is None else self.package.kind(named)

    def _trimmed(self, module: str, node: ast.stmt) -> ast.stmt | None:
        """An import without the names that nothing uses, or None if none is left."""
        if not isinstance(node, ast.Import | ast.ImportFrom):
            return node
        names = [a for a in node.names if (a.asname or a.name.split(".")[0]) in self.names[module]]
        if not names:
            return None
        if isinstance(node, ast.ImportFrom):
            return ast.ImportFrom(node.module, names, node.level)
        return ast.Import(names)


def _imports(tree: ast.Module, package: str) -> dict[str, Name]:
    """What the imports of a module bind, and what stands behind it."""
    bound: dict[str, Name] = {}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound |= _bound(node, package)
    return bound


def _read_text(path: Path | None) -> str:
    return "" if path is None else path.read_text(encoding="utf-8")


def _is_optional(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Name) and decorator.id in ("spec", "variant")


def _used(tree: ast.AST) -> set[str]:
    """Every name that is read anywhere, annotations included."""
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}


def _bound(node: ast.Import | ast.ImportFrom, package: str) -> dict[str, Name]:
    """What an import binds, and what stands behind it."""
    bound: dict[str, Name] = {}
    if isinstance(node, ast.Import):
        for alias in node.names:
            whole = alias.name if alias.asname else alias.name.split(".")[0]
            bound[alias.asname or whole] = (whole, "")
        return bound
    base = node.module or ""
    if node.level:
        parts = package.split(".")
        base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
    for alias in node.names:
        bound[alias.asname or alias.name] = (base, alias.name)
    return bound


def _binds(node: ast.stmt) -> tuple[str, ...]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return (node.name,)
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [n for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        return tuple(n.id for n in names if isinstance(n.ctx, ast.Store))
    return ()


def _has_effect(node: ast.stmt) -> bool:
    decorators = node.decorator_list if isinstance(node, _Definition) else []
    return any(_called(decorator) not in _PURE for decorator in decorators)


def _called(node: ast.expr) -> str:
    return ".".join(_dotted(node.func if isinstance(node, ast.Call) else node))


def _dotted(node: ast.expr) -> list[str]:
    """``[a, b, c]`` of ``a.b.c``; otherwise nothing."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (left := _dotted(node.value)):
        return [*left, node.attr]
    return []
