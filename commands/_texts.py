"""Which prepared text a command reads: that which was named, the model's own, or the newest.

A text is known by digests, wherever it lies: that of its bytes, which any tokenizer leaves as it
is, and that of its tokens, which is in the origin of every model that was trained on them.
"""

import contextlib
import dataclasses
import functools
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segpt.config.base import ADDED, PlainSpec, spec
from segpt.config.recipe import Bpe, Bytes, Recipe
from segpt.config.run_about import TextAbout
from segpt.data.corpus import builtin
from segpt.data.manifest import Manifest
from segpt.data.manifest import read as read_manifest
from segpt.data.text import document_hash, text_digest
from segpt.data.tokenizer import load
from segpt.errors import DataError, SegptError, SpecError
from segpt.locks import locked
from segpt.stages import checkpoint_io, prepare, quantized_io, run_directory
from segpt.values import Checkpoint, Origin, Quantized, Text, Tokenizer, Tokens, documents_digest

from . import _latest, _processes, _report

BUILTIN = "builtin"  # names the built-in text wherever a text is named
DIGITS = 12  # of a digest that people see
_PREPARING = 600.0  # seconds for another command that prepares the built-in text

Splits = tuple[Tokens, Tokens]


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
    """A text that will be read: how to open it, and the names of its splits."""

    open: Callable[[], Splits]
    names: Sequence[NamedText]

    def say(self) -> None:
        """Name the text in the leading process."""
        say(self.names)


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
        return [_name(m, self.place) for m in (self.train, self.validation)]

    def open(self) -> Splits:
        """The tokens, verified.

        Raises:
            DataError: if they are damaged.
        """
        return prepare.open_splits(self.place)


def say(texts: Iterable[NamedText]) -> None:
    """Name what is read, as the first line of a command; once, however many processes there are."""
    if _processes.leads():
        _report.notice(line(texts))


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
    return [_name(tokens, tokens.shards[0].path.parent.parent) for tokens in splits]


def _name(split: Manifest | Tokens, place: Path) -> NamedText:
    return NamedText(
        name=split.text,
        split=split.split,
        bytes=split.bytes,
        digest=split.text_digest,
        tokens_digest=split.digest,
        place=str(place),
    )


def named(data: Path) -> Prepared:
    """The prepared text that the user named.

    Raises:
        DataError: if there is none, or its manifests are damaged.
    """
    if not _latest.is_text(data):
        prepare.open_splits(data)  # raises, and says what is missing
    return _prepared(data)


def newest() -> Prepared | None:
    """The text that the user prepared last; None if none ever was.

    Raises:
        DataError: if it is gone or damaged: to take another one instead would be a guess.
    """
    place = _latest.remembered("data")
    if place is None:
        found = [text for p in _latest.texts() if (text := _sound(p)) is not None]
        others = [text for text in found if not text.built_in]
        return max(others, key=lambda text: text.place.stat().st_mtime, default=None)
    if not _latest.is_text(place):
        raise DataError(
            f"{place}, the text that was prepared last, is gone; prepare it again, or name "
            f"another with --data (--data {BUILTIN} is the built-in text)"
        )
    return _prepared(place)


# To train on.


def for_training(
    recipe: Recipe,
    data: Path | None,
    *,
    adapt: bool,
    settings: Sequence[str] = (),
    dry: bool = False,
) -> tuple[Recipe, TextReading]:
    """The text that is trained on: named, prepared last, or else built in; and the recipe for it.

    Args:
        recipe: as the user asked for it.
        data: a directory that was named, or the word ``builtin``.
        adapt: whether the model may take the vocabulary of the text, with a line that says so.
        settings: what the user set; a vocabulary or start among them stays.
        dry: whether nothing will be trained, so that a vocabulary that differs is only said.

    Raises:
        SpecError: if the vocabularies differ and ``adapt`` is false.
        DataError: if there is no such text.
    """
    text = None
    if not _is_builtin(data):
        text = newest() if data is None else named(data)
    if data is None and text is not None and text.built_in and not adapt:
        text = None if text.tokenizer.vocab != recipe.model.vocab else text  # of the same text
    reading = _built_in(recipe) if text is None else TextReading(text.open, text.names())
    reading.say()
    if text is not None:
        try:
            recipe = _fitted(recipe, text, adapt, settings, named=data is not None)
        except SpecError as error:
            if not dry:
                raise
            _report.notice(f"to train it here would fail: {error}")
    return recipe, reading


def _is_builtin(data: Path | None) -> bool:
    return data is not None and str(data) == BUILTIN and not data.exists()


