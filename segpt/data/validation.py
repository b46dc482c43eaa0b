"""The held-out texts that a run is measured on: one, or several by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from segpt.errors import DataError
from segpt.values import Tokens

from .mix import Mix, TrainingText
from .tokens import overlap


@dataclass(frozen=True)
class ValidationSets:
    """Held-out texts; the first is the one that the best checkpoint is chosen by.

    ``name`` is empty, and ``others`` too, where a run is measured on one text, as most are.
    """

    first: Tokens
    name: str = ""
    others: Mapping[str, Tokens] = field(default_factory=dict)

    def named(self) -> dict[str, Tokens]:
        """Each set that has a name, the first first."""
        return ({self.name: self.first} if self.name else {}) | dict(self.others)

    def all(self) -> dict[str, Tokens]:
        """Each set by its name, be that empty."""
        return {self.name: self.first} | dict(self.others)


def as_sets(held_out: Tokens | ValidationSets | None) -> ValidationSets | None:
    """Held-out text as the sets that it is."""
    return ValidationSets(held_out) if isinstance(held_out, Tokens) else held_out


def check_apart(text: TrainingText, held_out: ValidationSets | None) -> None:
    """Refuse a held-out text that shares documents with what is trained on, any source of it.

    Raises:
        DataError: naming both, or a set of another tokenizer.
    """
    for name, tokens in ({} if held_out is None else held_out.all()).items():
        called = f"the validation set {name}" if name else "the validation text"
        if tokens.tokenizer.fingerprint != text.tokenizer.fingerprint:
            raise DataError(
                f"{called} has another tokenizer than the training text; prepare it with that one"
            )
        if isinstance(text, Mix):
            shared = text.shared_with(tokens)
        else:
            shared = (
                {"the training text": size} if (size := int(overlap(text, tokens).size)) else {}
            )
        for source, size in shared.items():
            raise DataError(
                f"{size:,} documents are in both {source} and {called}; remove them from one of "
                "the two"
            )
