"""Several prepared texts as one to train on, and several to validate on."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from segpt.config.mixture import Mixture
from segpt.config.recipe import Recipe
from segpt.config.run_about import SplitAbout, TextAbout
from segpt.config.schedule import Steps
from segpt.data.manifest import NAME as MANIFEST
from segpt.data.manifest import read as read_manifest
from segpt.data.mix import Mix, MixedSource, TrainingText
from segpt.data.tokens import read_tokens
from segpt.data.validation import ValidationSets
from segpt.errors import DataError, SegptError, SpecError
from segpt.values import Tokens

from . import newest, prepared
from .prepared import DIGITS, NamedText, Prepared, TextReading


class Validated(NamedTuple):
    """A held-out text by its name in the run, and where it lies."""

    name: str
    place: Path


def read_validated(written: Sequence[str]) -> list[Validated]:
    """Held-out texts from ``NAME=PATH``, or from paths whose last part is the name.

    Raises:
        SpecError: if there is no path, or two have one name.
    """
    sets: list[Validated] = []
    for each in written:
        name, equals, path = each.partition("=")
        if not equals:
            name, path = Path(each).name, each
        if not name or not path:
            raise SpecError(f"--validation {each!r}: write NAME=PATH")
        if any(name == other.name for other in sets):
            raise SpecError(f"--validation {name} is there twice; give each set its own name")
        sets.append(Validated(name, Path(path)))
    return sets


def open_validation(place: Path) -> Tokens:
    """The validation split of a prepared text, or one directory of tokens.

    Raises:
        DataError: if it is neither, or damaged.
    """
    if (place / MANIFEST).is_file():
        return read_tokens(place)
    return prepared.named(place).open()[1]


def sets_of(validated: Sequence[Validated]) -> ValidationSets:
    """The held-out texts, opened; the first is what the best checkpoint is chosen by."""
    first, *others = validated
    return ValidationSets(
        open_validation(first.place),
        first.name,
        {each.name: open_validation(each.place) for each in others},
    )


def with_validation(reading: TextReading, validated: Sequence[Validated]) -> TextReading:
    """A text that is validated on other held-out texts than its own."""
    names = [text for text in reading.names if text.split != "validation"]
    names += [_validation_name(each) for each in validated]
    return reading._replace(names=names, sets=lambda _: sets_of(validated))


def _validation_name(validated: Validated) -> NamedText:
    place = validated.place
    if (place / MANIFEST).is_file():
        return prepared.of_split(read_manifest(place)[0], place.parent)
    return prepared.of_split(prepared.named(place).validation, place)


class OpenMixture(NamedTuple):
    """A mix as it is written, with the text of each source as its manifests say."""

    mixture: Mixture
    texts: tuple[Prepared, ...]

    def reading(self) -> TextReading:
        """The mix as one that will be read; each source's held-out part is a validation set."""
        validated = [
            Validated(source.called, text.place)
            for source, text in zip(self.mixture.sources, self.texts, strict=True)
        ]
        names = [prepared.of_split(text.train, text.place) for text in self.texts]
        names += [prepared.of_split(text.validation, text.place) for text in self.texts]
        return TextReading(names, lambda _: self._open(), sets=lambda _: sets_of(validated))

    def lines(self, recipe: Recipe) -> list[str]:
        """What a run takes of each source, for people, from what the manifests say."""
        context, length = recipe.model.context, recipe.train.length
        blocks = length.count * recipe.train.batch if isinstance(length, Steps) else None
        lines = []
        parts = zip(self.mixture.sources, self.mixture.shares(), self.texts, strict=True)
        for source, share, text in parts:
            count = min(text.train.count, source.tokens or text.train.count)
            lines.append(
                f"{source.called}: {float(100 * share):.4g} % of the blocks"
                + ("" if blocks is None else _epochs(share * blocks * context, count))
                + f"; it has {text.train.count:,} tokens"
                + ("" if source.tokens is None else f", and a quota of {source.tokens:,}")
            )
        return lines

    def _open(self) -> tuple[Mix, Tokens]:
        opened = [text.open() for text in self.texts]
        sources = tuple(
            MixedSource(source.called, tokens, share, source.tokens)
            for source, share, (tokens, _) in zip(
                self.mixture.sources, self.mixture.shares(), opened, strict=True
            )
        )
        return Mix(sources), opened[0][1]


