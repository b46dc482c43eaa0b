"""The source of a model by itself: what the core says that this model does, and no more.

Two modules come of the core's own text: the specs that occur in the model, and the parts that they
describe over the references of their operations. Left out is what only training and scoring here
need: windows that share tokens, products of other kinds, back ends, visits that join later.
"""

import ast
import dataclasses
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from segpt.config.model import ModelSpec

from . import rules
from .rewrite import Rules, rewrite, shaken

ROOT = Path(__file__).parents[2]
PLACE = Path(__file__).parent

_FIELD = re.compile(r"dataclasses\.field\(\s*default=(.+?),\s*metadata=ADDED,?\s*\)", re.DOTALL)


class Sources(NamedTuple):
    """What ``configuration_segpt.py`` and ``modeling_segpt.py`` hold."""

    configuration: str
    modeling: str


def sources(spec: ModelSpec) -> Sources:
    """The two modules of a model, whose visits have all joined."""
    alive = set(kinds(spec))
    dead = {name for names in _specs().values() for name in names} - alive
    modeling = _modeling(spec, dead)
    used = {n.id for n in ast.walk(ast.parse(modeling)) if isinstance(n, ast.Name)}
    used -= rules.BOUND
    used |= {n.attr for n in ast.walk(ast.parse(modeling)) if isinstance(n, ast.Attribute)}
    specs = {_spec_name(name) for name in alive}
    configuration = _configuration(dead, used | specs)
    return Sources(configuration, modeling.replace(_IMPORTED, _imported(configuration, used)))


def kinds(value: object) -> Iterator[str]:
    """The names of the classes of all specs within a value."""
    if dataclasses.is_dataclass(value):
        yield type(value).__name__
        for field in dataclasses.fields(value):
            yield from kinds(getattr(value, field.name))
    elif isinstance(value, tuple):
        for inner in value:
            yield from kinds(inner)


def _spec_name(name: str) -> str:
    return name if name.endswith("Spec") else f"{name}Spec"


@cache
def _specs() -> Mapping[str, tuple[str, ...]]:
    """The classes of specs that each module of a model defines."""
    defined = {}
    for module in rules.CONFIG:
        tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        defined[module] = tuple(node.name for node in classes if node.decorator_list)
    return defined


def _configuration(dead: set[str], used: set[str]) -> str:
    own = {name for names in _specs().values() for name in names}
    names = {name: _spec_name(name) for name in own} | {"spec": "dataclass(**_FROZEN)"}
    parts = []
    for module in rules.CONFIG:
        changed = Rules(
            facts=rules.FACTS_CONFIG,
            gone=rules.GONE_CONFIG,
            cut={*rules.CUT_CONFIG, *dead},
            names=names,
            dead=lambda node: isinstance(node, ast.Name) and node.id in dead,
        )
        parts.append(rewrite((ROOT / module).read_text(encoding="utf-8"), changed))
    body, tail = _joined(parts, (PLACE / "configuration.txt").read_text(encoding="utf-8"))
    body = _FIELD.sub(r"\1", body.replace("(Weightless)", ""))
    return _finished(body, tail, used)


