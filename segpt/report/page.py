"""What a run came to, as one page that loads nothing: curves, bytes, scores and where they ran."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from segpt.errors import SegptError

from .chart import Bar, Frame, Pair, Point, Series, bars, line, scatter
from .figure import STYLE
from .scale import drawable

MOST_BYTES = 500_000  # of a page
MOST_MATRICES = 300  # dots of one chart, the largest matrices first
MOST_SCORES = 6  # of one chart

# What a text could break the page or its reading order with, though every text is escaped:
# control characters, halves of a surrogate pair, and marks that turn the direction of writing.
_UNFIT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)


class Logged(NamedTuple):
    """A line of the metrics; None is what it does not say, or no finite number."""

    step: int
    loss: float | None
    bpb: float | None
    validation_loss: float | None
    validation_bpb: float | None
    rate: float | None
    gradient_norm: float | None


@dataclass(frozen=True)
class Training:
    """What is known of the training of a run.

    ``rates`` are the learning rates of the recipe by what they are for, which the logged
    multiplier of the schedule scales. ``unfit`` counts losses that are no finite numbers and
    ``repeated`` lines whose steps were taken again.
    """

    lines: tuple[Logged, ...] = ()
    unfit: int = 0
    repeated: int = 0
    rates: Mapping[str, float] = field(default_factory=dict)
    parameters: int | None = None
    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None


class Coded(NamedTuple):
    """A role, a layer or a weight after quantization; ``error`` is squared and relative."""

    name: str
    kind: str
    parameters: int
    bits: float
    error: float | None
    damage: float | None


@dataclass(frozen=True)
class Quantization:
    """The report of a quantized model.

    ``layers`` has a row for all that lies outside of them. ``curve`` holds bits per weight and
    KL of the model at other rates, ``here`` of the model as it is, both on the same tokens.
    """

    bits: float
    bpb_before: float
    bpb_after: float
    kl_mean: float
    kl_p99: float
    top1: float
    tokens: int
    roles: tuple[Coded, ...]
    layers: tuple[Coded, ...]
    weights: tuple[Coded, ...]
    curve: tuple[tuple[float, float], ...] = ()
    here: tuple[float, float] | None = None
    curve_tokens: int = 0


class Share(NamedTuple):
    """What a role or a section of a packed file takes of it; sections hold no weights."""

    name: str
    bytes: float
    parameters: int | None = None


@dataclass(frozen=True)
class Packed:
    """A packed file, to the byte."""

    file: str
    bytes: int
    budget: int | None
    digest: str
    parameters: int
    roles: tuple[Share, ...]
    sections: tuple[Share, ...]


@dataclass(frozen=True)
class Scored:
    """A score of the text that ``digest`` names.

    ``documents`` are the nats and bytes of each document in the order they came.
    """

    file: str
    policy: str
    adapts: bool
    bpb: float
    tokens: int
    bytes: int
    seconds: float
    text: str
    digest: str
    conditions: tuple[tuple[str, str], ...]
    documents: tuple[tuple[float, float], ...] = ()

    def running(self) -> list[Pair]:
        """Bits per byte of the text so far, over its bytes so far."""
        sums = accumulate(self.documents, lambda a, b: (a[0] + b[0], a[1] + b[1]))
        return [(size, nats / size * _BITS_PER_NAT) for nats, size in sums if size]


class Row(NamedTuple):
    """A line of the table that ``segpt demo`` prints."""

    step: str
    bytes: int | None
    bpb: float
    what: str


class Sample(NamedTuple):
    """A prompt and how the model went on."""

    prompt: str
    text: str


@dataclass(frozen=True)
class Report:
    """Everything that a page tells, each part empty where the run has nothing of it yet.

    ``missing`` maps the parts that are to the command that adds them, and ``notices`` are what a
    reader has to know first.
    """

    name: str
    about: str = ""
    training: Training | None = None
    quantization: Quantization | None = None
    packed: Packed | None = None
    scores: tuple[Scored, ...] = ()
    rows: tuple[Row, ...] = ()
    samples: tuple[Sample, ...] = ()
    sampled: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    lineage: tuple[tuple[str, str], ...] = ()
    recipe: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @property
    def plain(self) -> Scored | None:
        """The score that learns nothing, and that others are compared with."""
        return next((score for score in self.scores if not score.adapts), None)

    @property
    def adapted(self) -> Scored | None:
        """The score that learns as it goes."""
        return next((score for score in self.scores if score.adapts), None)


_BITS_PER_NAT = 1.4426950408889634


def page(report: Report) -> bytes:
    """The page in at most ``MOST_BYTES``: what is long and matters least goes where it must.

    Raises:
        SegptError: if even the figures alone do not fit.
    """
    for fewer in _fewer(report):
        if len(found := render(fewer).encode()) <= MOST_BYTES:
            return found
    raise SegptError(f"the page of {report.name} would take more than {MOST_BYTES:,} bytes")


def _fewer(report: Report) -> Iterator[Report]:
    yield report
    told = "To keep the page small, {} left out."
    scores = tuple(replace(score, conditions=()) for score in report.scores)
    report = replace(report, recipe="", scores=scores)
    yield replace(
        report, notices=(*report.notices, told.format("the recipe and conditions of scores are"))
    )
    report = replace(report, quantization=None, samples=(), lineage=(), rows=())
    yield replace(report, notices=(told.format("all but figures and curves is"),))


def render(report: Report) -> str:
    """The page at any size: the same text for the same report, whatever the report contains."""
    environment = Environment(
        loader=PackageLoader("segpt.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": _count, "figure": _figure, "share": _share}
    found = environment.get_template("report.html").render(
        report=report,
        style=STYLE,
        tiles=list(tiles(report)),
        training=training_charts(report.training),
        quantization=quantization_charts(report.quantization),
        packed=packed_charts(report.packed),
        scores=score_charts(report.scores),
    )
    return _UNFIT.sub("\ufffd", found)


def _rate(report: Report) -> tuple[str, float]:
    """Bits per weight: of the packed file, and before there is one an estimate that says so."""
    assert report.quantization is not None
    weights = sum(role.parameters for role in report.quantization.roles)
    if report.packed is None or not weights:
        return "about bits per weight", report.quantization.bits
    return "bits per weight", 8 * report.packed.bytes / weights


def tiles(report: Report) -> Iterator[tuple[str, str, str]]:
    """The figures that matter most: what each is, the figure, and a remark."""
    plain, adapted = report.plain, report.adapted
    if plain is not None:
        yield "bits per byte", f"{plain.bpb:.4f}", "of held-out text, weights frozen"
    if adapted is not None:
        gain = f", {100 * (1 - adapted.bpb / plain.bpb):.1f} % fewer" if plain and plain.bpb else ""
        yield "with test-time training", f"{adapted.bpb:.4f}", f"bits per byte{gain}"
    if (packed := report.packed) is not None:
        room = "" if packed.budget is None else _room(packed.budget - packed.bytes)
        yield "the whole model", f"{packed.bytes:,}", f"bytes{room}"
    if (quantization := report.quantization) is not None:
        cost = quantization.bpb_after - quantization.bpb_before
        name, bits = _rate(report)
        yield name, f"{bits:.2f}", f"cost {cost:+.4f} bits per byte"
    if (training := report.training) is not None:
        if training.parameters is not None:
            yield "weights", f"{training.parameters:,}", _told(training)
        validated = [x.validation_bpb for x in training.lines if x.validation_bpb is not None]
        if plain is None and validated:
            yield (
                "bits per byte",
                f"{validated[-1]:.4f}",
                "of held-out text, at the last validation",
            )


def training_charts(training: Training | None) -> list[Markup]:
    """Bits per byte, loss, learning rates and gradient norms over steps."""
    if training is None:
        return []
    lines = training.lines
    measured: dict[str, list[Pair]] = {
        name: [(line.step, getattr(line, name)) for line in lines] for name in Logged._fields[1:]
    }
    validated = {
        name: [(x, y) for x, y in measured[name] if y is not None]
        for name in ("validation_bpb", "validation_loss")
    }
    charts = []
    if any(y is not None for _, y in measured["bpb"]) or validated["validation_bpb"]:
        charts.append(
            line(
                _learnt(measured["bpb"], validated["validation_bpb"]),
                Frame(
                    title="Bits per byte",
                    about="How many bits the model needs for a byte of text: lower is better.",
                    x="steps",
                    y="bits per byte",
                ),
            )
        )
    charts.append(
        line(
            _learnt(measured["loss"], validated["validation_loss"]),
            Frame(
                title="Loss",
                about="The same in the units of training, which depend on the tokenizer.",
                x="steps",
                y="nats per token",
            ),
        )
    )
    rates = [
        Series(name, [(x, None if y is None else rate * y) for x, y in measured["rate"]])
        for name, rate in training.rates.items()
    ]
    charts.append(
        line(
            rates or [Series("all weights", measured["rate"])],
            Frame(
                title="Learning rates",
                about="How far a step moves each kind of weight, as the recipe's schedule has it.",
                x="steps",
                y="rate" if rates else "share of the highest rate",
            ),
        )
    )
    charts.append(
        line(
            [Series("all weights", measured["gradient_norm"])],
            Frame(
                title="Gradient norm",
                about="Trouble shows here first: a calm run stays within a narrow band.",
                x="steps",
                y="norm before clipping",
            ),
        )
    )
    return charts


def quantization_charts(quantization: Quantization | None) -> list[Markup]:
    """Bits of each layer, and what rates cost: the model's as a whole and each matrix's."""
    if quantization is None:
        return []
    charts = [
        bars(
            [Bar(row.name, row.bits, f"{row.bits:.2f}") for row in quantization.layers],
            title="Bits per weight, by layer",
            about="Where the bits went: layers that matter more to the text are given more.",
            x="bits per weight",
        )
    ]
    if quantization.curve:
        here = [] if quantization.here is None else [quantization.here]
        charts.append(
            line(
                [
                    Series("at other rates, untuned", quantization.curve, dots=True),
                    Series("this model", here, _at(quantization.here), dots=True),
                ],
                Frame(
                    title="Rate and distortion of the model",
                    about="What fewer bits would cost, and more would gain, on "
                    f"{quantization.curve_tokens:,} held-out tokens: lower is closer to the "
                    "original.",
                    x="bits per weight",
                    y="KL from the float32 model, nats per token",
                    log_y=True,
                ),
            )
        )
    matrices = [w for w in quantization.weights if w.kind != "vector" and drawable(w.error)]
    largest = sorted(matrices, key=lambda w: (-w.parameters, w.name))[:MOST_MATRICES]
    charts.append(
        scatter(
            [Point(w.name, w.bits, w.error, w.kind) for w in largest if w.error],
            Frame(
                title="Rate and distortion of each matrix",
                about="A dot is a matrix: fewer bits to the left, less error below.",
                x="bits per weight",
                y="squared error, relative",
                log_y=True,
            ),
            front=False,
        )
    )
    return charts


def packed_charts(packed: Packed | None) -> list[Markup]:
    """What roles and sections take of the file."""
    if packed is None:
        return []
    held = sum(role.bytes for role in packed.roles)
    rest = Share("all else", packed.bytes - held)
    return [
        bars(
            [_bar(share, packed.bytes) for share in (*packed.roles, rest)],
            title="Bytes by role",
            about="What kinds of weight take; all else is the tokenizer, tables and the frame.",
            x="bytes",
        ),
        bars(
            [
                _bar(share, packed.bytes)
                for share in sorted(packed.sections, key=lambda s: (-s.bytes, s.name))
                if share.bytes
            ],
            title="Bytes by section",
            about="What the parts of the file take, every byte accounted for.",
            x="bytes",
        ),
    ]


def score_charts(scores: Sequence[Scored]) -> list[Markup]:
    """Bits per byte as the text goes by."""
    drawn = [score for score in scores if score.documents]
    drawn = [score for score in drawn if score.digest == drawn[0].digest][:MOST_SCORES]
    if not drawn:
        return []
    charts = [
        line(
            [Series(score.policy, score.running(), f"ends at {score.bpb:.4f}") for score in drawn],
            Frame(
                title="Bits per byte as the text goes by",
                about="Of all the text up to each position. A model that learns from what it has "
                "scored pulls away from one that does not.",
                x="bytes of text scored",
                y="bits per byte so far",
            ),
        )
    ]
    base, others = drawn[0], [score for score in drawn[1:] if score.adapts]
    if base.adapts or not base.bpb or not others:
        return charts
    saved = [
        Series(
            score.policy,
            [
                (at, None if not a or b is None else 100 * (1 - b / a))
                for (at, a), (_, b) in zip(base.running(), score.running(), strict=False)
            ],
            f"ends at {100 * (1 - score.bpb / base.bpb):.1f} %",
        )
        for score in others
    ]
    return [
        *charts,
        line(
            saved,
            Frame(
                title="What learning on the way saves",
                about=f"Percent fewer bits than {base.policy}, for the text up to each position.",
                x="bytes of text scored",
                y="percent of the bits saved",
            ),
        ),
    ]


def _bar(share: Share, whole: int) -> Bar:
    return Bar(share.name, share.bytes, f"{share.bytes:,.0f} ({100 * share.bytes / whole:.1f} %)")


def _learnt(training: Sequence[Pair], held_out: Sequence[Pair]) -> list[Series]:
    """The same measure of the text that is trained on and of the one that is held out."""
    return [
        Series("training text", training, _last(training)),
        Series("held-out text", held_out, _last(held_out), dots=True),
    ]


def _last(points: Sequence[Pair]) -> str:
    known = [y for _, y in points if drawable(y)]
    return f"ends at {known[-1]:.4f}" if known else ""


def _at(dot: tuple[float, float] | None) -> str:
    return "" if dot is None else f"{dot[0]:.2f} bits, KL {dot[1]:.4g}"


def _room(headroom: int) -> str:
    side = "below" if headroom >= 0 else "OVER"
    return f", {abs(headroom):,} {side} the budget"


def _told(training: Training) -> str:
    known = [
        "" if training.tokens is None else f"{training.tokens:,} tokens",
        "" if training.seconds is None else f"{training.seconds:,.0f} s",
    ]
    told = " in ".join(filter(None, known))
    return f"trained on {told}" if told else ""


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _figure(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
