"""Which prepared text a model is trained on, and the recipe that fits its vocabulary."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from segpt.config.mixture import is_mixture_file, read_mixture
from segpt.config.recipe import Bpe, Bytes, Recipe
from segpt.data.tokenizer import load
from segpt.errors import SpecError

from . import prepared
from .mixtures import OpenMixture, look_up
from .prepared import BUILTIN, Prepared, TextReading


class Chosen(NamedTuple):
    """The text to train on; without ``text`` it is the built-in one under the recipe's tokenizer.

    It is ``named`` if the user named it, and the newest one if not. Of a mix, ``text`` is the first
    source and ``mixture`` all of it.
    """

    reading: TextReading
    text: Prepared | None
    named: bool
    mixture: OpenMixture | None = None


class Fitted(NamedTuple):
    """A recipe with the vocabulary of a text, and a line about what was changed for that."""

    recipe: Recipe
    line: str | None = None


def choose(recipe: Recipe, data: Path | None, *, adapt: bool) -> Chosen:
    """The text that is trained on: named, prepared last, or else built in.

    Args:
        recipe: as the user asked for it.
        data: a directory that was named, a file that names several, or the word ``builtin``.
        adapt: whether the model may take the vocabulary of the text.

    Raises:
        DataError: if there is no such text.
        SpecError: if a file that names texts is wrong.
    """
    mixture = recipe.data if data is None else None
    if data is not None and is_mixture_file(data):
        mixture = read_mixture(data)
    if mixture is not None:
        mixed = look_up(mixture)
        return Chosen(mixed.reading(), mixed.texts[0], True, mixed)
    text = None
    if not prepared.is_builtin(data):
        text = prepared.last() if data is None else prepared.named(data)
    if data is None and text is not None and text.built_in and not adapt:
        text = None if text.tokenizer.vocab != recipe.model.vocab else text  # of the same text
    reading = prepared.builtin_reading(recipe) if text is None else text.reading()
    return Chosen(reading, text, data is not None)


def fit(recipe: Recipe, chosen: Chosen, settings: Sequence[str], *, adapt: bool) -> Fitted:
    """The recipe with the vocabulary of the chosen text, if it may have that.

    Args:
        recipe: as the user asked for it.
        chosen: the text.
        settings: what the user set; a vocabulary or start among them stays.
        adapt: whether the model may take the vocabulary of the text.

    Raises:
        SpecError: if the vocabularies differ, and have to.
    """
    text = chosen.text
    if text is None:
        return Fitted(recipe)
    vocab, start = text.tokenizer.vocab, load(text.tokenizer).start
    model, odd = recipe.model, {}
    if model.vocab != vocab:
        odd["model.vocab"] = vocab
    if model.start not in (None, start):
        odd["model.start"] = start
    if not odd:
        return Fitted(recipe)
    if not adapt or any(setting.partition("=")[0] in odd for setting in settings):
        what = f"the newest prepared text, {text.place}"
        if chosen.named:
            what = f"{text.place} ({text.train.text})"
        sets = " ".join(f"--set {key}={value}" for key, value in odd.items())
        raise SpecError(
            f"{what}, has {_vocabulary(vocab, start)}, and recipe {recipe.name} "
            f"{_vocabulary(model.vocab, model.start)}; add {sets} to train a model for the text, "
            f"prepare the text with the vocabulary of the recipe, or name another with --data "
            f"(--data {BUILTIN} is the built-in text)"
        )
    tokenizer = Bytes() if text.tokenizer.kind == "bytes" else Bpe(vocab=vocab)
    fitted = dataclasses.replace(model, vocab=vocab, start=None if model.start is None else start)
    return Fitted(
        dataclasses.replace(recipe, model=fitted, tokenizer=tokenizer),
        f"model.vocab={vocab} as the text has it, and not {model.vocab} as recipe {recipe.name} "
        "says; --recipe keeps to a recipe",
    )


def _vocabulary(vocab: int, start: int | None) -> str:
    opens = "" if start is None else f" in which token {start} starts a document"
    return f"a vocabulary of {vocab:,}{opens}"