def _modeling(spec: ModelSpec, dead: set[str]) -> str:
    own = {name for names in _specs().values() for name in names}
    parts = []
    for module, about in rules.MODEL.items():
        namespaces = dict.fromkeys(about.specs, lambda n: _spec_name(n) if n in own else n)
        namespaces |= dict.fromkeys(about.modules, str)

        def is_dead(node: ast.expr, specs: tuple[str, ...] = about.specs) -> bool:
            match node:
                case ast.Attribute(value=ast.Name(id=name), attr=attr):
                    return name in specs and attr in dead
                case _:
                    pass
            return False

        texts, gone, facts, cut = (
            dict(about.texts),
            set(about.gone),
            dict(about.facts),
            {*about.cut},
        )
        for kind in sorted(dead & rules.ABSENT.keys()):
            absent = rules.ABSENT[kind].get(module, rules.ModuleRules())
            texts, facts = {**texts, **absent.texts}, {**facts, **absent.facts}
            gone, cut = gone | set(absent.gone), cut | set(absent.cut)
        if not spec.value_tables:
            texts |= rules.NO_VALUE_TABLES
            gone |= {"tables"} if module.endswith("build.py") else set()
        changed = Rules(
            facts={**rules.FACTS, **facts},
            texts=texts,
            passed=rules.PASSED,
            gone=gone,
            cut=cut,
            names=about.names,
            namespaces=namespaces,
            dead=is_dead,
        )
        parts.append(rewrite((ROOT / module).read_text(encoding="utf-8"), changed))
    text, tail = _joined(parts, (PLACE / "modeling.txt").read_text(encoding="utf-8"))
    for before, after in rules.WORDS.items():
        text = text.replace(before, after)
    return _finished(text, tail, {_IMPORTED, *map(_spec_name, own)})


_IMPORTED = "_SPECS_"


def _imported(configuration: str, used: set[str]) -> str:
    tree = ast.parse(configuration)
    defined = {n.name for n in tree.body if isinstance(n, ast.ClassDef)} | {*rules.FUNCTIONS}
    defined |= {
        t.id
        for n in tree.body
        if isinstance(n, ast.Assign)
        for t in n.targets
        if isinstance(t, ast.Name)
    }
    return "(\n    " + ",\n    ".join(sorted({*(defined & used), "SegptConfig"})) + ",\n)"


def _joined(parts: list[str], template: str) -> tuple[str, str]:
    """Modules as one, their imports together after those of a template; and its end."""
    plain, grouped, bodies = set[str](), dict[str, set[str]](), list[str]()
    head, _, tail = template.partition("# BODY\n")
    for part in (head, *parts):
        tree = ast.parse(part)
        lines = part.splitlines(keepends=True)
        for node in tree.body:
            if isinstance(node, ast.Import):
                plain.add(ast.unparse(node))
            elif isinstance(node, ast.ImportFrom) and not _is_own(node):
                assert node.module is not None
                grouped.setdefault(node.module, set()).update(map(ast.unparse, node.names))
        for node in reversed(tree.body):
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            if isinstance(node, ast.Import | ast.ImportFrom) or is_text or is_typing:
                assert node.end_lineno is not None
                lines[node.lineno - 1 : node.end_lineno] = []
        bodies.append("".join(lines).strip("\n"))
    grouped.pop("__future__", None)
    imports = [*sorted(plain)]
    imports += [
        f"from {m} import {', '.join(sorted(names))}" for m, names in sorted(grouped.items())
    ]
    own = [line for line in imports if "configuration_segpt" in line]
    imports = [line for line in imports if line not in own]
    docstring = ast.get_docstring(ast.parse(head))
    top = f'"""{docstring}\n"""\n\nfrom __future__ import annotations\n\n'
    top += "\n".join([*imports, "", *(line.replace("from ", "from .") for line in own)])
    return "\n\n\n".join([top + "\n" + bodies[0], *filter(None, bodies[1:])]), tail


def _finished(body: str, tail: str, roots: set[str]) -> str:
    """What the end of a module, and ``roots``, need of its body; then that end."""
    nodes = list(ast.walk(ast.parse(tail)))
    roots = roots | {n.id for n in nodes if isinstance(n, ast.Name)}
    roots |= {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    return _tidy(shaken(body, roots) + "\n\n" + tail)


def _is_own(node: ast.ImportFrom) -> bool:
    return (node.level > 0 and node.module != "configuration_segpt") or (
        node.module or ""
    ).startswith("segpt")


def _tidy(text: str) -> str:
    """``text`` with two lines between definitions, and no more than one elsewhere."""
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\n{3,}(?=[ #])", "\n\n", text)
    text = re.sub(r"\n{3,}", "\n\n\n", text)
    return re.sub(r"\n+(?=(?:@.*\n)*(?:class|def) )", "\n\n\n", text).rstrip("\n") + "\n"
