"""How the commands name the text that they read, and how they open it."""

from collections.abc import Sequence
from pathlib import Path

from segpt.config.recipe import Recipe
from segpt.data.mix import TrainingText
from segpt.data.validation import ValidationSets
from segpt.errors import SpecError
from segpt.workspace import prepared, training_text
from segpt.workspace.mixtures import Validated, with_validation
from segpt.workspace.prepared import NamedText, Splits, TextReading

from . import _processes, _report


def say(texts: Sequence[NamedText]) -> None:
    """Name what is read, as the first line of a command; once, however many processes there are."""
    if _processes.leads():
        _report.notice(prepared.line(texts))


def read(reading: TextReading) -> Splits:
    """Open a text, and show how far it is where it has to be prepared for that."""
    if reading.prepares is None:
        return reading.open(lambda _: None)
    with _report.Bar(f"prepare {reading.prepares}") as bar:
        return reading.open(bar.say)


def read_for_training(reading: TextReading) -> tuple[TrainingText, ValidationSets]:
    """Open a text to train on, and what is validated on."""
    tokens, held_out = read(reading)
    return tokens, reading.sets(held_out)


def for_training(
    recipe: Recipe,
    data: Path | None,
    settings: Sequence[str],
    *,
    adapt: bool,
    dry: bool,
    validated: Sequence[Validated] = (),
) -> tuple[Recipe, TextReading]:
    """Name the text that is trained on; the recipe for it, and the text.

    Where nothing will be trained (``dry``), a vocabulary that differs is only said, and so is what
    a run would take of each text of a mix. Held-out texts that are ``validated`` replace its own.

    Raises:
        SpecError: if the vocabularies differ and ``adapt`` is false.
        DataError: if there is no such text.
    """
    chosen = training_text.choose(recipe, data, adapt=adapt)
    if validated:
        chosen = chosen._replace(reading=with_validation(chosen.reading, validated))
    say(chosen.reading.names)
    if dry and chosen.mixture is not None:
        for line in chosen.mixture.lines(recipe):
            _report.notice(line)
    try:
        fitted = training_text.fit(recipe, chosen, settings, adapt=adapt)
    except SpecError as error:
        if not dry:
            raise
        _report.notice(f"to train it here would fail: {error}")
        return recipe, chosen.reading
    if fitted.line is not None and _processes.leads():
        _report.notice(fitted.line)
    return fitted.recipe, chosen.reading
