"""Specs are frozen dataclasses; this module reads, writes, patches and fingerprints them."""

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import re
import reprlib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, TypeVar

from segpt.errors import SpecError

from .sizes import byte_count

T = TypeVar("T")

# YAML aliases can make a small file spell a huge value, and messages quote values.
_QUOTE = reprlib.Repr()
_QUOTE.maxlevel = 2
_QUOTE.maxstring = _QUOTE.maxother = 80

_EXPONENT = re.compile(r"[-+]?[0-9]+e[-+]?[0-9]+")  # YAML 1.1 takes 1e-3 for text

# YAML 1.1 takes the words on, yes and true for one value, and off, no and false for another.
_SWITCHES: Mapping[bool, tuple[str, ...]] = types.MappingProxyType(
    {True: ("on", "yes", "true"), False: ("off", "no", "false", "none")}
)
_PLAIN = types.MappingProxyType(
    {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
)
# What others call a kind: both are read, and ours is written.
_ALIASES = types.MappingProxyType({"lora": "low_rank", "inplace": "in_place", "adamw": "adam"})

# The metadata of a field that counts bytes, which people write as 16MB.
BYTES: Mapping[str, bool] = types.MappingProxyType({"bytes": True})

# The metadata of a field that came after specs were stored: it is left out of plain values while it
# holds its default, so that what was stored keeps its bytes and its fingerprint.
ADDED: Mapping[str, bool] = types.MappingProxyType({"added": True})

# The metadata of a field of several kinds that may be written without one: that of the default.
UNTAGGED: Mapping[str, bool] = types.MappingProxyType({"untagged": True})

# The metadata of a field that holds a plain spec whose own fields are stored among those around it.
# One that may be None adds nothing then.
INLINE: Mapping[str, bool] = types.MappingProxyType({"inline": True})

_hints = functools.cache(typing.get_type_hints)


class PlainSpec:
    """A record that segpt writes: it stands where nothing else can, so it is stored without a kind.

    What a later version stores beside its fields is passed over when it is read. A spec that
    people write refuses what it does not know, for that is a slip of the pen.
    """

    __slots__ = ()


@typing.dataclass_transform(
    kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,)
)
def spec(cls: type[T]) -> type[T]:
    """A spec: a frozen, slotted dataclass whose fields are given by name."""
    return dataclasses.dataclass(frozen=True, kw_only=True, slots=True)(cls)


def variant(cls: type[T]) -> type[T]:
    """A class of values that a program may never meet; a script leaves code for it out then."""
    return cls


def kind(value: object) -> str:
    """The tag that names a spec in YAML and JSON: its ``WORD``, or its class name, snake_cased."""
    cls = value if isinstance(value, type) else type(value)
    if word := getattr(cls, "WORD", None):
        return str(word)
    name = cls.__name__
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


def bare_word(value: object) -> str | None:
    """The word that stands for a spec that has a ``WORD`` and no settings, where it is stored.

    So a choice of words can become one of specs, some with settings, and what was stored stays.
    """
    bare = hasattr(type(value), "WORD") and not dataclasses.fields(type(value))  # type: ignore[arg-type]
    return kind(value) if bare else None


def kind_of(word: str) -> str:
    """The kind that a word stands for, be it our name of it or that of others."""
    return _ALIASES.get(word, word)


def encode(value: Any) -> Any:
    """Turn a spec into plain JSON values, tagging every dataclass with its kind, unless plain."""
    if word := bare_word(value):
        return word
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        table = {} if isinstance(value, PlainSpec) else {"kind": kind(value)}
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            if field.metadata.get("inline"):
                table |= encode(inner) or {}
            elif not (field.metadata.get("added") and inner == field.default):
                table[field.name] = encode(inner)
        return table
    if isinstance(value, (list, tuple)):
        return [encode(v) for v in value]
    if isinstance(value, Mapping):
        return {k: encode(v) for k, v in value.items()}
    return value


