"""What came of the demo: the ways to store a text, side by side."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from segpt.config.base import PlainSpec, spec
from segpt.errors import SegptError
from segpt.stages import json_files
from segpt.values import Artifact, Score


@spec
class DemoRow(PlainSpec):
    """A way to store the text: in so many ``bytes``, beside which a model may be needed."""

    step: str
    bytes: int
    artifact: int | None
    bpb: float
    what: str


@spec
class DemoText(PlainSpec):
    """The text that was scored: its name, its bytes, and the mode of reading."""

    name: str
    bytes: int
    mode: str


@spec
class DemoResult(PlainSpec):
    """What ``segpt demo --json`` says, and the demo keeps in its directory.

    Figures in bits per byte: ``bpb_float`` and ``bpb_quantized`` before and after quantization on
    what ``measured_on`` says, ``bpb`` and ``bpb_ttt`` of the packed file on ``text``, and
    ``compressors`` of others on the same. ``bytes`` are those of the packed file.
    """

    rows: tuple[DemoRow, ...]
    text: DemoText
    measured_on: str
    artifact: str
    bytes: int
    budget: int
    parameters: int
    bpb_float: float
    bpb_quantized: float
    quantization_cost: float
    bpb: float
    bpb_ttt: float
    tokens_per_second: float | None
    compressors: Mapping[str, float]
    seed: int
    seconds: float


class ScoreFigures(NamedTuple):
    """A score as far as the table needs it: which text, its bytes, bits for each, and the mode."""

    text: str
    bytes: int
    bpb: float
    mode: str

    @classmethod
    def of(cls, score: Score) -> "ScoreFigures":
        """The figures of a score that was just made."""
        return cls(score.text, score.bytes, score.bpb, score.conditions.reading.mode)


def stored(place: Path, artifact: Artifact) -> ScoreFigures | None:
    """The score of a packed file that an interrupted demo has stored; None if there is none."""
    try:
        plain = json_files.read_json(place, "the score")
        same = plain["origin"]["artifact"] == artifact.digest
        mode = str(plain["conditions"]["mode"])
        figures = ScoreFigures(str(plain["text"]), int(plain["bytes"]), float(plain["bpb"]), mode)
        return figures if same else None
    except (SegptError, KeyError, TypeError, ValueError):
        return None


def rows(
    plain: ScoreFigures,
    adapted: ScoreFigures,
    yardstick: Mapping[str, float],
    *,
    artifact: int,
    parameters: int,
) -> tuple[DemoRow, ...]:
    """The ways to store the text, from the worst compressor to the adapted model.

    Args:
        plain: the score of the packed model.
        adapted: its score with test-time training.
        yardstick: bits per byte of each compressor.
        artifact: bytes of the packed model.
        parameters: of the model.
    """
    size = plain.bytes
    gain = 100 * (1 - adapted.bpb / plain.bpb)
    packed = 8 * artifact / parameters
    table = [
        _row(name, size, None, bpb, f"{name} at its best, on the text alone")
        for name, bpb in sorted(yardstick.items(), key=lambda item: -item[1])
    ]
    about = f"the packed model, {packed:.2f} bits per weight, by its score"
    table.append(_row("score", size, artifact, plain.bpb, about))
    about = f"it learns from what it has scored: {gain:.1f} % fewer bits"
    table.append(_row("score --ttt", size, artifact, adapted.bpb, about))
    return tuple(table)


def _row(step: str, text: int, artifact: int | None, bpb: float, about: str) -> DemoRow:
    """A way to store ``text`` bytes, beside which a model of ``artifact`` bytes may be needed."""
    size = round(bpb * text / 8)
    return DemoRow(step=step, bytes=size, artifact=artifact, bpb=bpb, what=about)
