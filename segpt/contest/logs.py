"""What the log of a training or evaluation run says, whatever script wrote it.

Scripts print their figures as ``name:value``, ``name: value`` or ``name=value``, and many begin
with their own source. Words are looked for with a number after them, where source has names.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from . import numbers as written

SMALLEST = 10_000  # of whole numbers that can be the size of a file

_NUMBER = r"(\d+(?:\.\d+)?)"
_COUNT = r"(\d{1,3}(?:,\d{3})+|\d+)"
_SEED = re.compile(r"^\s{0,3}\W{0,2}seed(?:\W?:\s*|=)(\d+)[\s,]*$", re.IGNORECASE)
_NAMED_SEED = re.compile(r"seed[_-]?(\d+)", re.IGNORECASE)
_STEP = re.compile(r"^\W*(?:step\W{1,3})?(\d+)/\d+\s+\w*loss\b", re.IGNORECASE)
_JSON_STEP = re.compile(r'^\{.*"step": (\d+)[,}]')
_BPB = re.compile(r"\b(?=\w*bpb)\w++\W{1,4}(\d+\.\d+)", re.IGNORECASE)
_LOSS = re.compile(r"\b(?=val\w*_loss)\w++\W{1,4}(\d+\.\d+)|\bnll\W{1,4}(\d+\.\d+)", re.IGNORECASE)
_DECIMAL = re.compile(r"(?<![\d.])\d+\.\d{3,}(?![\d.])")
_TOTAL = re.compile(
    rf"^\W*(total (?:submission |artifact )?(?:size|bytes)[^:=]*|(?:bytes_total|total_bytes|"
    rf"submission_bytes|artifact_bytes|submission size)[^:=]*)[:=]\s*{_COUNT}\b",
    re.IGNORECASE,
)
_BUDGET = re.compile(rf"^\W*(budget)[:=]\s*{_COUNT}/\d", re.IGNORECASE)
_CODE = re.compile(
    rf"^\W*(code (?:size|bytes)[^:=]*|bytes_code|code_bytes)[:=]\s*{_COUNT}\b", re.IGNORECASE
)
_SHARDS = re.compile(r"\btrain(?:ing)?[_ ]shards\W{1,3}(\d+)", re.IGNORECASE)
_TARGETS = re.compile(r"^\W*val_tokens\W{1,3}(\d+)\b", re.IGNORECASE)
_VALIDATION = re.compile(r"\bval\w*+[:\s]", re.IGNORECASE)
_TOKENS = re.compile(r"\btokens\W{1,2}(\d+)\b", re.IGNORECASE)
_SIZE = re.compile(rf"(?<![\d.,]){_COUNT}(?![\d.])")
_TRAIN_TIME = re.compile(
    rf"\btrain(?:ing)?_time(?:_s|_ms)?\W{{1,3}}{_NUMBER}\s*(ms|s)\b", re.IGNORECASE
)
_EVAL_TIME = re.compile(
    rf"\b((?:total_)?(?:ttt_)?eval(?:uation)?_time(?:_s|_ms)?)\W{{1,3}}{_NUMBER}\s*(ms|s)\b",
    re.IGNORECASE,
)
_CALIBRATION = re.compile(r"hessian|calibrat", re.IGNORECASE)
_OWN_TEXT = re.compile(r"auto.?regressive|self.?gen|\bAR\b|random|synthetic", re.IGNORECASE)
_TOOK = re.compile(rf"\bin {_NUMBER}\s*(ms|s)\b")
_BEFORE_QUANTIZATION = re.compile(r"pre.?quant|diagnostic|post.?ema|raw", re.IGNORECASE)
_PROGRESS = re.compile(r"\d/\d")  # of an evaluation under way
_SETTING = re.compile(r"(?<![\w.])([a-z][a-z0-9_]+):\s?([\w./+-]+)(?=\s|$)")

# What one run has one value of; a second value is of another run.
_IDENTITY = frozenset(
    ("seed", "run_id", "iterations", "train_batch_tokens", "train_seq_len", "vocab_size")
) | {"num_layers", "model_dim", "model_params", "train_shards", "max_wallclock_seconds"}


class LoggedFigure(NamedTuple):
    """Bits per byte on a line of a log, and the nats per token beside them.

    ``final`` is false of a figure from within training or from before quantization.
    """

    bpb: Decimal
    loss: Decimal | None
    final: bool


class Timed(NamedTuple):
    """A name of a log and its seconds."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Log:
    """What a log says; sizes are bytes and times seconds.

    Attributes:
        name: of the file, in its folder.
        seeds: the different ones that its lines name, in order.
        figures: lines with bits per byte, in order.
        decimals: every number with three decimals or more, but on lines of mere progress.
        sizes: every whole number that could be the size of a file.
        totals: what lines call the size of the submission, by what they call it.
        codes: the same of the code.
        settings: the values of what one run has one value of.
        headers: how often the header of a run begins.
        back: the first step that is lower than one before it, and that one.
        steps: how many lines are of training.
        shards: the counts of training shards.
        targets: the counts of validation tokens.
        trained: seconds of training at most, or None.
        calibration: seconds spent on training data after training stopped; None if there were
            none, and 0 if the log does not say how many.
        evaluations: what evaluations took.
    """

    name: str
    seeds: tuple[int, ...]
    figures: tuple[LoggedFigure, ...]
    decimals: tuple[Decimal, ...]
    sizes: frozenset[int]
    totals: Mapping[str, tuple[int, ...]]
    codes: Mapping[str, tuple[int, ...]]
    settings: Mapping[str, tuple[str, ...]]
    headers: int
    back: tuple[int, int] | None
    steps: int
    shards: tuple[int, ...]
    targets: tuple[int, ...]
    trained: float | None
    calibration: float | None
    evaluations: tuple[Timed, ...]

    @property
    def named_seed(self) -> int | None:
        """The seed in the name of the file."""
        match = _NAMED_SEED.search(self.name.rpartition("/")[2])
        return None if match is None else written.whole(match[1])

    @property
    def total(self) -> int | None:
        """The smallest size of the submission: others are from before compression."""
        return min((size for sizes in self.totals.values() for size in sizes), default=None)

    @property
    def code(self) -> int | None:
        """The smallest size of the code, which is what is counted."""
        return min((size for sizes in self.codes.values() for size in sizes), default=None)


