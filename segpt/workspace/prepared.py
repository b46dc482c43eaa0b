"""Texts that were prepared here: where they lie, what they are called, and how they are opened.

A text is known by digests, wherever it lies: that of its bytes, which any tokenizer leaves as it
is, and that of its tokens, which is in the origin of every model that was trained on them.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from segpt.config.base import ADDED, PlainSpec, spec
from segpt.config.recipe import Bpe, Recipe
from segpt.data.corpus import builtin
from segpt.data.manifest import Manifest
from segpt.data.manifest import read as read_manifest
from segpt.data.mix import TrainingText
from segpt.data.text import text_digest
from segpt.data.validation import ValidationSets
from segpt.errors import DataError
from segpt.locks import locked
from segpt.stages import prepare
from segpt.values import Text, Tokenizer, Tokens

from . import newest

BUILTIN = "builtin"  # names the built-in text wherever a text is named
DIGITS = 12  # of a digest that people see
PREPARING = 600.0  # seconds for another command that prepares the built-in text

Splits = tuple[TrainingText, Tokens]
Report = Callable[[str], None]  # is told how far preparing is


@spec
class NamedText(PlainSpec):
    """A text, or a split of one, as commands name it.

    ``digest`` names the bytes of its documents and ``tokens_digest`` its tokens, None of a text
    that is not prepared and empty where texts have no tokens of their own. ``place`` is where it
    lies, None of what lies in no directory of its own.
    """

    name: str
    split: str | None
    bytes: int
    digest: str
    tokens_digest: str | None = dataclasses.field(default="", metadata=ADDED)
    place: str | None


class TextReading(NamedTuple):
    """A text that will be read: the names of its splits, and how to open it.

    ``prepares`` says what has to be prepared for that, if anything has. ``sets`` makes what a run
    validates on of the held-out text that comes with it: that, or others by name.
    """

    names: Sequence[NamedText]
    open: Callable[[Report], Splits]
    prepares: str | None = None
    sets: Callable[[Tokens], ValidationSets] = ValidationSets


class Prepared(NamedTuple):
    """A prepared text on disk: what its two manifests say."""

    place: Path
    train: Manifest
    validation: Manifest
    tokenizer: Tokenizer

    @property
    def fingerprint(self) -> str:
        """What models that were trained on it call it."""
        return self.train.digest[:16]

    @property
    def built_in(self) -> bool:
        return self.train.text.startswith(f"{BUILTIN}/")

    def names(self) -> list[NamedText]:
        """Both splits by their names."""
        return [of_split(m, self.place) for m in (self.train, self.validation)]

    def reading(self) -> TextReading:
        """The text as one that will be read."""
        return TextReading(self.names(), lambda _: self.open())

    def open(self) -> tuple[Tokens, Tokens]:
        """The tokens, verified.

        Raises:
            DataError: if they are damaged.
        """
        return prepare.open_splits(self.place)


def line(texts: Iterable[NamedText]) -> str:
    """One line about texts."""
    parts = [
        f"{text.name} ({text.split} split, {text.bytes:,} bytes, digest "
        f"{text.digest[:DIGITS]})".replace("None split, ", "")
        for text in texts
    ]
    places = dict.fromkeys(text.place for text in texts if text.place)
    return f"text: {'; '.join(parts)}" + "".join(f", in {place}" for place in places)


def of_tokens(*splits: Tokens) -> list[NamedText]:
    """Open splits by their names."""
    return [of_split(tokens, tokens.folder.parent) for tokens in splits]


def of_split(split: Manifest | Tokens, place: Path | None) -> NamedText:
    """The name of a split of a text that is prepared at ``place``, or in memory only."""
    return NamedText(
        name=split.text,
        split=split.split,
        bytes=split.bytes,
        digest=split.text_digest,
        tokens_digest=split.digest,
        place=None if place is None else str(place),
    )


def named(data: Path) -> Prepared:
    """The prepared text that the user named.

    Raises:
        DataError: if there is none, or its manifests are damaged.
    """
    if not newest.is_text(data):
        prepare.open_splits(data)  # raises, and says what is missing
    return at(data)


def last() -> Prepared | None:
    """The text that the user prepared last; None if none ever was.

    Raises:
        DataError: if it is gone or damaged: to take another one instead would be a guess.
    """
    place = newest.remembered("data")
    if place is None:
        texts = [text for place in newest.texts() if (text := sound(place)) is not None]
        others = [text for text in texts if not text.built_in]
        return max(others, key=lambda text: text.place.stat().st_mtime, default=None)
    if not newest.is_text(place):
        raise DataError(
            f"{place}, the text that was prepared last, is gone; prepare it again, or name "
            f"another with --data (--data {BUILTIN} is the built-in text)"
        )
    return at(place)


def at(place: Path) -> Prepared:
    """The text that was prepared at a place.

    Raises:
        DataError: if there is none, or its manifests are damaged.
    """
    train, tokenizer = read_manifest(place / "train")
    validation, _ = read_manifest(place / "validation")
    return Prepared(place, train, validation, tokenizer)


def sound(place: Path) -> Prepared | None:
    """The prepared text at a place, if there is one that can be read."""
    try:
        return at(place) if newest.is_text(place) else None
    except (DataError, OSError, ValueError):
        return None


def is_builtin(data: Path | None) -> bool:
    """Whether the user named the built-in text, and no directory of that name."""
    return data is not None and str(data) == BUILTIN and not data.exists()


def check_there(data: Path | None, advice: str = "; make one with: segpt data prepare") -> None:
    """See that a text that was named is there, or is the built-in one.

    Raises:
        SegptError: if it is not, with what to do about it.
    """
    if data is not None and not is_builtin(data):
        newest.existing(data, advice)


def builtin_names() -> list[NamedText]:
    """Both splits of the built-in text, which is not prepared, by their names."""
    return [
        _of_text(builtin("train"), "train"),
        _of_text(builtin("validation"), "validation"),
    ]


def _of_text(text: Text, split: str) -> NamedText:
    documents = list(text)
    return NamedText(
        name=text.name,
        split=split,
        bytes=sum(map(len, documents)),
        digest=text_digest(documents),
        tokens_digest=None,
        place=None,
    )


def _builtin_place(recipe: Recipe) -> Path:
    vocab = recipe.tokenizer.vocab if isinstance(recipe.tokenizer, Bpe) else "bytes"
    place = newest.RUNS / "data" / f"{BUILTIN}-{vocab}"
    text = sound(place)
    users = text is not None and not text.built_in  # whose file has that name
    return place.with_name(f"{place.name}-text") if users else place


def builtin_splits(recipe: Recipe, report: Report) -> tuple[Tokens, Tokens]:
    """The built-in text under the recipe's tokenizer, prepared unless it is there already."""
    place = _builtin_place(recipe)
    with locked(place, wait=PREPARING):
        return prepare.builtin_splits(recipe.tokenizer, place, progress(report))


def builtin_reading(recipe: Recipe) -> TextReading:
    """The built-in text under the recipe's tokenizer, as one that will be read."""
    text = sound(_builtin_place(recipe))
    names = builtin_names() if text is None or not text.built_in else text.names()
    return TextReading(names, lambda report: builtin_splits(recipe, report), "built-in text")


def progress(report: Report) -> Callable[[str, int], None]:
    """What preparing a text tells, as a line."""
    return lambda split, done: report(f"{split}: {done:,} bytes")


def held_out(place: Path) -> tuple[Text, NamedText]:
    """The held-out part of a prepared text that was named, and what to say of it.

    Raises:
        DataError: if it is damaged, or its tokenizer loses text.
    """
    _, tokens = at(place).open()
    return prepare.as_text(tokens), of_split(tokens, place)


def builtin_validation() -> tuple[Text, NamedText]:
    """The held-out part of the built-in text, and what to say of it."""
    text = builtin("validation")
    return text, _of_text(text, "validation")
