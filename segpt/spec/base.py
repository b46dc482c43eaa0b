"""Specs are frozen dataclasses; this module reads, writes, patches and fingerprints them."""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from segpt.errors import SpecError

T = TypeVar("T")


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
def spec(cls: type[T]) -> type[T]:
    """A spec: a frozen, slotted dataclass whose fields are given by name."""
    return dataclasses.dataclass(frozen=True, kw_only=True, slots=True)(cls)


def kind(value: object) -> str:
    """The tag that names a spec in YAML and JSON: its class name, snake_cased."""
    name = value.__name__ if isinstance(value, type) else type(value).__name__
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


def encode(value: Any) -> Any:
    """Turn a spec into plain JSON values, tagging every dataclass with its kind."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": kind(value)} | fields
    if isinstance(value, (list, tuple)):
        return [encode(v) for v in value]
    if isinstance(value, Mapping):
        return {k: encode(v) for k, v in value.items()}
    return value


def canonical(value: Any) -> bytes:
    """The one JSON encoding of a spec or plain value: sorted keys, no spaces, UTF-8."""
    text = json.dumps(encode(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def fingerprint(value: Any) -> str:
    """Sixteen hex digits that name a spec or plain value by its content."""
    return hashlib.sha256(canonical(value)).hexdigest()[:16]


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


def _decode(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _decode_union(args, value, path)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise SpecError(f"{path}: expected a list, got {value!r}")
        return tuple(_decode(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is typing.Literal:
        if value not in args or isinstance(value, bool):
            raise SpecError(f"{path}: unknown value {value!r}; {nearest(str(value), args)}")
        return value
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise SpecError(f"{path}: expected a table, got {value!r}")
        return dict(value)
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(hint, value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise SpecError(f"{path}: expected {hint.__name__}, got {value!r}")
    return value


def _decode_union(args: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in args:
        return None
    members = {kind(a): a for a in args if dataclasses.is_dataclass(a)}
    tag = value.get("kind") if isinstance(value, Mapping) else value
    if isinstance(tag, str) and tag in members:
        given = value if isinstance(value, Mapping) else {}
        return _decode_dataclass(members[tag], given, path)
    plain = [a for a in args if a is not type(None) and not dataclasses.is_dataclass(a)]
    if len(plain) == 1:
        return _decode(plain[0], value, path)
    if len(members) == 1 and isinstance(value, Mapping) and tag is None:
        return _decode_dataclass(next(iter(members.values())), value, path)
    raise SpecError(f"{path}: unknown kind {tag!r}; {nearest(str(tag), members)}")


def _decode_dataclass(cls: Any, value: Any, path: str) -> Any:
    if isinstance(value, cls):
        return value
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping):
        raise SpecError(f"{path}: expected a table for {kind(cls)}, got {value!r}")
    if (tag := value.get("kind", kind(cls))) != kind(cls):
        raise SpecError(f"{path}: unknown kind {tag!r}; known: {kind(cls)}")
    given = {k: v for k, v in value.items() if k != "kind"}
    hints = typing.get_type_hints(cls)
    if unknown := sorted(map(str, given.keys() - hints.keys())):
        raise SpecError(
            f"{path}: unknown key {unknown[0]!r} in {kind(cls)}; {nearest(unknown[0], hints)}"
        )
    needed = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory}
    if missing := sorted(needed - given.keys()):
        raise SpecError(f"{path}: missing key {missing[0]!r} in {kind(cls)}")
    fields = {k: _decode(hints[k], v, f"{path}.{k}") for k, v in given.items()}
    try:
        return cls(**fields)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


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
