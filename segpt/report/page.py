"""What a run came to, as one page that loads nothing: curves, bytes, scores and where they ran."""

import re
from collections.abc import Iterator
from dataclasses import replace

from jinja2 import Environment, PackageLoader, StrictUndefined

from segpt.errors import SegptError

from .contents import Report, Training
from .figure import STYLE
from .run_charts import packed_charts, quantization_charts, score_charts, training_charts

MOST_BYTES = 500_000  # of a page

# What a text could break the page or its reading order with, though every text is escaped:
# control characters, halves of a surrogate pair, and marks that turn the direction of writing.
_UNFIT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)


def page(report: Report) -> bytes:
    """The page in at most ``MOST_BYTES``: what is long and matters least goes where it must.

    Raises:
        SegptError: if even the figures alone do not fit.
    """
    for fewer in _fewer(report):
        if len(text := render(fewer).encode()) <= MOST_BYTES:
            return text
    raise SegptError(f"the page of {report.name} would take more than {MOST_BYTES:,} bytes")


def _fewer(report: Report) -> Iterator[Report]:
    yield report
    notice = "To keep the page small, {} left out."
    scores = tuple(replace(score, conditions=()) for score in report.scores)
    report = replace(report, recipe="", scores=scores)
    yield replace(
        report, notices=(*report.notices, notice.format("the recipe and conditions of scores are"))
    )
    report = replace(report, quantization=None, samples=(), lineage=(), rows=())
    yield replace(report, notices=(notice.format("all but figures and curves is"),))


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
    text = environment.get_template("report.html").render(
        report=report,
        style=STYLE,
        tiles=list(tiles(report)),
        training=training_charts(report.training),
        quantization=quantization_charts(report.quantization),
        packed=packed_charts(report.packed),
        scores=score_charts(report.scores),
    )
    return _UNFIT.sub("\ufffd", text)


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


def _room(headroom: int) -> str:
    side = "below" if headroom >= 0 else "OVER"
    return f", {abs(headroom):,} {side} the budget"


def _told(training: Training) -> str:
    known = [
        "" if training.tokens is None else f"{training.tokens:,} tokens",
        "" if training.seconds is None else f"{training.seconds:,.0f} s",
    ]
    parts = " in ".join(filter(None, known))
    return f"trained on {parts}" if parts else ""


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _figure(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
