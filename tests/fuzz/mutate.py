"""Damage of every kind: to bytes, and to values, so that it gets behind digests and syntax."""

import copy
import json
import random
from collections.abc import Callable, Iterator, MutableMapping, MutableSequence
from typing import Any

# What JSON, YAML and TOML can say and programs seldom expect.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 255, 65_536, 2**31, -(2**31), 2**53, 2**63, 2**64, 10**400),
    *(0.0, -0.0, 0.5, 1.5, -2.5, 1e30, 1e308, 5e-324, float("inf"), float("-inf"), float("nan")),
    *(
        "",
        "x",
        "0",
        "1e400",
        "nan",
        "0x1p99999",
        "../x",
        "/",
        "a\0b",
        "\ud800",
        "\ufeff",
        "²",
    ),
    *(
        "x" * 300,
        "9" * 5_000,
        "кit\u202e",
        "name",
        "<script>",
        "{{ 7 * 7 }}",
        "2026-13-45",
        "a" * 64,
    ),
    *([], [1], [[]], [None], {}, {"x": 1}, {"kind": "x"}, [8] * 2_000, {"kind": {}}, [[[[[[]]]]]]),
)
WORDS = (
    b"\0",
    b"\xff",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\n",
    b'"',
    b"{",
    b"[",
    b"9" * 5_000,
    b"1e400",
)
LENGTHS = (0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """One to four accidents: bits, cuts, insertions, splices, lengths."""
    for _ in range(chance.randint(1, 4)):
        place, other = (chance.randrange(len(data) + 1) for _ in range(2))
        first, last = min(place, other), max(place, other)
        match chance.randrange(8):
            case 0:
                if place < len(data):
                    bit = 1 << chance.randrange(8)
                    data = data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]
            case 1:
                data = data[:place] + chance.randbytes(1) + data[place + 1 :]
            case 2:
                data = data[: max(first, last - 64)] + data[last:]
            case 3:
                data = data[:place] + chance.choice(WORDS) + data[place:]
            case 4:
                data = data[:place] + data[first : first + 200] + data[place:]
            case 5:
                data = data[:place]
            case 6:
                width = chance.choice((1, 2, 4, 8))
                number = chance.choice(LENGTHS) % (1 << 8 * width)
                data = data[:place] + number.to_bytes(width, "little") + data[place + width :]
            case _:
                data = data[:first] + chance.randbytes(min(16, last - first)) + data[last:]
    return data


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key below ``value``; of long lists only the ends."""
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        if isinstance(holder, MutableMapping):
            keys = list(holder)
        elif isinstance(holder, MutableSequence):
            keys = list(range(len(holder)))
            keys = keys if len(keys) < 8 else [*keys[:4], *keys[-2:]]
        else:
            continue
        for key in keys:
            yield holder, key
            waiting.append(holder[key])


def changed(value: Any, chance: random.Random) -> Any:
    """A copy with one to three values replaced, dropped, renamed, doubled, swapped or nudged."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        spots = list(places(value))
        if not spots:
            return copy.deepcopy(chance.choice(ODD))
        holder, key = chance.choice(spots)
        kind = chance.randrange(10)
        if kind < 5:
            holder[key] = copy.deepcopy(chance.choice(ODD))  # which stays as it is
        elif kind == 5:
            del holder[key]
        elif kind == 6 and isinstance(holder, MutableMapping):
            holder[chance.choice((f"{key}x", "x", "kind", str(key).upper()))] = holder.pop(key)
        elif kind == 6:
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == 7:
            other, place = chance.choice(spots)
            if place in other if isinstance(other, MutableMapping) else place < len(other):
                holder[key] = copy.deepcopy(other[place])
        else:
            holder[key] = _nudged(holder[key], chance)
    return value


def _nudged(value: Any, chance: random.Random) -> Any:
    match value:
        case bool():
            return not value
        case int():
            return value + chance.choice((-1, 1, 10**6, -value, -2 * value))
        case float():
            return value * chance.choice((-1.0, 0.0, 1e6, 1e-6, 1.001))
        case str():
            return damaged(value.encode("utf-8", "surrogatepass"), chance).decode("latin-1")
        case list():
            return value * 2
        case _:
            return chance.choice(ODD)


def doubled(text: str, chance: random.Random) -> str:
    """JSON in which a key of an object stands twice, or with numbers no parser should make."""
    for old in ('": ', '":'):
        if (count := text.count(old)) and chance.random() < 0.5:
            at = -1
            for _ in range(chance.randint(1, count)):
                at = text.find(old, at + 1)
            odd = chance.choice(("1e400,", "9" * 5_000 + ",", "NaN,", "-Infinity,", "null,"))
            start = text.rfind('"', 0, at)
            name = text[start : at + 1]
            return text[:start] + name + ":" + odd + text[start:]
    return text


def json_of(value: Any, chance: random.Random) -> bytes:
    """JSON as Python writes it, now and then with a key twice."""
    try:
        text = json.dumps(value, default=str)
    except ValueError:  # a number that cannot be printed
        text = "[" + "9" * 5_000 + "]"
    if chance.random() < 0.1:
        text = doubled(text, chance)
    return text.encode("utf-8", "surrogatepass")


def json_damage(data: bytes, chance: random.Random) -> bytes:
    """A JSON file with odd values, or with odd bytes."""
    if chance.random() < 0.25:
        return damaged(data, chance)
    return json_of(changed(json.loads(data), chance), chance)


def lines_damage(data: bytes, chance: random.Random) -> bytes:
    """JSON lines of which one is damaged."""
    lines = data.splitlines()
    if not lines or chance.random() < 0.2:
        return damaged(data, chance)
    at = chance.randrange(len(lines))
    lines[at] = json_damage(lines[at], chance)
    return b"\n".join(lines) + b"\n" * chance.randrange(2)


def text_damage(data: bytes, chance: random.Random) -> bytes:
    """Text in which words and numbers are replaced, lines doubled and dropped, or bytes damaged."""
    if chance.random() < 0.3:
        return damaged(data, chance)
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    words = lines[at].split(b" ")
    odd = chance.choice([value for value in ODD if isinstance(value, str | int | float)])
    match chance.randrange(5):
        case 0 | 1 | 2:
            words[chance.randrange(len(words))] = _written(odd)
            lines[at] = b" ".join(words)
        case 3:
            lines.insert(at, lines[at])
        case _:
            del lines[at]
    return b"\n".join(lines)


def _written(odd: Any) -> bytes:
    if isinstance(odd, int) and abs(odd) > 10**300:
        return b"1" + b"0" * 400
    return str(odd).encode("utf-8", "surrogatepass")


Change = Callable[[bytes, random.Random], bytes]
