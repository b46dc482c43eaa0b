"""Source text rewritten by rules, with its comments, docstrings and layout as they are.

A syntax tree says what stands where; every change replaces one stretch of the text. So what no
rule touches stays as somebody wrote it.
"""

import ast
import re
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

Edit = tuple[int, int, str]  # from one byte to another, and what comes there
_Definition = ast.FunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Rules:
    """What changes.

    Attributes:
        facts: tests whose answer is known, as ``ast.unparse`` writes them.
        texts: statements and expressions, and what comes instead; nothing removes a statement.
        passed: functions that give back what they are given.
        gone: parameters, fields and arguments that are left out.
        cut: functions, classes and methods (``Class.method``) that are left out.
        names: names, and what they are called instead.
        namespaces: what an attribute of an imported module is called.
        dead: whether an expression names a class that no value has.
    """

    facts: Mapping[str, bool] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    passed: Collection[str] = ()
    gone: Collection[str] = ()
    cut: Collection[str] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    namespaces: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    dead: Callable[[ast.expr], bool] = lambda _: False


class SourceText:
    """A source, and where its nodes are."""

    def __init__(self, source: str) -> None:
        self.data = source.encode()
        self.tree = ast.parse(source)
        self.starts = [0]
        for line in self.data.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def span(self, node: ast.AST) -> tuple[int, int]:
        """The bytes of a node."""
        first, last = node.lineno, node.end_lineno  # type: ignore[attr-defined]
        begin = self.starts[first - 1] + node.col_offset  # type: ignore[attr-defined]
        return begin, self.starts[last - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def block(self, node: ast.stmt) -> tuple[int, int]:
        """The bytes of the lines of a statement, with decorators and comments right above it."""
        first = node.lineno
        if isinstance(node, _Definition) and node.decorator_list:
            first = node.decorator_list[0].lineno
        while first > 1 and self.line(first - 1).strip().startswith("#"):
            first -= 1
        assert node.end_lineno is not None
        return self.starts[first - 1], self.starts[node.end_lineno]

    def line(self, number: int) -> str:
        """One line, counted from 1."""
        return self.data[self.starts[number - 1] : self.starts[number]].decode()

    def apply(self, edits: Collection[Edit], begin: int = 0, end: int | None = None) -> str:
        """The text from ``begin`` to ``end`` with these edits; of two at one place the outer."""
        end = len(self.data) if end is None else end
        parts, place = [], begin
        for first, last, text in sorted(edits, key=lambda e: (e[0], -e[1])):
            if first >= place and last <= end:
                parts += [self.data[place:first].decode(), text]
                place = last
        return "".join([*parts, self.data[place:end].decode()])


def rewrite(source: str, rules: Rules) -> str:
    """``source`` as ``rules`` change it."""
    text = SourceText(source)
    return text.apply(list(_Rewriter(text, rules).edits(text.tree)))


class _Rewriter:
    def __init__(self, text: SourceText, rules: Rules) -> None:
        self.text, self.rules = text, rules

    def edits(self, node: ast.AST, owner: str = "") -> Iterator[Edit]:
        """What changes within a node; ``owner`` is the class around it, with a dot."""
        if isinstance(node, ast.expr):
            if (instead := self.expression(node)) is not None:
                yield (*self.text.span(node), instead)
                return
        elif isinstance(node, ast.stmt) and (changed := self.statement(node, owner)) is not None:
            yield from changed
            return
        elif isinstance(node, ast.match_case) and self.is_dead_case(node):
            last = node.body[-1].end_lineno
            assert last is not None
            yield self.text.starts[node.pattern.lineno - 1], self.text.starts[last], ""
            return
        if isinstance(node, ast.ClassDef):
            owner = f"{node.name}."
        if isinstance(node, _Definition):
            yield from self.renamed(node)
        if isinstance(node, ast.arguments | ast.Call):
            yield from self.without_gone(node)
        for child in ast.iter_child_nodes(node):
            yield from self.edits(child, owner)

    def shown(self, node: ast.AST) -> str:
        """The text of a node, changed."""
        begin, end = self.text.span(node)
        return self.text.apply(list(self.edits(node)), begin, end)

    def expression(self, node: ast.expr) -> str | None:
        rules, written = self.rules, ast.unparse(node)
        if written in rules.texts:
            return rules.texts[written]
        if (truth := self.truth(node)) is not None and not isinstance(node, ast.Constant):
            return str(truth)
        match node:
            case ast.Name(id=name) if name in rules.names:
                return rules.names[name]
            case ast.Attribute(value=ast.Name(id=name), attr=attr) if name in rules.namespaces:
                return rules.namespaces[name](attr)
            case ast.Call(func=func, args=[only]) if ast.unparse(func) in rules.passed:
                return self.shown(only)
            case ast.IfExp() if (truth := self.truth(node.test)) is not None:
                return self.shown(node.body if truth else node.orelse)
            case ast.BinOp(op=ast.BitOr()) if self._all_dead(node.left):
                return self.shown(node.right)
            case ast.BinOp(op=ast.BitOr()) if self._all_dead(node.right):
                return self.shown(node.left)
            case ast.BoolOp():
                kept = [value for value in node.values if self.truth(value) is None]
                word = " and " if isinstance(node.op, ast.And) else " or "
                if len(kept) < len(node.values):
                    return word.join(map(self.shown, kept))
            case _:
                pass
        return None

    def truth(self, node: ast.expr) -> bool | None:
        """What a test says, if that is known."""
        written = ast.unparse(node)
        if written in self.rules.facts:
            return self.rules.facts[written]
        match node:
            case ast.Constant(value=bool() as value):
                return value
            case ast.UnaryOp(op=ast.Not()):
                inner = self.truth(node.operand)
                return None if inner is None else not inner
            case ast.BoolOp():
                decisive = isinstance(node.op, ast.Or)
                values = [self.truth(value) for value in node.values]
                if decisive in values:
                    return decisive
                return None if None in values else not decisive
            case ast.Call(func=ast.Name(id="isinstance"), args=[_, kind]):
                return False if self._all_dead(kind) else None
            case _:
                pass
        return None

    def _all_dead(self, kind: ast.expr) -> bool:
        if isinstance(kind, ast.BinOp):
            return self._all_dead(kind.left) and self._all_dead(kind.right)
        return self.rules.dead(kind)

    def statement(self, node: ast.stmt, owner: str) -> list[Edit] | None:
        rules, written = self.rules, ast.unparse(node)
        block = self.text.block(node)
        if written in rules.texts:
            instead = textwrap.indent(rules.texts[written] + "\n", " " * node.col_offset)
            return [(*block, instead if rules.texts[written] else "")]
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return self.without_attributes(node)
        if isinstance(node, _Definition) and {node.name, owner + node.name} & set(rules.cut):
            return [(*block, "")]
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id in (*rules.gone, *rules.cut):
                return [(*block, "")]
            if isinstance(node.value, ast.BinOp) and self._all_dead(node.value):
                return [(*self.text.span(node.value), "Any")]  # a slot that nothing fills
            if node.value is not None and self.shown(node.value) == ast.unparse(target):
                return [(*block, "")]
        if isinstance(node, ast.If) and (truth := self.truth(node.test)) is not None:
            return self.known(node, truth=truth)
        return None

    def known(self, node: ast.If, *, truth: bool) -> list[Edit]:
        """What is left of a statement whose test is known."""
        begin, end = self.text.block(node)
        if self.text.data[self.text.span(node)[0] :].startswith(b"elif"):
            if truth or not node.orelse:
                raise ValueError(f"cannot leave out: {ast.unparse(node.test)}")
            number = node.orelse[0].lineno
            while not self.text.line(number).lstrip().startswith(("else:", "elif ")):
                number -= 1
            further = (edit for inner in node.orelse for edit in self.edits(inner))
            return [(begin, self.text.starts[number - 1], ""), *further]
        kept = node.body if truth else node.orelse
        while len(kept) == 1 and isinstance(inner := kept[0], ast.If):
            if not self.text.data[self.text.span(inner)[0] :].startswith(b"elif"):
                break
            inner_truth = self.truth(inner.test)
            if inner_truth is None:
                raise ValueError(f"cannot leave out what comes before: {ast.unparse(inner.test)}")
            kept = inner.body if inner_truth else inner.orelse
        return [(begin, end, self.body(kept, node.col_offset))]

    def without_attributes(self, node: ast.Expr) -> list[Edit]:
        """A docstring without the attributes and arguments that are left out."""
        begin, end = self.text.span(node)
        written = self.text.data[begin:end].decode()
        for name in self.rules.gone:
            pattern = rf"^( +){name}: .*\n(?:\1 +.*\n)*"
            written = re.sub(pattern, "", written, flags=re.MULTILINE)
        return [(begin, end, written)]

    def body(self, statements: list[ast.stmt], column: int) -> str:
        """Statements as they stand one level further out."""
        if not statements:
            return ""
        begin, end = self.text.block(statements[0])[0], self.text.block(statements[-1])[1]
        edits = [edit for statement in statements for edit in self.edits(statement)]
        inner = textwrap.dedent(self.text.apply(edits, begin, end))
        return textwrap.indent(inner, " " * column)

    def is_dead_case(self, node: ast.match_case) -> bool:
        pattern = node.pattern
        return isinstance(pattern, ast.MatchClass) and self.rules.dead(pattern.cls)

    def renamed(self, node: _Definition) -> Iterator[Edit]:
        if node.name in self.rules.names:
            word = "class " if isinstance(node, ast.ClassDef) else "def "
            begin = self.text.starts[node.lineno - 1] + node.col_offset + len(word)
            yield begin, begin + len(node.name.encode()), self.rules.names[node.name]

    def without_gone(self, node: ast.arguments | ast.Call) -> Iterator[Edit]:
        """Parameters and arguments that are left out, with the commas before or after them."""
        gone = self.rules.gone
        items: list[ast.AST] = []
        if isinstance(node, ast.arguments):
            items = [*node.args, *node.kwonlyargs]
            names = [item.arg for item in items if isinstance(item, ast.arg)]
        else:
            items = [*node.args, *node.keywords]
            names = [_argument(item) for item in items]
        defaults: list[ast.expr | None] = []
        if isinstance(node, ast.arguments):
            defaults = [None] * (len(node.args) - len(node.defaults)) + [*node.defaults]
            defaults += node.kw_defaults
        for i, name in enumerate(names):
            if name in gone:
                begin, end = self.text.span(items[i])
                if defaults and (default := defaults[i]) is not None:
                    end = self.text.span(default)[1]
                yield self._with_comma(begin, end)

    def _with_comma(self, begin: int, end: int) -> Edit:
        data = self.text.data
        after = end
        while data[after : after + 1].isspace():
            after += 1
        if data[after : after + 1] == b",":
            after += 1
            while data[after : after + 1].isspace():
                after += 1
            return begin, after, ""
        before = begin
        while data[before - 1 : before].isspace():
            before -= 1
        return (before - 1 if data[before - 1 : before] == b"," else begin), end, ""


def _argument(node: ast.AST) -> str:
    if isinstance(node, ast.keyword):
        return node.arg or ""
    return node.id if isinstance(node, ast.Name) else ""


def shaken(source: str, roots: Collection[str]) -> str:
    """``source`` without the definitions, methods and imports that nothing in it names.

    Args:
        source: a module.
        roots: names that stay.
    """
    while (smaller := _shaken_once(source, roots)) != source:
        source = smaller
    return source


def _shaken_once(source: str, roots: Collection[str]) -> str:
    text, edits = SourceText(source), list[Edit]()
    named = set(roots)
    for statement in text.tree.body:
        own = {statement.name} if isinstance(statement, _Definition) else set()
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                named |= {node.id} - own
            elif isinstance(node, ast.Attribute):
                named.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                named |= {node.value} - own  # an annotation in quotes
    for statement in text.tree.body:
        edits += _unused(text, statement, named)
    return text.apply(edits)


def _unused(text: SourceText, statement: ast.stmt, named: Collection[str]) -> Iterator[Edit]:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        kept = [a for a in statement.names if (a.asname or a.name.partition(".")[0]) in named]
        if statement.__dict__.get("module") != "__future__" and len(kept) < len(statement.names):
            statement.names = kept
            yield (*text.block(statement), ast.unparse(statement) + "\n" if kept else "")
    elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        if statement.targets[0].id not in named:
            yield (*text.block(statement), "")
    elif isinstance(statement, _Definition) and statement.name not in named:
        yield (*text.block(statement), "")
    elif isinstance(statement, ast.ClassDef):
        for inner in statement.body:
            if isinstance(inner, ast.FunctionDef) and not (
                inner.name in named or inner.name.startswith("__") or inner.name == "forward"
            ):
                yield (*text.block(inner), "")
