"""The packages that a script imports, also one that carries its source in compressed form."""

import ast
import base64
import binascii
import bz2
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Collection, Iterator

from segpt.errors import SegptError

from .bundle import LARGEST, unpack

SMALLEST = 500  # characters of a constant that can be source

# What the contest has installed, and the distributions that are not called as their module is.
GIVEN = frozenset(
    ("numpy", "tqdm", "torch", "huggingface-hub", "kernels", "setuptools", "typing-extensions")
) | {"datasets", "tiktoken", "sentencepiece", "triton"}
CALLED = {
    "yaml": "pyyaml",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "cv2": "opencv-python",
    "flash_attn_interface": "flash-attn",
    "fla": "flash-linear-attention",
    "brotlicffi": "brotlicffi",
    "python_minifier": "python-minifier",
}


def absent(script: str, requirements: str, local: Collection[str] = ()) -> list[str]:
    """The packages that ``script`` must have and ``requirements`` does not list.

    What is imported only where its absence is caught is not asked for, nor are the packages that
    the contest installs, nor the modules of ``local``.
    """
    listed = {
        _plain(match[0])
        for line in requirements.splitlines()
        if (match := re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line.strip()))
    }
    carried = carries(script)
    needed = {name for source in carried.values() for name in imported(source)}
    own = {name.split(".")[0] for name in carried}
    foreign = needed - set(sys.stdlib_module_names) - set(local) - own
    names = {_plain(CALLED.get(name, name)) for name in foreign}
    return sorted(names - listed - GIVEN)


def imported(source: str) -> Iterator[str]:
    """The top-level names that a source imports, but where an ImportError is caught."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.Try) and node.handlers:
            waiting += [*node.orelse, *node.finalbody]
            continue
        waiting += ast.iter_child_nodes(node)


def carries(script: str) -> dict[str, str]:
    """A script and the sources that it carries, by name: long constants, decoded and decompressed.

    Nothing is run. A carried JSON object gives each of its texts.
    """
    try:
        return unpack(script.encode())
    except SegptError:  # another kind of script
        sources = {"__main__": script}
    try:
        tree = ast.parse(script)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return sources
    for number, node in enumerate(ast.walk(tree)):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str | bytes):
            continue
        value = node.value if isinstance(node.value, bytes) else _octets(node.value)
        if len(value) < SMALLEST or (text := _unpacked(value)) is None:
            continue
        try:
            table = json.loads(text)
        except (ValueError, RecursionError):
            sources[f"__main__.{number}"] = text
        else:
            if isinstance(table, dict):
                sources |= {str(k): v for k, v in table.items() if isinstance(v, str)}
    return sources


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _unpacked(value: bytes) -> str | None:
    for decode in (base64.b85decode, base64.b64decode, base64.a85decode):
        try:
            data = decode(value)
        except (ValueError, binascii.Error):
            continue
        for decompress in _DECOMPRESS:
            try:
                return decompress(data).decode()
            except (lzma.LZMAError, zlib.error, OSError, UnicodeDecodeError, EOFError, ValueError):
                continue
    return None


def _raw(data: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": LARGEST}]
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters).decompress(data, LARGEST)


_DECOMPRESS: tuple[Callable[[bytes], bytes], ...] = (
    lambda data: lzma.LZMADecompressor().decompress(data, LARGEST),
    lambda data: bz2.BZ2Decompressor().decompress(data, LARGEST),
    lambda data: zlib.decompressobj(47).decompress(data, LARGEST),
    lambda data: zlib.decompressobj(-15).decompress(data, LARGEST),
    _raw,
)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