def _fitted(
    recipe: Recipe, text: Prepared, adapt: bool, settings: Sequence[str], *, named: bool
) -> Recipe:
    """The recipe with the vocabulary of a text, if it may have that."""
    vocab, start = text.tokenizer.vocab, load(text.tokenizer).start
    model, odd = recipe.model, {}
    if model.vocab != vocab:
        odd["model.vocab"] = vocab
    if model.start not in (None, start):
        odd["model.start"] = start
    if not odd:
        return recipe
    stays = [s.partition("=")[0] for s in settings if s.partition("=")[0] in odd]
    what = (
        f"{text.place} ({text.train.text})" if named else f"the newest prepared text, {text.place}"
    )
    if stays or not adapt:
        sets = " ".join(f"--set {key}={value}" for key, value in odd.items())
        raise SpecError(
            f"{what}, has {_vocabulary(vocab, start)}, and recipe {recipe.name} "
            f"{_vocabulary(model.vocab, model.start)}; add {sets} to train a model for the text, "
            f"prepare the text with the vocabulary of the recipe, or name another with --data "
            f"(--data {BUILTIN} is the built-in text)"
        )
    tokenizer = Bytes() if text.tokenizer.kind == "bytes" else Bpe(vocab=vocab)
    fitted = dataclasses.replace(model, vocab=vocab, start=None if model.start is None else start)
    if _processes.leads():
        _report.notice(
            f"model.vocab={vocab} as the text has it, and not {model.vocab} as recipe "
            f"{recipe.name} says; --recipe keeps to a recipe"
        )
    return dataclasses.replace(recipe, model=fitted, tokenizer=tokenizer)


def _vocabulary(vocab: int, start: int | None) -> str:
    opens = "" if start is None else f" in which token {start} starts a document"
    return f"a vocabulary of {vocab:,}{opens}"


def _built_in(recipe: Recipe) -> TextReading:
    text = _sound(_builtin_place(recipe))
    names = _builtin_names() if text is None or not text.built_in else text.names()
    return TextReading(lambda: builtin_splits(recipe), names)


def _builtin_names() -> list[NamedText]:
    return [
        _text_name(builtin("train"), "train"),
        _text_name(builtin("validation"), "validation"),
    ]


def _text_name(text: Text, split: str) -> NamedText:
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
    place = _latest.RUNS / "data" / f"{BUILTIN}-{vocab}"
    text = _sound(place)
    users = text is not None and not text.built_in  # whose file has that name
    return place.with_name(f"{place.name}-text") if users else place


def builtin_splits(recipe: Recipe) -> Splits:
    """The built-in text under the recipe's tokenizer, prepared unless it is there already."""
    place = _builtin_place(recipe)
    with locked(place, wait=_PREPARING), _report.Bar("prepare built-in text") as bar:
        return prepare.builtin_splits(
            recipe.tokenizer, place, lambda split, done: bar.say(f"{split}: {done:,} bytes")
        )


# The text of a model.


class Known(NamedTuple):
    """What is known of the text that a model was trained and validated on.

    ``tokens`` is the fingerprint of its training tokens, ``validation`` the digest of the bytes
    it was validated on, ``place`` where it lay, and ``name`` what it was called; all but the
    first may be None.
    """

    tokens: str
    validation: str | None = None
    place: Path | None = None
    name: str | None = None
    documents: str | None = None


def known(source: Checkpoint | Quantized, model: Path) -> Known:
    """What a model says of its text, or what it was made from at this place says.

    Raises:
        DataError: if its origin does not name any.
    """
    tokens = source.origin.get("tokens")
    if not tokens:
        raise DataError(f"{model} does not say which text it was trained on; name a text")
    text = _text_of(source) or _text_of_kin(source.origin, model) or TextAbout()
    return Known(
        tokens=tokens,
        validation=None if text.validation is None else text.validation.text_digest,
        place=None if text.place is None else Path(text.place),
        name=text.training.name,
        documents=source.origin.get("documents"),
    )


def of_model(source: Checkpoint | Quantized, model: Path, data: Path | None) -> TextReading:
    """The text that a model was trained on, wherever it was prepared.

    Raises:
        DataError: naming it, if it is nowhere to be found or ``data`` is another one.
    """
    wanted = known(source, model)
    text = None
    if data is None:
        text = _find(wanted, model)
    elif not _is_builtin(data):
        text = named(data)
        if text.fingerprint != wanted.tokens:
            raise DataError(
                f"{data} ({text.train.text}, tokens {text.fingerprint[:DIGITS]}) is not the text "
                f"that {model} was trained on, {_describe(wanted)}; name that with --data, or "
                "leave --data out"
            )
    if text is not None:
        return TextReading(text.open, text.names())
    if _is_of_builtin(wanted):
        return TextReading(lambda: _rebuilt(source, wanted), _builtin_names())
    raise DataError(
        f"{model} was trained on {_describe(wanted)}, which is not here any more; prepare it "
        "again in the same way, or name its directory with --data"
    )


def validation(source: Checkpoint | Quantized, model: Path) -> tuple[Text, NamedText]:
    """The validation split of the text that a model was trained on, and what to say of it.

    Raises:
        DataError: naming that text, if it is nowhere to be found.
    """
    wanted = known(source, model)
    if (text := _find(wanted, model)) is not None:
        _, held_out = text.open()
        return prepare.as_text(held_out), _name(held_out, text.place)
    if _is_of_builtin(wanted):
        return builtin_validation()
    line = f"segpt score {shlex.quote(str(model))} TEXT"
    raise DataError(
        f"{model} was trained on {_describe(wanted)}, which is not here any more, so there is no "
        f"text of its own to score; name one: {line} ({BUILTIN} is the built-in text)"
    )


