"""Source code without the branches for kinds of specs that never occur."""

import ast
from collections.abc import Callable, Iterator

Test = Callable[[ast.expr], bool]


class Prune(ast.NodeTransformer):
    """Takes out cases, unions and ``isinstance`` tests of classes that no value has.

    ``dead`` tells of an expression whether it names such a class.
    """

    def __init__(self, dead: Test) -> None:
        self.dead = dead

    def visit_Match(self, node: ast.Match) -> ast.AST:
        cases = []
        for case in node.cases:
            if (pattern := self._pattern(case.pattern)) is not None:
                case.pattern = pattern
                cases.append(case)
        node.cases = cases
        return self.generic_visit(node) if cases else ast.Expr(node.subject)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, ast.BitOr):
            return node
        if self.dead(node.left):
            return node.right
        return node.left if self.dead(node.right) else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if is_test(node) and self.dead(node.args[1]):
            return ast.Constant(False)
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        known = isinstance(node.op, ast.Not) and _truth(node.operand) is not None
        return ast.Constant(not _truth(node.operand)) if known else node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        decisive = isinstance(node.op, ast.Or)
        kept: list[ast.expr] = []
        for value in node.values:
            if _truth(value) is decisive:
                return ast.Constant(decisive) if not kept else node
            if _truth(value) is None:
                kept.append(value)
        if not kept:
            return ast.Constant(not decisive)
        node.values = kept
        return node if len(kept) > 1 else kept[0]

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        truth = _truth(node.test)
        return node if truth is None else node.body if truth else node.orelse

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        truth = _truth(node.test)
        if truth is None:
            return node
        return (node.body if truth else node.orelse) or [ast.Pass()]

    def _pattern(self, node: ast.pattern) -> ast.pattern | None:
        """The pattern with what can match, or None if nothing can."""
        match node:
            case ast.MatchClass():
                inner = [*node.patterns, *node.kwd_patterns]
                alive = not self.dead(node.cls) and all(self._pattern(p) for p in inner)
                return node if alive else None
            case ast.MatchOr():
                node.patterns = [p for p in node.patterns if self._pattern(p) is not None]
                if len(node.patterns) > 1:
                    return node
                return node.patterns[0] if node.patterns else None
            case ast.MatchAs(pattern=ast.pattern() as inner):
                node.pattern = self._pattern(inner)
                return None if node.pattern is None else node
            case ast.MatchSequence():
                return node if all(self._pattern(p) for p in node.patterns) else None
            case _:
                return node


def made(node: ast.AST) -> Iterator[ast.expr]:
    """The names that are read other than in patterns, annotations, unions and tests of classes."""
    match node:
        case ast.Name() | ast.Attribute():
            yield node
        case ast.MatchClass():
            for pattern in (*node.patterns, *node.kwd_patterns):
                yield from made(pattern)
            return
        case ast.AnnAssign():
            if node.value is not None:
                yield from made(node.value)
            return
        case ast.BinOp(op=ast.BitOr()):
            for side in (node.left, node.right):
                if not isinstance(side, ast.Name | ast.Attribute):
                    yield from made(side)
            return
        case ast.Call() if is_test(node):
            yield from made(node.args[0])
            return
    for child in ast.iter_child_nodes(node):
        yield from made(child)


def is_test(node: ast.Call) -> bool:
    """Whether a call is ``isinstance`` of two arguments."""
    return isinstance(node.func, ast.Name) and node.func.id == "isinstance" and len(node.args) == 2


def _truth(node: ast.expr) -> bool | None:
    known = isinstance(node, ast.Constant) and isinstance(node.value, bool)
    return bool(node.value) if known and isinstance(node, ast.Constant) else None