def read(name: str, text: str) -> Log:
    """What the log ``name`` says."""
    lines = text.splitlines()
    met = (_STEP.match(line) or _JSON_STEP.match(line) for line in lines)
    steps = [step for m in met if m is not None and (step := written.whole(m[1])) is not None]
    seeds = [written.whole(m[1]) for line in lines if (m := _SEED.match(line))]
    settings = _settings(lines)
    return Log(
        name=name,
        seeds=tuple(dict.fromkeys(seed for seed in seeds if seed is not None)),
        figures=tuple(_figures(lines)),
        decimals=tuple(
            dict.fromkeys(
                number
                for line in lines
                if not _is_progress(line)
                for n in _DECIMAL.findall(line)
                if (number := written.figure(n)) is not None
            )
        ),
        sizes=frozenset(n for line in lines for n in _sizes(line)),
        totals=_labelled(lines, (_TOTAL, _BUDGET)),
        codes=_labelled(lines, (_CODE,)),
        settings=settings,
        headers=len(seeds),
        back=_back(steps),
        steps=len(steps),
        shards=_counts(m[1] for m in _matches(lines, _SHARDS)),
        targets=_counts(_targets(lines)),
        trained=max((_seconds(m[1], m[2]) for m in _matches(lines, _TRAIN_TIME)), default=None),
        calibration=_calibration(lines),
        evaluations=tuple(Timed(m[1], _seconds(m[2], m[3])) for m in _matches(lines, _EVAL_TIME)),
    )


def _seconds(number: str, unit: str) -> float:
    return float(number) / (1000.0 if unit.lower() == "ms" else 1.0)


def _matches(lines: Iterable[str], pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    return (match for line in lines for match in pattern.finditer(line))


def _figures(lines: Iterable[str]) -> Iterator[LoggedFigure]:
    for line in lines:
        if (match := _BPB.search(line)) is None or _is_progress(line):
            continue
        if (bpb := written.figure(match[1])) is None:
            continue
        loss = _LOSS.search(line)
        inside = bool(_STEP.match(line) or _JSON_STEP.match(line))
        yield LoggedFigure(
            bpb,
            None if loss is None else written.figure(loss[1] or loss[2]),
            not (inside or _BEFORE_QUANTIZATION.search(line)),
        )


def _is_progress(line: str) -> bool:
    return bool(_PROGRESS.search(line)) and not _STEP.match(line)


def _sizes(line: str) -> Iterator[int]:
    numbers = map(written.whole, _SIZE.findall(line))
    return (n for n in numbers if n is not None and n >= SMALLEST)


def _labelled(
    lines: Iterable[str], patterns: Iterable[re.Pattern[str]]
) -> dict[str, tuple[int, ...]]:
    sizes_by_label: dict[str, dict[int, None]] = {}
    for line in lines:
        for pattern in patterns:
            if (match := pattern.match(line)) is not None:
                label, size = " ".join(match[1].lower().split()), written.whole(match[2])
                if size is not None and size >= SMALLEST:
                    sizes_by_label.setdefault(label, {})[size] = None
    return {label: tuple(sizes) for label, sizes in sizes_by_label.items()}


def _settings(lines: Iterable[str]) -> dict[str, tuple[str, ...]]:
    values_by_key: dict[str, dict[str, None]] = {}
    for line in lines:
        if line.startswith("{"):
            continue
        for key, value in _SETTING.findall(line):
            if key in _IDENTITY and any(c.isdigit() for c in value):
                values_by_key.setdefault(key, {})[_plain(value)] = None
    return {key: tuple(values) for key, values in values_by_key.items()}


def _plain(value: str) -> str:
    """The same text for the same number."""
    try:
        return str(json.loads(value) + 0)
    except (ValueError, TypeError):
        return value


def _back(steps: Iterable[int]) -> tuple[int, int] | None:
    most = -1
    for step in steps:
        if step < most:
            return step, most
        most = step
    return None


def _counts(numbers: Iterable[str]) -> tuple[int, ...]:
    counts = (written.whole(number) for number in numbers)
    return tuple(dict.fromkeys(count for count in counts if count is not None))


def _targets(lines: Iterable[str]) -> Iterator[str]:
    """The counts of tokens on lines about validation: the last of each line."""
    for line in lines:
        if (begun := _VALIDATION.search(line)) is not None:
            counts = _TOKENS.findall(line, begun.end())
            yield from counts[-1:]
            if counts:
                continue
        if (alone := _TARGETS.match(line)) is not None:
            yield alone[1]


def _calibration(lines: Iterable[str]) -> float | None:
    stopped, spent = False, None
    for line in lines:
        if _TRAIN_TIME.search(line) and "stop" in line.lower():
            stopped, spent = True, None
        elif stopped and _CALIBRATION.search(line) and not line.startswith((" ", "#")):
            if _OWN_TEXT.search(line):
                return None
            took = _TOOK.search(line)
            spent = (spent or 0.0) + (_seconds(took[1], took[2]) if took else 0.0)
    return spent
