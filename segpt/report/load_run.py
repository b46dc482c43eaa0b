"""What the files of a run folder hold, as the values of a report.

The files may be anyone's: what has another shape than segpt writes is an error that names the
file, and texts and lists are cut to what a page has room for.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segpt.artifact import container
from segpt.artifact.reader import open_artifact
from segpt.config.base import encode
from segpt.config.environment import Versions
from segpt.config.layout import layout, parameters
from segpt.config.quant_report import GroupReport, QuantReport, WeightReport
from segpt.config.recipe import Recipe
from segpt.config.role import Role
from segpt.errors import SegptError, SpecError
from segpt.stages import json_files
from segpt.stages.checkpoint_io import CheckpointHeader
from segpt.values import Artifact

from .contents import (
    CodedRow,
    Logged,
    Packed,
    Quantization,
    ReportedScore,
    ReportRow,
    Sample,
    Share,
    Training,
)

MOST_ROWS = 40  # of a table
LONGEST = 300  # text of a cell
MOST = 2**63  # of anything counted

_MOST_LAYERS, _MOST_WEIGHTS, _MOST_SAMPLES = 200, 100_000, 12
_LONGEST_SAMPLE = 2_000
_MOST_SETS = 12  # lines of a chart

_ODD = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, SpecError)
_LEARNT = (Role.MATRIX, Role.TABLE, Role.HEAD, Role.VECTOR)  # as the optimizer names them
_ROLES = {"matrix": "matrices", "table": "tables", "head": "head", "vector": "vectors"}


def logged(path: Path) -> Training:
    """The curves of the metrics: of steps that were taken again, the last is kept."""
    kept: list[Logged] = []
    sets: list[tuple[int, dict[str, float | None]]] = []
    unfit = repeated = 0
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise SegptError(f"cannot read {path}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        try:
            with sound(path, f" in line {number}"):
                table = json.loads(line)
                fields = [_number(table.get(name)) for name in Logged._fields[1:]]
                taken = Logged(count(table["step"]), *map(_finite, fields))
                measured = dict(table.get("validation_bpb_by_set") or {})
                by_set = {str(n)[:LONGEST]: _finite(_number(v)) for n, v in measured.items()}
        except SegptError:
            if number == len(lines) and not line.endswith(b"\n"):
                break  # cut short by a kill, as training itself allows for
            raise
        unfit += any(value is not None and not math.isfinite(value) for value in fields)
        while kept and kept[-1].step >= taken.step:
            repeated += 1
            kept.pop()
        kept.append(taken)
        while sets and sets[-1][0] >= taken.step:
            sets.pop()
        if by_set:
            sets.append((taken.step, by_set))
    names = list(dict.fromkeys(name for _, by_set in sets for name in by_set))[:_MOST_SETS]
    curves = {n: [(step, by_set[n]) for step, by_set in sets if n in by_set] for n in names}
    return Training(tuple(kept), unfit, repeated, by_set=curves)


def training(
    header: CheckpointHeader | None, recipe: Recipe | None, curves: Training | None
) -> Training | None:
    """What the header of the newest checkpoint, its run and recipe and the metrics say together."""
    if header is None:
        return curves
    spec, about, lines = header.spec, header.about, curves or Training()
    roles = {weight.role for weight in layout(spec)}
    names: dict[float, list[str]] = {}
    if recipe is not None:
        rules = recipe.train.optimizer
        for role in filter(roles.__contains__, _LEARNT):
            rate = getattr(rules, role.value).rate
            names.setdefault(rate, []).append(_ROLES[role.value])
    return Training(
        lines=lines.lines,
        unfit=lines.unfit,
        repeated=lines.repeated,
        rates={", ".join(alike): rate for rate, alike in names.items()},
        parameters=parameters(spec),
        steps=count(header.step),
        tokens=None if about.tokens is None else count(about.tokens),
        seconds=about.seconds,
        by_set=lines.by_set,
    )


def quantization(report: QuantReport) -> Quantization:
    """The report of a quantized model, with a row for what lies outside its layers.

    Raises:
        ValueError: if it does not say what the model loses.
    """
    quality, curve = report.quality, report.curve
    if quality is None:
        raise ValueError("the quality was not measured")
    weights = [
        _coded(name, row.role, row)
        for name, row in itertools.islice(report.weights.items(), _MOST_WEIGHTS)
    ]
    layers = [_coded(f"layer {name}", "layer", row) for name, row in report.layers.items()]
    outside = [
        weight
        for weight, row in zip(weights, report.weights.values(), strict=False)
        if row.layer is None
    ]
    if outside:
        size = sum(row.parameters for row in outside)
        bits = sum(row.parameters * row.bits for row in outside) / max(1, size)
        damage = [row.damage for row in outside if row.damage is not None]
        layers.insert(
            0, CodedRow("embeddings, head", "outside", size, bits, None, sum(damage) or None)
        )
    return Quantization(
        bits=report.bits_per_weight,
        bpb_before=quality.bpb_before,
        bpb_after=quality.bpb_after,
        kl_mean=quality.kl_mean,
        kl_p99=quality.kl_p99,
        top1=quality.top1_agreement,
        tokens=count(quality.tokens),
        roles=tuple(
            _coded(_ROLES.get(name, text(name)), "role", row)
            for name, row in itertools.islice(report.roles.items(), MOST_ROWS)
        ),
        layers=tuple(layers[:_MOST_LAYERS]),
        weights=tuple(weights),
        curve=() if curve is None else tuple(map(_dot, curve.dots[:MOST_ROWS])),
        here=None if curve is None else _dot(curve.here),
        curve_tokens=0 if curve is None else count(curve.tokens),
    )


def _coded(name: str, kind: str, row: WeightReport | GroupReport) -> CodedRow:
    parameters, bits = count(row.parameters), row.bits_per_weight
    return CodedRow(text(name), text(kind), parameters, bits, row.error, row.damage)


def _dot(dot: Sequence[float]) -> tuple[float, float]:
    bits, kl = dot
    return bits, kl


def packed(path: Path, artifact: Artifact, budget: int | None) -> Packed:
    """What every byte of an artifact is for."""
    model = open_artifact(artifact).header.model
    return Packed(
        file=text(path.name),
        bytes=artifact.size,
        budget=budget,
        digest=artifact.digest,
        parameters=parameters(model),
        roles=tuple(
            Share(_ROLES[usage.role.value], usage.bytes, usage.parameters)
            for usage in container.usage(artifact)
        ),
        sections=tuple(
            Share(section.name, section.bytes) for section in container.sections(artifact)
        ),
    )


def scored(file: str, plain: Mapping[str, Any]) -> ReportedScore:
    """A score as `segpt score --out` writes it."""
    policy, conditions = plain["policy"], plain["conditions"]
    kind = str(policy["kind"]) + "+ngram" * (policy.get("ngram") is not None)
    by_document = plain.get("by_document") or {}
    documents = zip(by_document.get("nats", ()), by_document.get("bytes", ()), strict=True)
    adapts = kind != "frozen"
    way = ", ".join([kind, *filter(None, [str(conditions.get("mode") or "")])])
    return ReportedScore(
        file=text(file),
        policy=text(f"{'adapted' if adapts else 'plain'} ({way})"),
        adapts=adapts,
        bpb=_sure(plain["bpb"]),
        tokens=count(plain["tokens"]),
        bytes=count(plain["bytes"]),
        seconds=_sure(plain["seconds"]),
        text=text(plain["text"]),
        digest=text(str(conditions.get("text", plain["text"]))),
        conditions=tuple(
            (text(name), said(value))
            for name, value in itertools.islice(sorted(conditions.items()), MOST_ROWS)
        ),
        documents=tuple((_sure(nats), _sure(size)) for nats, size in documents),
    )


def demo(path: Path) -> tuple[tuple[ReportRow, ...], tuple[tuple[str, str], ...]]:
    """The table of the demo and how long it took, if there was one."""
    if not path.exists():
        return (), ()
    plain = json_files.read_json(path, "what the demo found")
    with sound(path):
        rows = tuple(
            ReportRow(
                text(row["step"]),
                None if row["bytes"] is None else count(row["bytes"]),
                _sure(row["bpb"]),
                text(row["what"]),
            )
            for row in plain["rows"][:MOST_ROWS]
        )
        seconds = (("the whole demo", f"{_sure(plain['seconds']):,.0f} s"),)
    return rows, seconds


def samples(path: Path) -> tuple[tuple[Sample, ...], str]:
    """Texts as `segpt sample --json` prints them, and how they were drawn, if there are any."""
    if not path.exists():
        return (), ""
    plain = json_files.read_json(path, "the samples")
    with sound(path):
        pairs = zip(plain["prompts"], plain["texts"], strict=True)
        samples = tuple(
            Sample(text(prompt, _LONGEST_SAMPLE), text(answer, _LONGEST_SAMPLE))
            for prompt, answer in itertools.islice(pairs, _MOST_SAMPLES)
        )
        spec = plain["spec"]
        named = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
        drawn = ", ".join(
            f"{name.replace('_', ' ')} {_sure(spec[name]):g}" for name in named if name in spec
        )
    return samples, f"Drawn with {drawn}" if drawn else ""


@contextmanager
def sound(path: Path, where: str = "") -> Iterator[None]:
    """Turn whatever a file of another shape leads to into one error that names it."""
    try:
        yield
    except _ODD as e:
        what = f"{e} is missing" if isinstance(e, KeyError) else str(e)
        raise SegptError(f"{path} is not what segpt writes{where}: {what}") from None


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, not {value!r:.60}")
    return float(value)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _sure(value: Any) -> float:
    if (number := _finite(_number(value))) is None:
        raise ValueError(f"expected a finite number, not {value!r:.60}")
    return number


def count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected a whole number, not {value!r:.60}")
    if abs(value) > MOST:
        raise ValueError(f"expected a smaller number than {value:.3e}")
    return value


def text(value: Any, most: int = LONGEST) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, not {value!r:.60}")
    return value if len(value) <= most else f"{value[: most - 1]}…"


def said(value: Any) -> str:
    """A value of a table of conditions, for people."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case str():
            return text(value)
        case int() if abs(value) < 10**18:
            return f"{value:,}"
        case float():
            return f"{value:,.6g}"
        case {"segpt": str(), "torch": str()}:
            return versions(value)
        case _:
            return text(json.dumps(value, sort_keys=True))


def versions(present: Mapping[str, Any] | Versions) -> str:
    table = encode(present)
    return text(", ".join(f"{name} {version}" for name, version in table.items()))