def held_out(place: Path) -> tuple[Text, NamedText]:
    """The held-out part of a prepared text that was named, and what to say of it.

    Raises:
        DataError: if it is damaged, or its tokenizer loses text.
    """
    _, tokens = _prepared(place).open()
    return prepare.as_text(tokens), _name(tokens, place)


def builtin_validation() -> tuple[Text, NamedText]:
    """The held-out part of the built-in text, and what to say of it."""
    text = builtin("validation")
    return text, _text_name(text, "validation")


def _find(wanted: Known, model: Path) -> Prepared | None:
    """The prepared text that fits, from where it lay to wherever one is known."""
    places = [] if wanted.place is None else [_latest.from_here(wanted.place)]
    fits: dict[str, Prepared] = {}
    for place in [*places, *_latest.texts(model)]:
        text = _sound(place)
        if text is None or text.fingerprint != wanted.tokens:
            continue
        if wanted.validation in (None, text.validation.text_digest):
            fits.setdefault(text.validation.text_digest, text)
            if wanted.validation is not None:
                break
    if len(fits) > 1:
        both = " and ".join(str(text.place) for text in list(fits.values())[:2])
        raise DataError(
            f"{model} was trained on {_describe(wanted)}, and {both} hold it with different "
            "validation texts; name the text to read"
        )
    return next(iter(fits.values()), None)


def _describe(wanted: Known) -> str:
    name = "a text" if wanted.name is None else wanted.name
    place = "" if wanted.place is None else f", once in {wanted.place}"
    return f"{name} (tokens {wanted.tokens[:DIGITS]}{place})"


def _is_of_builtin(wanted: Known) -> bool:
    return wanted.documents is not None and wanted.documents == _builtin_documents()


@functools.cache
def _builtin_documents() -> str:
    try:
        hashes = [document_hash(document) for document in builtin("train")]
    except DataError:  # a Python without the sources of its library
        return ""
    return documents_digest(np.unique(np.array(hashes, np.uint64)))


def _rebuilt(source: Checkpoint | Quantized, wanted: Known) -> Splits:
    """The built-in text under the tokenizer of a model, prepared once more."""
    place = _latest.RUNS / "data" / f"{BUILTIN}-{source.tokenizer.fingerprint[:8]}"
    with locked(place, wait=_PREPARING), _report.Bar("prepare built-in text") as bar:
        splits = prepare.prepare(
            builtin("train"),
            builtin("validation"),
            source.tokenizer,
            place,
            lambda split, done: bar.say(f"{split}: {done:,} bytes"),
        )
    if splits[0].fingerprint != wanted.tokens:
        raise DataError(
            f"the model was trained on {_describe(wanted)}; the built-in text of this Python "
            "gives other tokens, so name its directory with --data"
        )
    return splits


def _text_of(source: Checkpoint | Quantized) -> TextAbout | None:
    about = source.about if isinstance(source, Checkpoint) else source.report
    return None if about is None or about.text == TextAbout() else about.text


def _text_of_kin(origin: Origin, model: Path) -> TextAbout | None:
    """What the checkpoint or quantized model that an artifact came from says of its text."""
    wanted = origin.get("checkpoint")
    if not wanted:
        return None
    for place in _beside(model):
        with contextlib.suppress(SegptError):
            if (text := _text_if_made(place, wanted)) not in (None, TextAbout()):
                return text
    return None


def _text_if_made(place: Path, checkpoint: str) -> TextAbout | None:
    """The text of the checkpoint of this fingerprint, or of the quantized model made from it."""
    if run_directory.kind_of(place) == "quantized":
        origin, report = quantized_io.read_quantized_header(place)
        if report is None or origin.get("checkpoint") != checkpoint:
            return None
        return report.text
    header = checkpoint_io.read_checkpoint_header(run_directory.newest_checkpoint(place))
    made = checkpoint in (header.fingerprint, header.origin.get("checkpoint"))
    return header.about.text if made else None


def _beside(model: Path) -> list[Path]:
    """Where quantized models and runs lie: beside an artifact, and below ``runs``."""
    beside = [model.parent, model.parent / "quantized", model.with_suffix("")]
    beside.append(model.with_name(f"{model.stem}-quantized"))
    known = [*_latest.on_disk("quantized"), *_latest.on_disk("checkpoint")]
    return list(dict.fromkeys([*beside, *known]))


def _prepared(place: Path) -> Prepared:
    train, tokenizer = read_manifest(place / "train")
    validation, _ = read_manifest(place / "validation")
    return Prepared(place, train, validation, tokenizer)


def _sound(place: Path) -> Prepared | None:
    """The prepared text at a place, if there is one that can be read."""
    try:
        return _prepared(place) if _latest.is_text(place) else None
    except (DataError, OSError, ValueError):
        return None
