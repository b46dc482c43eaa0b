"""The built-in text: the documentation inside the running Python's own standard library.

It is there on every machine, so a model can be trained and scored without a download. On
CPython 3.11 it is 3.5 MB: all that the help topics, docstrings and comments hold.
"""

import ast
import importlib
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from segpt.errors import DataError
from segpt.values import Text

from .text import document_hash

VALIDATION = 0.07  # the share of documents held out: 200 to 260 kB

# A section opens a new document once the current one has this many characters.
MODULE, DEFINITION, LARGEST = 500, 2000, 8000

REMARK = 40  # characters of a paragraph so short that it may come again

_FOREIGN = {"site-packages", "dist-packages"}
_TESTS = {"test", "tests", "idle_test"}


class DocumentationSection(NamedTuple):
    """A docstring under its definition, or a block of comments."""

    line: int
    opens_after: int
    text: str
    definition: str = ""


def builtin(split: Literal["train", "validation"]) -> Text:
    """The built-in text; a document belongs to a split by its hash.

    Documents keep the order of the sources, so that neighbours are related, which is what
    learning at test time feeds on. The first reading takes a few seconds; the text is then kept
    in memory.

    Raises:
        DataError: on reading, if this Python comes without the sources of its library.
    """
    held_out = split == "validation"
    return Text(
        f"builtin/{split}", lambda: (d for d in _documents() if _is_held_out(d) == held_out)
    )


def _is_held_out(document: bytes) -> bool:
    return document_hash(document) < VALIDATION * 2**64


@cache
def _documents() -> tuple[bytes, ...]:
    library = Path(sysconfig.get_path("stdlib"))
    packed = _packed(_unseen(_all_sections(library)))
    documents = dict.fromkeys(text.encode(errors="replace") for text in packed)
    if not documents:
        raise DataError(
            f"{library}: no sources of the standard library, so there is no built-in text; "
            "give a text of your own"
        )
    return tuple(documents)


def _all_sections(library: Path) -> Iterator[DocumentationSection]:
    yield from _topics()
    for path in sorted(library.rglob("*.py")):
        folders = path.relative_to(library).parts[:-1]
        built_for_platform = any(folder.startswith("config-") for folder in folders)
        if not built_for_platform and not (_FOREIGN | _TESTS).intersection(folders):
            for order, section in enumerate(sections(path)):
                yield section if order else section._replace(opens_after=MODULE)


def _unseen(sections: Iterable[DocumentationSection]) -> Iterator[DocumentationSection]:
    """Licences and inherited docstrings once; a repetition across the splits would be a leak."""
    seen: set[str] = set()
    for section in sections:
        fresh = [p for p in section.text.split("\n\n") if len(p) < REMARK or p not in seen]
        seen.update(fresh)
        if any(fresh):
            yield section._replace(text="\n\n".join(fresh))


def _topics() -> Iterator[DocumentationSection]:
    """The language reference of ``help()``, by paragraph, since topics repeat each other."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions ship Python without it
        return
    for name in sorted(topics):
        for line, paragraph in enumerate(topics[name].strip().split("\n\n")):
            yield DocumentationSection(line, LARGEST if line else MODULE, paragraph)


def sections(path: Path) -> list[DocumentationSection]:
    """The docstrings and comment blocks of one module, in the order of the source."""
    try:
        with tokenize.open(path) as file, warnings.catch_warnings():
            source = file.read()
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # templates and deliberately broken files
        return []
    lines = source.splitlines()
    quoted: set[int] = set()
    docstrings: list[DocumentationSection] = []
    for node in _spread_out(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr):
            quoted.update(range(node.lineno + 1, (node.end_lineno or 0) + 1))
        elif isinstance(node, _Documented) and (text := ast.get_docstring(node)):
            docstrings.append(_under_definition(node, text, lines))
    return sorted([*docstrings, *_comments(lines, quoted)])


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _under_definition(node: _Documented, text: str, lines: list[str]) -> DocumentationSection:
    if isinstance(node, ast.Module):
        return DocumentationSection(1, MODULE, text)
    definition = "\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1])
    opens_after = LARGEST if node.col_offset else DEFINITION
    return DocumentationSection(node.lineno, opens_after, text, f"{definition}\n")


def _spread_out(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that take several lines: all that hold docstrings or hide comments, and few."""
    waiting = [tree]
    while waiting:
        yield (node := waiting.pop())
        waiting += (
            child
            for child in ast.iter_child_nodes(node)
            if getattr(child, "end_lineno", None) != getattr(child, "lineno", 0)
        )


def _comments(lines: list[str], quoted: set[int]) -> Iterator[DocumentationSection]:
    """Blocks of whole-line comments; what looks like one inside a string is not."""
    block: list[str] = []
    for number, line in enumerate([*lines, ""], 1):
        bare = line.strip()
        if bare.startswith("#") and number not in quoted:
            block.append(bare.lstrip("#").removeprefix(" "))
        elif block:
            nested = lines[number - 2].startswith((" ", "\t"))
            if text := "\n".join(block).strip("\n"):
                yield DocumentationSection(
                    number - len(block), LARGEST if nested else DEFINITION, text
                )
            block = []


def _packed(sections: Iterable[DocumentationSection]) -> Iterator[str]:
    document = ""
    for section in sections:
        opens_after = section.opens_after
        for part in _cut(section.definition + section.text):
            if document and len(document) >= min(opens_after, LARGEST - len(part)):
                yield document
                document = ""
            document += part + "\n\n"
            opens_after = LARGEST
    if document:
        yield document


def _cut(text: str) -> Iterator[str]:
    """``text`` in parts of at most ``LARGEST`` characters, as far as its paragraphs allow."""
    while len(text) > LARGEST and (end := text.rfind("\n\n", 0, LARGEST)) > 0:
        yield text[:end]
        text = text[end + 2 :]
    yield text
