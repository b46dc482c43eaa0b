"""YAML of strangers as plain values: no key twice, and nothing that is larger than it looks.

Aliases let a few lines spell billions of values, or a list that holds itself; a number in
hexadecimal can have more digits than Python prints.
"""

import re
from typing import Any

import yaml

MOST = 100_000  # values, each counted as often as it is named
BITS = 4096  # of a whole number

# PyYAML lets the errors of its own constructors through, e.g. for "2001-99-99" or "!!bool x".
NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)
_MERGE = "tag:yaml.org,2002:merge"
_SURROGATE = re.compile("[\ud800-\udfff]")
_INTEGER = "tag:yaml.org,2002:int"
_STRING = "tag:yaml.org,2002:str"
_CLOCK = re.compile(r"[-+]?[\d_]+(?::[\d_.]+)+")  # YAML 1.1 takes 1:30 for 90


class _Loader(yaml.SafeLoader):
    """Plain values only, and no key twice in a table: YAML readers would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        met: set[tuple[str, Any]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if (key.tag, key.value) in met:
                    problem = f"the key {key.value!r} stands twice in one table"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                met.add((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """The type of a value; ``1:3`` is a slice of layers and not a time."""
        if kind is yaml.ScalarNode and implicit[0] and _CLOCK.fullmatch(value):
            return _STRING
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number: int = super().construct_yaml_int(node)
        if number.bit_length() > BITS:
            problem = "a whole number has too many digits"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return number


_Loader.add_constructor(_INTEGER, _Loader.construct_yaml_int)


def read_yaml(text: str | bytes) -> Any:
    """The one value of a YAML document.

    Raises:
        One of NOT_YAML: if it is no YAML, or aliases make more than ``MOST`` values of it.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_size(root: yaml.Node) -> None:
    """Count values as often as aliases name them, without going twice through any."""
    sizes: dict[int, int] = {}
    open_: set[int] = set()

    def measure(node: yaml.Node) -> int:
        if (known := sizes.get(id(node))) is not None:
            return known
        if id(node) in open_:
            problem = "an alias names what it is part of"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        open_.add(id(node))
        if isinstance(node, yaml.ScalarNode) and _SURROGATE.search(node.value):
            problem = "half of a surrogate pair is no text"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        size = 1 + sum(map(measure, _parts(node)))
        if size > MOST:
            problem = f"aliases make more than {MOST:,} values of it"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        sizes[id(node)] = size
        return size

    measure(root)


def _parts(node: yaml.Node) -> list[yaml.Node]:
    match node:
        case yaml.MappingNode():
            return [part for pair in node.value for part in pair]
        case yaml.SequenceNode():
            return list(node.value)
        case _:
            return []
