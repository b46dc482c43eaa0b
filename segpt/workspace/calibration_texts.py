"""The texts that calibrate and measure a model of which no text of its own is known."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from segpt.config.base import PlainSpec, spec
from segpt.config.quant import QuantSpec
from segpt.data.corpus import builtin
from segpt.data.held_tokens import hold_tokens
from segpt.data.text import read_text
from segpt.data.tokens import overlap
from segpt.errors import DataError
from segpt.stages import prepare
from segpt.stages.calibration_text import BATCH_TOKENS
from segpt.values import Checkpoint, Text, Tokens

from . import newest, prepared
from .prepared import TextReading

CALIBRATION, HELD_OUT = "calibration", "held-out"  # what the parts are called


@spec
class CalibrationPaths(PlainSpec):
    """Where the texts lie, and the field of jsonl and parquet files that holds them."""

    calibration: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    field: str = "text"


def checked(
    paths: CalibrationPaths, checkpoint: Checkpoint, model: Path
) -> CalibrationPaths | None:
    """The texts of a model that needs some; None of one that knows its own.

    Raises:
        DataError: if they are missing, or named for a model that knows its own.
        SegptError: if one of them is not there.
    """
    if not checkpoint.trained_elsewhere:
        if paths.calibration or paths.held_out:
            raise DataError(
                f"{model} knows the text it was trained on, which calibrates; leave out "
                "--calibration and --held-out"
            )
        return None
    if not (paths.calibration and paths.held_out):
        line = shlex.join(["segpt", "quantize", str(model)])
        raise DataError(
            f"what {model} was trained on is not known, so a text that calibrates and another "
            f"that the damage is measured on have to be named: {line} --calibration TEXT "
            "--held-out TEXT"
        )
    for path in (*paths.calibration, *paths.held_out):
        prepared.check_there(Path(path), advice="")
    return paths


def read(
    paths: CalibrationPaths,
    checkpoint: Checkpoint,
    plan: QuantSpec,
    report: prepared.Report,
    notice: Callable[[str], None],
) -> TextReading:
    """Tokenize both texts in memory, as far as they will be read.

    Raises:
        DataError: if one is empty, cannot be spelled by the tokenizer, or shares a document with
            the other.
    """
    row = plan.row(checkpoint.spec.context)
    tunes = plan.tune_steps * (len(checkpoint.spec.layers) + 2) if plan.designed else 0
    most = {
        CALIBRATION: plan.calibration_tokens + tunes * BATCH_TOKENS + 2 * row,
        HELD_OUT: plan.report_tokens + row,
    }

    def held(split: str, places: tuple[str, ...]) -> Tokens:
        text = _text([Path(place) for place in places], split, paths.field, notice)
        tell = prepared.progress(report)
        return hold_tokens(
            text, checkpoint.tokenizer, split, most[split], lambda done: tell(split, done)
        )

    calibration, held_out = held(CALIBRATION, paths.calibration), held(HELD_OUT, paths.held_out)
    if (shared := overlap(calibration, held_out)).size:
        raise DataError(
            f"{shared.size:,} documents are in both {calibration.text} and {held_out.text}; what "
            "the damage is measured on must not calibrate: remove them from one of the two"
        )
    names = [prepared.of_split(tokens, None) for tokens in (calibration, held_out)]
    return TextReading(names, lambda _: (calibration, held_out))


def _text(places: Sequence[Path], split: str, field: str, notice: Callable[[str], None]) -> Text:
    """The documents of places, which part of them it is where they have two."""
    if len(places) == 1 and prepared.is_builtin(places[0]):
        return builtin("train" if split == CALIBRATION else "validation")
    if len(places) == 1 and newest.is_text(places[0]):
        training, validation = prepared.at(places[0]).open()
        return prepare.as_text(training if split == CALIBRATION else validation)
    return read_text(places, field=field, notice=notice)
