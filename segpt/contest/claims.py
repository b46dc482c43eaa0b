"""What a submission says about itself: its metadata, and the tables and headline of its README."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from segpt.errors import SpecError

from . import numbers as written

_SEED_BYTES = ("artifact_bytes", "bytes_total", "total_bytes", "submission_bytes", "bytes")
_TOTAL_BYTES = ("bytes_total", "total_bytes", "artifact_bytes", "artifact_size_bytes")
_CODE_BYTES = ("bytes_code", "code_bytes")
_LOSS = ("val_loss", "mean_val_loss", "val_loss_nats", "mean_val_loss_nats", "loss")
_BPB = ("val_bpb", "mean_val_bpb", "mean_bpb", "bpb")
_BPB_STD = ("val_bpb_std", "std_bpb", "bpb_std", "std")
_LOSS_STD = ("val_loss_std", "std_val_loss", "std_val_loss_nats", "val_loss_nats_std")
_P = ("p_value", "p")
_FIGURES = frozenset((*_LOSS, *_BPB, *_BPB_STD, *_LOSS_STD))
_TAKEN = frozenset((*_TOTAL_BYTES, *_CODE_BYTES))  # never nothing
_SIZES = frozenset((*_SEED_BYTES, *_TOTAL_BYTES, *_CODE_BYTES))

MOST_SEEDS = 1000  # that are looked at
MOST = 10**6  # nats per token or bits per byte
_MOST_BYTES = 10**15
_MOST_DIGITS = 40  # of anything in the metadata
_SEED = re.compile(r"(?:seed[_-]?)?(\d{1,10})")
_ROW = re.compile(r"^\s*\|(.*)\|\s*$")
_CELL = re.compile(r"~?\s*(\d[\d,.]*)")
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+|\d+\.\d+|\d+")
_HEADLINE = re.compile(
    r"\bval[_ ]?bpb\W{1,8}(\d\.\d{3,})|\b(\d\.\d{3,})\s?(?:val_)?bpb\b", re.IGNORECASE
)
_BEST = re.compile(
    r"\bbest\s+(\d{1,9})\s+(?:seeds?\s+)?(?:out\s+)?of\s+(?:the\s+)?(?:all\s+)?(\d{1,9})\b",
    re.IGNORECASE,
)
_CHANCE = re.compile(
    r"\bp(?:\s*+-?\s?value)?\s*(?:=|<|≈|~)\s*(0?\.\d+(?:e-\d{1,6})?|\d+(?:\.\d+)?e-\d{1,6})(?!\d)"
)


@dataclass(frozen=True)
class Seed:
    """What is claimed of one run; sizes are bytes and times seconds."""

    seed: int
    bpb: Decimal | None = None
    loss: Decimal | None = None
    bytes: int | None = None
    trained: float | None = None
    evaluated: float | None = None


@dataclass(frozen=True)
class Claims:
    """What the metadata of a submission claims, as far as it says so.

    ``others`` are runs that are disclosed beside those that count, by seed. ``timed`` is false of
    a submission that does not enter the contest's record track, whose limits of time hold there
    alone. ``odd`` says which numbers cannot be of a run, and are left out.
    """

    bpb: Decimal | None = None
    loss: Decimal | None = None
    bpb_std: Decimal | None = None
    loss_std: Decimal | None = None
    bytes: int | None = None
    code: int | None = None
    seeds: tuple[Seed, ...] = ()
    others: Mapping[int, Decimal] | None = None
    date: str | None = None
    p: Decimal | None = None
    timed: bool = True
    missing: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClaimedRow:
    """A row of a table about one seed, or about their mean (None): cells by their heading."""

    seed: int | None
    cells: Mapping[str, str]


def read(text: str) -> Claims:
    """The claims in ``submission.json``.

    Raises:
        SpecError: if it is not a JSON object.
    """
    odd: dict[str, None] = {}

    def number(text: str) -> Decimal | int | None:
        value = written.exact(text)
        if value is None or value.adjusted() > _MOST_DIGITS:
            odd[f"holds {written.cut(text)}, which is no number of a run"] = None
            return None
        return value if re.search(r"[.eE]", text) else int(text)

    try:
        table = json.loads(text, parse_float=number, parse_int=number)
        if not isinstance(table, dict):
            raise SpecError("not a JSON object")
        odd |= dict.fromkeys(_odd(table))
        return replace(_claims(table), odd=tuple(odd)[:MOST_SEEDS])
    except ValueError as error:
        raise SpecError(f"not valid JSON: {error}") from None
    except RecursionError:
        raise SpecError("not valid JSON: its tables lie too deep in each other") from None


def _odd(value: Any) -> Iterator[str]:
    """The figures and sizes that no run can have, wherever they are."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if _is_odd(key, inner):
                yield f"{key} is {written.cut(str(inner))}, which no run can have"
            yield from _odd(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _odd(inner)


def _is_odd(key: str, value: Any) -> bool:
    if not isinstance(value, int | float | Decimal) or isinstance(value, bool):
        return False
    if key in _FIGURES:
        return _figure(value) is None
    return (key in _SIZES and _size(value) is None) or (key in _TAKEN and not value)


def _claims(table: Mapping[str, Any]) -> Claims:
    maps = list(_seed_maps(table))
    seeds = _seeds(table, maps[0] if maps else {})
    others = {
        seed: bpb
        for by_seed in maps[1:]
        if set(by_seed) >= {seed.seed for seed in seeds} and len(by_seed) > len(seeds)
        for seed, value in by_seed.items()
        if (bpb := _figure(value) if isinstance(value, Decimal) else _number(value, _BPB))
        is not None
    }
    track = " ".join(str(table.get(key, "")) for key in ("track", "name")).lower()
    return Claims(
        bpb=_number(table, _BPB),
        loss=_number(table, _LOSS),
        bpb_std=_number(table, _BPB_STD),
        loss_std=_number(table, _LOSS_STD),
        bytes=_count(table, _TOTAL_BYTES),
        code=_count(table, _CODE_BYTES),
        seeds=seeds,
        others=others or None,
        date=date if isinstance(date := table.get("date"), str) else None,
        p=_chance(table),
        timed=not re.search(r"non.?record|unlimited", track),
        missing=tuple(key for key in ("author", "name", "date", "val_bpb") if not _has(table, key)),
    )


def rows(page: str) -> Iterator[ClaimedRow]:
    """The rows of a README's tables that are about one seed, or about the mean of them."""
    head: list[str] = []
    for line in page.splitlines():
        if (row := _ROW.match(line)) is None:
            head = []
            continue
        cells = [re.sub(r"[*`\\]", "", cell).strip() for cell in row[1].split("|")]
        if not head:
            head = [cell.lower() for cell in cells]
        elif "seed" in head[0] and len(cells) == len(head) and cells[0]:
            table = {h: c for h, c in zip(head[1:], cells[1:], strict=True) if c and c != "-"}
            if (seed := re.fullmatch(r"\D{0,6}(\d{1,10})\D{0,12}", cells[0])) is not None:
                yield ClaimedRow(int(seed[1]), table)
            elif re.match(r"mean|average|avg", cells[0], re.IGNORECASE):
                yield ClaimedRow(None, table)


def numbers(cell: str) -> list[str]:
    """The numbers at the beginning of a cell, and none where it only says about how many."""
    match = _CELL.match(cell)
    number = "" if match is None or cell.startswith("~") else match[1].rstrip(",.")
    return [number] if _NUMBER.fullmatch(number) else []


def headlines(page: str) -> list[Decimal]:
    """The bits per byte that the first heading and the lines in bold below it name."""
    lines = [line for line in page.splitlines()[:12] if line.startswith(("#", "**"))]
    named = (written.figure(m[1] or m[2]) for line in lines for m in _HEADLINE.finditer(line))
    return [number for number in named if number is not None]


def best_of(*texts: str) -> tuple[int, int] | None:
    """How many runs are said to be chosen, and from how many."""
    for text in texts:
        for match in _BEST.finditer(text):
            if int(match[1]) < int(match[2]):
                return int(match[1]), int(match[2])
    return None


def chances(page: str) -> list[Decimal]:
    """The p-values that a page names."""
    numbers = map(written.exact, _CHANCE.findall(page))
    return [number for number in numbers if number is not None]


def _has(table: Mapping[str, Any], key: str) -> bool:
    return _number(table, _BPB) is not None if key == "val_bpb" else key in table


def _seed_maps(value: Any, name: str = "") -> Iterator[dict[int, Any]]:
    """What is listed by seed anywhere in the metadata, ``seed_results`` and ``seeds`` first."""
    maps: list[tuple[bool, dict[int, Any]]] = []

    def walk(value: Any, name: str) -> None:
        if isinstance(value, Mapping):
            keys = [_SEED.fullmatch(str(key)) for key in value]
            if value and all(keys):
                listed = {int(k[1]): v for k, v in zip(keys, value.values(), strict=True) if k}
                if any(_is_result(v) for v in listed.values()):
                    maps.append((name not in ("seed_results", "seeds", "results"), listed))
                return
            for key, inner in value.items():
                walk(inner, str(key))
        elif isinstance(value, list) and value and all(_names_seed(v) for v in value):
            maps.append((False, {v["seed"]: v for v in value}))

    walk(value, name)
    return (listed for _, listed in sorted(maps, key=lambda pair: pair[0]))


def _names_seed(value: Any) -> bool:
    return isinstance(value, Mapping) and _is_whole(value.get("seed"))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_result(value: Any) -> bool:
    return isinstance(value, Decimal) or (isinstance(value, Mapping) and _bpb(value) is not None)


def _seeds(table: Mapping[str, Any], results: Mapping[int, Any]) -> tuple[Seed, ...]:
    seeds = {seed: _seed(seed, value) for seed, value in results.items()}
    listed = table.get("seeds", [])
    for seed in listed if isinstance(listed, list) else []:
        if _is_whole(seed):
            seeds.setdefault(seed, Seed(seed))
    scores = table.get("seed_scores")
    if isinstance(scores, list) and isinstance(listed, list) and len(scores) == len(listed):
        for seed, score in zip(listed, scores, strict=True):
            if isinstance(score, Decimal) and seed in seeds:
                seeds[seed] = replace(seeds[seed], bpb=_figure(score))
    if not seeds and _is_whole(seed := table.get("seed")):
        seeds[seed] = replace(
            Seed(seed), bpb=_number(table, _BPB), bytes=_count(table, _TOTAL_BYTES)
        )
    return tuple(seeds.values())[:MOST_SEEDS]


def _seed(seed: int, value: Any) -> Seed:
    if isinstance(value, Decimal):
        return Seed(seed, bpb=_figure(value))
    if not isinstance(value, Mapping):
        return Seed(seed)
    return Seed(
        seed,
        bpb=_bpb(value),
        loss=_number(value, _LOSS),
        bytes=_count(value, _SEED_BYTES),
        trained=_seconds(value, "train_time"),
        evaluated=_seconds(value, "eval_time"),
    )


def _bpb(value: Mapping[str, Any]) -> Decimal | None:
    named = _number(value, _BPB)
    if named is not None:
        return named
    plain = [k for k in value if "bpb" in k and not re.search(r"pre|gain|delta|diff|std", k)]
    return _number(value, tuple(plain))


def _number(table: Mapping[str, Any], names: tuple[str, ...]) -> Decimal | None:
    for name in names:
        if (value := _figure(table.get(name))) is not None:
            return value
    return None


def _figure(value: Any) -> Decimal | None:
    """A figure of a run; None if ``value`` is none."""
    if not isinstance(value, int | Decimal) or isinstance(value, bool):
        return None
    figure = written.bounded(Decimal(value))
    return figure if figure is not None and figure < MOST else None


def _count(table: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        if (value := _size(table.get(name))) is not None:
            return value
    return None


def _size(value: Any) -> int | None:
    """A size in bytes; None if ``value`` is none."""
    if not isinstance(value, int | Decimal) or isinstance(value, bool):
        return None
    return int(value) if 0 <= value < _MOST_BYTES and value == int(value) else None


def _seconds(table: Mapping[str, Any], name: str) -> float | None:
    for key, divisor in ((f"{name}_s", 1), (f"{name}_seconds", 1), (f"{name}_ms", 1000)):
        if isinstance(value := table.get(key), int | Decimal) and not isinstance(value, bool):
            return float(value) / divisor
    return None


def _chance(table: Mapping[str, Any]) -> Decimal | None:
    for name in _P:
        match = re.fullmatch(r"[<=~ ]*(\d*\.\d+(?:[eE]-?\d+)?)", str(table.get(name, "")).strip())
        if match is not None and (number := written.exact(match[1])) is not None:
            return number
    return None
