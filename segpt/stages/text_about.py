"""What a checkpoint remembers of the text that it was trained and validated on."""

from pathlib import Path

from segpt.config.run_about import SourceAbout, SplitAbout, TextAbout, ValidationAbout
from segpt.data.mix import Mix, TrainingText
from segpt.data.validation import ValidationSets
from segpt.values import Tokens


def text_about(text: TrainingText, held_out: ValidationSets | None) -> TextAbout:
    """The text of a run, each of its splits by name, size and digests."""
    sources: tuple[SourceAbout, ...] = ()
    if isinstance(text, Mix):
        sources = tuple(
            SourceAbout(
                name=source.name,
                place=str(place_of(source.tokens)),
                share=str(source.share),
                limit=source.limit,
                training=_split(source.tokens),
            )
            for source in text.sources
        )
    return TextAbout(
        training=_split(text),
        place=None if isinstance(text, Mix) else str(place_of(text)),
        validation=None if held_out is None else _split(held_out.first),
        sources=sources,
        validations=tuple(
            ValidationAbout(name=name, place=str(place_of(tokens)), split=_split(tokens))
            for name, tokens in ({} if held_out is None else held_out.named()).items()
        ),
    )


def place_of(tokens: Tokens) -> Path:
    """The directory that holds both splits."""
    return tokens.folder.absolute().parent


def _split(tokens: TrainingText) -> SplitAbout:
    return SplitAbout(
        name=tokens.text,
        split=tokens.split,
        tokens=tokens.count,
        bytes=tokens.bytes,
        digest=tokens.digest,
        text_digest=tokens.text_digest,
        tokenizer=tokens.tokenizer.fingerprint,
    )