def _epochs(tokens: Fraction, count: int) -> str:
    epochs = float(tokens / count)
    return f", about {epochs:.2f} epochs" + (" (it repeats)" if epochs > 1 else "")


def look_up(mixture: Mixture) -> OpenMixture:
    """A mix whose texts are here.

    Raises:
        DataError: naming a text that is not.
    """
    texts = []
    for source in mixture.sources:
        try:
            newest.existing(Path(source.path))
        except SegptError as error:
            raise DataError(
                f"the mix names {source.path}, which is not here; prepare it first, or correct "
                "the path (paths are as on the command line)"
            ) from error
        texts.append(prepared.named(Path(source.path)))
    return OpenMixture(mixture, tuple(texts))


def of_about(text: TextAbout, model: Path, single: Prepared | None) -> TextReading:
    """The texts that a model was trained on and is validated on, wherever they are now.

    Args:
        text: what the model says of them.
        model: where it lies.
        single: the text, where it was trained on one.

    Raises:
        DataError: naming the first that is nowhere to be found, or changed.
    """
    if single is not None:
        reading = single.reading()
    else:
        texts = [_find(s.training, Path(s.place), model) for s in text.sources]
        reading = TextReading(
            [prepared.of_split(each.train, each.place) for each in texts],
            lambda _: _remix(text, texts),
        )
    if not text.validations:
        return reading
    places = [_find_held_out(v.split, Path(v.place), model) for v in text.validations]
    validated = [Validated(v.name, p) for v, p in zip(text.validations, places, strict=True)]
    return with_validation(reading, validated)


def _remix(text: TextAbout, texts: Sequence[Prepared]) -> tuple[TrainingText, Tokens]:
    opened = [each.open() for each in texts]
    sources = tuple(
        MixedSource(about.name, tokens, Fraction(about.share), about.limit)
        for about, (tokens, _) in zip(text.sources, opened, strict=True)
    )
    return Mix(sources), opened[0][1]


def _find(split: SplitAbout, place: Path, model: Path) -> Prepared:
    for each in [newest.from_here(place), *newest.texts(model)]:
        text = prepared.sound(each)
        if text is not None and text.train.digest == split.digest:
            return text
    raise _gone(split, place, model)


def _find_held_out(split: SplitAbout, place: Path, model: Path) -> Path:
    nearby = newest.from_here(place)
    for each in [nearby, *newest.texts(model)]:
        text = prepared.sound(each)
        if text is not None and text.validation.digest == split.digest:
            return each
    for child in _token_directories(nearby):
        if read_manifest(child)[0].digest == split.digest:
            return child
    raise _gone(split, place, model)


def _token_directories(place: Path) -> list[Path]:
    """The directories of tokens in one place."""
    return sorted(path.parent for path in place.glob(f"*/{MANIFEST}"))


def _gone(split: SplitAbout, place: Path, model: Path) -> DataError:
    return DataError(
        f"{model} was trained on or validated on {split.name} (tokens "
        f"{(split.digest or '')[:DIGITS]}, once in {place}), which is not here any more; prepare "
        "it again in the same way"
    )


def validation_of(text: TextAbout, model: Path) -> tuple[Tokens, Path]:
    """The first of several held-out texts that a model was validated on, and its place.

    Raises:
        DataError: if it is nowhere to be found.
    """
    about = text.validations[0]
    place = _find_held_out(about.split, Path(about.place), model)
    return open_validation(place), place
