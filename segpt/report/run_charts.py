"""The charts of a run: its training, its quantization, its packed file and its scores."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from .chart import BarMark, Frame, Pair, Point, Series, bars, line, scatter
from .contents import Logged, Packed, Quantization, ReportedScore, Share, Training
from .scale import drawable

MOST_MATRICES = 300  # dots of one chart, the largest matrices first
MOST_SCORES = 6  # of one chart


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
    if len(training.by_set) > 1:
        charts.append(_validation_sets(training.by_set))
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
    charts.append(_learning_rates(training, measured["rate"]))
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
            [BarMark(row.name, row.bits, f"{row.bits:.2f}") for row in quantization.layers],
            title="Bits per weight, by layer",
            about="Where the bits went: layers that matter more to the text are given more.",
            x="bits per weight",
        )
    ]
    if quantization.curve:
        this_model = [] if quantization.here is None else [quantization.here]
        charts.append(
            line(
                [
                    Series("at other rates, untuned", quantization.curve, dots=True),
                    Series("this model", this_model, _at(quantization.here), dots=True),
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


def score_charts(scores: Sequence[ReportedScore]) -> list[Markup]:
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


def _bar(share: Share, whole: int) -> BarMark:
    return BarMark(
        share.name, share.bytes, f"{share.bytes:,.0f} ({100 * share.bytes / whole:.1f} %)"
    )


def _learning_rates(training: Training, multiplier: Sequence[Pair]) -> Markup:
    """The rates of the recipe, or their multiplier alone where it is not known what it scales."""
    rates = [
        Series(name, [(x, None if y is None else rate * y) for x, y in multiplier])
        for name, rate in training.rates.items()
    ]
    return line(
        rates or [Series("all weights", multiplier)],
        Frame(
            title="Learning rates",
            about="How far a step moves each kind of weight, as the recipe's schedule has it.",
            x="steps",
            y="rate" if rates else "share of the highest rate",
        ),
    )


def _validation_sets(by_set: Mapping[str, Sequence[Pair]]) -> Markup:
    """Bits per byte of each held-out text; the first is what the best checkpoint is chosen by."""
    return line(
        [Series(name, curve, _last(curve), dots=True) for name, curve in by_set.items()],
        Frame(
            title="Bits per byte, by held-out text",
            about="The same measure of every text that the run was validated on.",
            x="steps",
            y="bits per byte",
        ),
    )


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
