"""Which prepared text a model was trained on, wherever that lies."""

import contextlib
import functools
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segpt.config.run_about import TextAbout
from segpt.data.corpus import builtin
from segpt.data.text import document_hash
from segpt.errors import DataError, SegptError
from segpt.locks import locked
from segpt.stages import checkpoint_io, prepare, quantized_io, run_directory
from segpt.values import Checkpoint, Origin, Quantized, Text, documents_digest

from . import mixtures, newest, prepared
from .prepared import BUILTIN, DIGITS, NamedText, Prepared, TextReading


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
    text = _about_text(source, model)
    own = text.validation if not text.validations else None  # else it is of another text
    return Known(
        tokens=tokens,
        validation=None if own is None else own.text_digest,
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
    about, text = _about_text(source, model), None
    if about.sources and data is None:
        return mixtures.of_about(about, model, None)
    if about.sources:
        raise DataError(f"{model} was trained on a mix, which it knows; leave out --data")
    if data is None:
        text = _find(wanted, model)
    elif not prepared.is_builtin(data):
        text = prepared.named(data)
        if text.fingerprint != wanted.tokens:
            raise DataError(
                f"{data} ({text.train.text}, tokens {text.fingerprint[:DIGITS]}) is not the text "
                f"that {model} was trained on, {_describe(wanted)}; name that with --data, or "
                "leave --data out"
            )
    if text is not None:
        return mixtures.of_about(about, model, text)
    if _is_of_builtin(wanted):
        return TextReading(
            prepared.builtin_names(),
            lambda report: _rebuilt(source, wanted, report),
            "built-in text",
        )
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
    about = _about_text(source, model)
    if about.validations:
        held_out, place = mixtures.validation_of(about, model)
        return prepare.as_text(held_out), prepared.of_split(held_out, place)
    if (text := _find(wanted, model)) is not None:
        _, held_out = text.open()
        return prepare.as_text(held_out), prepared.of_split(held_out, text.place)
    if _is_of_builtin(wanted):
        return prepared.builtin_validation()
    line = f"segpt score {shlex.quote(str(model))} TEXT"
    raise DataError(
        f"{model} was trained on {_describe(wanted)}, which is not here any more, so there is no "
        f"text of its own to score; name one: {line} ({BUILTIN} is the built-in text)"
    )


def _find(wanted: Known, model: Path) -> Prepared | None:
    """The prepared text that fits, from where it lay to wherever one is known."""
    places = [] if wanted.place is None else [newest.from_here(wanted.place)]
    fits: dict[str, Prepared] = {}
    for place in [*places, *newest.texts(model)]:
        text = prepared.sound(place)
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


def _rebuilt(
    source: Checkpoint | Quantized, wanted: Known, report: prepared.Report
) -> prepared.Splits:
    """The built-in text under the tokenizer of a model, prepared once more."""
    place = newest.RUNS / "data" / f"{BUILTIN}-{source.tokenizer.fingerprint[:8]}"
    with locked(place, wait=prepared.PREPARING):
        splits = prepare.prepare(
            builtin("train"),
            builtin("validation"),
            source.tokenizer,
            place,
            prepared.progress(report),
        )
    if splits[0].fingerprint != wanted.tokens:
        raise DataError(
            f"the model was trained on {_describe(wanted)}; the built-in text of this Python "
            "gives other tokens, so name its directory with --data"
        )
    return splits


def _about_text(source: Checkpoint | Quantized, model: Path) -> TextAbout:
    """What a model says of its text, or what it was made from does."""
    return _text_of(source) or _text_of_kin(source.origin, model) or TextAbout()


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
    known = [*newest.on_disk("quantized"), *newest.on_disk("checkpoint")]
    return list(dict.fromkeys([*beside, *known]))