def canonical(value: Any) -> bytes:
    """The one JSON encoding of a spec or plain value: sorted keys, no spaces, UTF-8."""
    text = json.dumps(encode(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def readable(value: Any) -> bytes:
    """The one JSON form of a spec or plain value that people read: sorted keys, UTF-8."""
    text = json.dumps(encode(value), indent=2, sort_keys=True, ensure_ascii=False)
    return text.encode() + b"\n"


def fingerprint(value: Any) -> str:
    """Sixteen hex digits that name a spec or plain value by its content."""
    return hashlib.sha256(canonical(value)).hexdigest()[:16]


def differences(before: Any, now: Any) -> list[tuple[str, Any, Any]]:
    """The leaves in which two specs or plain values differ: path, as ``--set`` writes it, and both.

    What one of them lacks is None.
    """
    first, other = (dict(_leaves(encode(value))) for value in (before, now))
    paths = dict.fromkeys([*first, *other])
    return [(p, first.get(p), other.get(p)) for p in paths if first.get(p) != other.get(p)]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{number}]")
    else:
        yield path, value


def decode(cls: type[T], value: Any, path: str = "$") -> T:
    """Read a value of type ``cls`` from plain JSON or YAML values, strictly.

    Raises:
        SpecError: naming the path of the first value that does not fit, and for an unknown
            key or kind the nearest valid one.
    """
    return typing.cast(T, _decode(cls, value, path))


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt ``word``: the closest known one first, then all of them."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(choices)}"


def answer(word: str, area: str = "train") -> str | None:
    """What a setting is called here that others call ``word``, see :mod:`.synonyms`."""
    try:  # not imported statically: what is bundled for a contest needs no words about mistakes
        return typing.cast(str | None, import_module(".synonyms", __package__).answer(word, area))
    except (ImportError, TypeError):
        return None


def unknown_key(word: str, known: Iterable[str], path: str, name: str | None) -> SpecError:
    """The error about a key ``word`` that a table (called ``name``) at ``path`` does not have."""
    hint = answer(word) or nearest(word, known)
    where = f" in {name}" if name else ""
    return SpecError(f"{path}: unknown key {word!r}{where}; {hint}")


def _decode(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _decode_union(args, value, path)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise SpecError(f"{path}: expected a list, got {_QUOTE.repr(value)}")
        return tuple(_decode(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is typing.Literal:
        value = _word(value, args)
        if value not in args or isinstance(value, bool):
            raise _unknown("value", value, args, path)
        return value
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise SpecError(f"{path}: expected a table, got {_QUOTE.repr(value)}")
        if args and dataclasses.is_dataclass(args[1]):
            return {k: _decode(args[1], v, f"{path}.{k}") for k, v in value.items()}
        return dict(value)
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(hint, value, path)
    if hint is float and (type(value) in (int, float) or _EXPONENT.fullmatch(str(value))):
        return _decode_float(value, path)
    if type(value) is not hint:
        wanted = _PLAIN.get(hint, hint.__name__)
        raise SpecError(f"{path}: expected {wanted}, got {_QUOTE.repr(value)}")
    return value


def _word(value: Any, words: tuple[Any, ...]) -> Any:
    """The word that was written where YAML read a switch: ``off`` and not false."""
    if not isinstance(value, bool):
        return value
    return next((word for word in _SWITCHES[value] if word in words), value)


def _is_none(value: Any, members: Iterable[Any]) -> bool:
    """Whether a value says that there is nothing: null, none, or off where that is no value."""
    return value is None or value == "none" or (value is False and bool not in members)


def _unknown(what: str, value: Any, known: Iterable[str], path: str) -> SpecError:
    quoted = _QUOTE.repr(value)
    hint = nearest(quoted.strip("'"), known)
    return SpecError(f"{path}: unknown {what} {quoted}; {hint}")


def _decode_float(value: float | str, path: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise SpecError(f"{path}: expected a finite number, got {_QUOTE.repr(value)}")
    return number


def _decode_union(args: tuple[Any, ...], value: Any, path: str) -> Any:
    specs = [a for a in args if dataclasses.is_dataclass(a)]
    if len(specs) == 1 and type(None) in args and _is_plain(specs[0]):
        return None if value is None else _decode_dataclass(specs[0], value, path)
    members = {kind(a): a for a in specs}
    tag = value.get("kind") if isinstance(value, Mapping) else value
    if isinstance(tag, str) and tag not in members:
        tag = kind_of(tag)
    if isinstance(tag, str) and tag in members:
        table = value if isinstance(value, Mapping) else {}
        return _decode_dataclass(members[tag], table, path)
    plain = [a for a in args if a is not type(None) and not dataclasses.is_dataclass(a)]
    words = [word for a in plain if typing.get_origin(a) is typing.Literal for word in a.__args__]
    tag = _word(tag, tuple(words))
    if type(None) in args and tag not in words and _is_none(value, plain):
        return None
    if "frozen" in members and tag in ("none", False):  # the policy that is no policy
        return _decode_dataclass(members["frozen"], {}, path)
    if members and words and tag not in words:
        raise _unknown("kind", tag, [*words, *members], path)
    named = members and tag is not None and isinstance(value, Mapping)
    if len(plain) == 1 and not named:
        return _decode(plain[0], value, path)
    if len(members) == 1 and isinstance(value, Mapping) and tag is None:
        return _decode_dataclass(next(iter(members.values())), value, path)
    raise _unknown("kind", tag, members, path)


def _is_plain(cls: Any) -> bool:
    return issubclass(cls, PlainSpec)


def _decode_dataclass(cls: Any, value: Any, path: str) -> Any:
    if isinstance(value, cls):
        return value
    name = kind(cls).removesuffix("_spec")  # as people write it: train, not train_spec
    tagged = not _is_plain(cls)
    if tagged and isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping):
        raise SpecError(f"{path}: expected a table for {name}, got {_QUOTE.repr(value)}")
    tag = value.get("kind", kind(cls)) if tagged else kind(cls)
    if tag != kind(cls) and (not isinstance(tag, str) or kind_of(tag) != kind(cls)):
        raise _unknown("kind", tag, [kind(cls)], path)
    hints, known = _hints(cls), _keys(cls)
    table = {k: v for k, v in value.items() if k in known}
    others = value.keys() - known - {"kind"}
    if tagged and others:
        raise unknown_key(min(map(str, others)), known, path, name)
    table = _gathered(cls, table)
    needed = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory}
    if missing := sorted(needed - table.keys()):
        raise SpecError(f"{path}: missing key {missing[0]!r} in {name}")
    declared = {f.name: f for f in dataclasses.fields(cls)}
    places = {k: path if f.metadata.get("inline") else f"{path}.{k}" for k, f in declared.items()}
    fields = {
        k: _decode(hints[k], _written(declared[k], v, places[k]), places[k])
        for k, v in table.items()
    }
    try:
        return cls(**fields)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


@functools.cache
def _inlined(cls: Any) -> Mapping[str, tuple[Any, bool]]:
    """The fields that are stored by those of a plain spec: which that is, and if it may be None."""
    names = [field.name for field in dataclasses.fields(cls) if field.metadata.get("inline")]
    members = {name: typing.get_args(_hints(cls)[name]) or (_hints(cls)[name],) for name in names}
    return {name: (those[0], type(None) in those) for name, those in members.items()}


@functools.cache
def _keys(cls: Any) -> frozenset[str]:
    """The keys under which the fields of a spec are stored."""
    inlined = _inlined(cls)
    within = [key for inner, _ in inlined.values() for key in _keys(inner)]
    return frozenset([*(_hints(cls).keys() - inlined), *within])


def _gathered(cls: Any, table: dict[str, Any]) -> dict[str, Any]:
    """A stored table with a table for each plain spec whose fields were stored among the others."""
    for name, (inner, optional) in _inlined(cls).items():
        own = {key: table.pop(key) for key in _keys(inner) & table.keys()}
        if own or not optional:
            table[name] = own
    return table


def _written(field: "dataclasses.Field[Any]", value: Any, path: str) -> Any:
    """What was written for a field, with the kind or the number that the field lets people omit."""
    if field.metadata.get("untagged") and isinstance(value, Mapping) and "kind" not in value:
        return {"kind": kind(field.default)} | dict(value)
    if not field.metadata.get("bytes") or not isinstance(value, str):
        return value
    try:
        return byte_count(value)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


def patch(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``changes`` into ``table``; tables of the same kind merge, anything else replaces."""
    merged = dict(table)
    for key, new in changes.items():
        old = merged.get(key)
        if (
            isinstance(old, Mapping)
            and isinstance(new, Mapping)
            and new.get("kind", old.get("kind")) == old.get("kind")
        ):
            merged[key] = patch(old, new)
        else:
            merged[key] = new
    return merged
