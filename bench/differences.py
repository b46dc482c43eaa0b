"""What two trees have made of the same commands: the first difference, or none.

JSON is compared as it is written, number by number and in the order of its keys, so that the last
bit of a float counts; tensors by the SHA-256 of their bytes; pages and other text line by line;
anything else by its bytes. What passes is masked by key, wherever the key stands:

* ``seconds``, ``step_seconds``, ``eval_time_s``: how long something took
* ``loading_seconds``, ``first_token_seconds``: the same of a sample
* ``compression``, ``decompression``: the same of both ways of a proof
* ``tokens_per_second``, ``examples_per_second``: the same of training and of tasks
* ``commit``: of the tree
* ``elapsed``: seconds of training, a tensor in the state of a checkpoint

A ``header.json`` names its files and itself by digests, which cover what is masked: ``digest`` and
``sha256`` are masked there, for the files are compared themselves. A contest's folder holds a
script whose size depends on the names of modules, and that of a run depends on the digits of its
seconds: under the commands that tell such sizes, ``bytes``, ``code``, ``bytes_total`` and
``bytes_code`` are masked, and in text numbers of bytes.

In text, which has no keys, times and rates (``3.9 s``, ``12ms``, ``74 a second``) and names of
commits are masked, and in tables of pages the cells with one decimal, which are seconds. The
directories of the side and of its tree become ``PLACE`` and ``TREE``, since they lie elsewhere, and
lines of progress are left out, since they come as time passes.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.numpy import load

TIMES = frozenset(
    {
        "seconds",
        "step_seconds",
        "loading_seconds",
        "first_token_seconds",
        "eval_time_s",
        "compression",
        "decompression",
    }
)
RATES = frozenset({"tokens_per_second", "examples_per_second"})
MASKED = TIMES | RATES | {"commit"}
MASKED_TENSORS = frozenset({"elapsed"})
HEADER = "header.json"
SIZES = frozenset({"bytes", "code", "bytes_total", "bytes_code"})
MASKED_IN_HEADERS = frozenset({"digest", "sha256"})
MASK = "masked"
MISSING = "missing"
LONGEST, BEFORE = 60, 24  # characters of a value that is shown, and of those before it parts
_ATOM = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*')
_TIMES = "|".join(
    (
        r"\b\d[\d.,]* ?m?s\b",
        r"\b\d[\d.,]* a second\b",
        r'(?<=<td class="n">)\d[\d,]*\.\d(?=</td>)',
        r"\b[0-9a-f]{40}\b",
    )
)
_PROGRESS = re.compile(r"[^:]+:(?: +\d+%)?  \S.*")


class Difference(NamedTuple):
    """Where two outputs part, and what stands there on either side."""

    place: str
    base: str
    now: str


class Masks(NamedTuple):
    """What does not count: values of JSON under these keys, and such words of a text."""

    keys: frozenset[str]
    words: re.Pattern[str]


USUAL = Masks(MASKED, re.compile(_TIMES))
SIZED = Masks(MASKED | SIZES, re.compile(rf"{_TIMES}|\b\d[\d,]*(?= bytes\b)"))


class Number(str):
    """A number as it is written, so that 1.0 is not 1."""

    __slots__ = ()


def parsed(text: str) -> Any:
    """JSON in which every number is a :class:`Number`.

    Raises:
        ValueError: if it is no JSON.
    """
    return json.loads(text, parse_float=Number, parse_int=Number, parse_constant=Number)


def masked(value: Any, keys: frozenset[str] = MASKED) -> Any:
    """A value of JSON without what passes; what is null or a collection under a key stays."""
    match value:
        case dict():
            return {
                key: MASK if key in keys and _is_leaf(inner) else masked(inner, keys)
                for key, inner in value.items()
            }
        case list():
            return [masked(inner, keys) for inner in value]
        case _:
            return value


def _is_leaf(value: Any) -> bool:
    return value is not None and not isinstance(value, dict | list)


def outline(value: Any) -> Any:
    """The keys of a value of JSON and how deep they lie, whatever stands under them."""
    match value:
        case dict():
            return {key: outline(inner) for key, inner in value.items()}
        case list():
            return [outline(inner) for inner in value]
        case _:
            return None


def of_values(base: Any, now: Any, place: str = "$") -> Difference | None:
    """The first difference of two values of JSON."""
    if isinstance(base, dict) and isinstance(now, dict):
        if list(base) != list(now):
            return _of_keys(list(base), list(now), place)
        inner = (of_values(base[key], now[key], f"{place}.{key}") for key in base)
        return next(filter(None, inner), None)
    if isinstance(base, list) and isinstance(now, list):
        if len(base) != len(now):
            return Difference(f"{place}, how many", str(len(base)), str(len(now)))
        pairs = enumerate(zip(base, now, strict=True))
        inner = (of_values(old, new, f"{place}[{i}]") for i, (old, new) in pairs)
        return next(filter(None, inner), None)
    if type(base) is type(now) and base == now:
        return None
    return Difference(place, *_parted(_plain(base), _plain(now)))


def _of_keys(base: list[str], now: list[str], place: str) -> Difference:
    for key in [*base, *now]:
        if key not in base or key not in now:
            sides = (MISSING if key not in side else "there" for side in (base, now))
            return Difference(f"{place}.{key}", *sides)
    return Difference(f"{place}, order of keys", *_parted(_plain(base), _plain(now)))


def of_texts(base: str, now: str, masks: Masks = USUAL) -> Difference | None:
    """The first difference of two texts: by value if both are JSON, else by line."""
    try:
        values = [masked(parsed(text), masks.keys) for text in (base, now)]
    except ValueError:
        return of_lines(base, now, masks)
    first = of_values(*values)
    if first is None and _layout(base) != _layout(now):
        return Difference("the layout of the JSON", *_parted(base, now))
    return first


def _layout(text: str) -> str:
    """What is left of JSON without its strings and numbers."""
    return _ATOM.sub("", text)


def of_lines(base: str, now: str, masks: Masks = USUAL) -> Difference | None:
    """The first line in which two texts differ, where each line may be JSON."""
    pairs = itertools.zip_longest(base.split("\n"), now.split("\n"))
    for number, (old, new) in enumerate(pairs, 1):
        if old is None or new is None:
            return Difference(
                f"line {number}", *(_cut(MISSING if line is None else line) for line in (old, new))
            )
        try:
            values = [masked(parsed(line), masks.keys) for line in (old, new)]
        except ValueError:
            values = [masks.words.sub(MASK, line) for line in (old, new)]
        if (first := of_values(values[0], values[1], f"line {number}")) is not None:
            return first
    return None


def tensors(data: bytes) -> dict[str, str]:
    """The tensors of a safetensors file, each as its kind, its shape and its SHA-256."""
    return {
        name: MASK
        if name in MASKED_TENSORS
        else f"{value.dtype} {list(value.shape)} {hashlib.sha256(value.tobytes()).hexdigest()}"
        for name, value in sorted(load(data).items())
    }


def of_files(
    base: Path, now: Path, names: Mapping[Path, str], masks: Masks = USUAL
) -> Difference | None:
    """The first difference of two files of the same name.

    Args:
        base: the file of one side.
        now: that of the other.
        names: what a directory is called instead, in text.
        masks: what does not count.
    """
    absent = [MISSING if not path.is_file() else "there" for path in (base, now)]
    if MISSING in absent:
        return None if absent[0] == absent[1] else Difference("the file", *absent)
    old, new = base.read_bytes(), now.read_bytes()
    if old == new:
        return None
    if base.suffix == ".safetensors":
        return of_values(tensors(old), tensors(new), "tensors")
    try:
        texts = [neutral(data.decode(), names) for data in (old, new)]
    except UnicodeDecodeError:
        return Difference("SHA-256", *(hashlib.sha256(data).hexdigest() for data in (old, new)))
    if base.name == HEADER:
        masks = masks._replace(keys=masks.keys | MASKED_IN_HEADERS)
    return of_texts(texts[0], texts[1], masks)


def neutral(text: str, names: Mapping[Path, str]) -> str:
    """A text that does not tell where a side and its tree lie."""
    for path, name in names.items():
        text = text.replace(str(path), name)
    return text


def notices(text: str) -> str:
    """What a command said on its standard error, without lines of progress."""
    return "\n".join(line for line in text.splitlines() if not _PROGRESS.fullmatch(line))


def files(place: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """The files below a directory, with what changes when they are written."""
    for path in place.rglob("*"):
        if path.is_file() and not path.name.endswith(".lock"):
            state = path.stat()
            yield str(path.relative_to(place)), (state.st_mtime_ns, state.st_size)


def _parted(base: str, now: str) -> tuple[str, str]:
    """Two texts from shortly before they part."""
    pairs = enumerate(zip(base, now, strict=False))
    parting = next((i for i, (old, new) in pairs if old != new), min(len(base), len(now)))
    begun = max(0, parting - BEFORE)
    return _cut(base, begun), _cut(now, begun)


def _cut(text: str, begun: int = 0) -> str:
    """A text on one line, from a character on and not too long."""
    end = begun + LONGEST
    line = " ".join(text[begun:end].split("\n"))
    return f"{'...' if begun else ''}{line}{'...' if len(text) > end else ''}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
