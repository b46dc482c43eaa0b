"""What a checkpoint says about its run, as it is stored.

What an older segpt did not record is None, or empty where None means something else.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from .base import ADDED, INLINE, PlainSpec, spec
from .environment import Environment
from .rules import Finding


@spec
class SourceCoverage(PlainSpec):
    """What was trained on of one source of a mix; ``epochs`` are of what may be read of it."""

    name: str
    tokens: int
    blocks: int
    epochs: float
    distinct: int
    digest: str


@spec
class Coverage(PlainSpec):
    """What was trained on: every figure counts targets, except blocks and epochs.

    ``times`` maps how often (as text) to the targets that were taken so often, and ``digest`` is
    the SHA-256 over what was taken, in order. ``sources`` says the same of each source of a mix.
    """

    tokens: int
    blocks: int
    epochs: float
    distinct: int
    times: Mapping[str, int]
    left_out: int
    in_order: bool
    digest: str
    sources: tuple[SourceCoverage, ...] = dataclasses.field(default=(), metadata=ADDED)


@spec
class SplitAbout(PlainSpec):
    """A split of a tokenized text.

    ``bytes`` counts those of its documents; ``digest`` names the tokens, ``text_digest`` the text
    under whatever tokenizer, and ``tokenizer`` that by its fingerprint.
    """

    name: str | None = dataclasses.field(default=None, metadata=ADDED)
    split: str | None = dataclasses.field(default=None, metadata=ADDED)
    tokens: int | None = dataclasses.field(default=None, metadata=ADDED)
    bytes: int | None = dataclasses.field(default=None, metadata=ADDED)
    digest: str | None = dataclasses.field(default=None, metadata=ADDED)
    text_digest: str | None = dataclasses.field(default=None, metadata=ADDED)
    tokenizer: str | None = dataclasses.field(default=None, metadata=ADDED)


@spec
class SourceAbout(PlainSpec):
    """A source of a mix: its training split, where it lay, and what was taken of it.

    ``share`` is a fraction of the blocks as text, such as ``3/4``, and ``limit`` how many tokens
    may be read of it, None for all.
    """

    name: str
    place: str
    share: str
    limit: int | None = None
    training: SplitAbout


@spec
class ValidationAbout(PlainSpec):
    """Another split that a run validates on, by the name it is measured under."""

    name: str
    place: str
    split: SplitAbout


@spec
class TextAbout(PlainSpec):
    """The text of a run: its training split, where it lay, and the split that it validates on.

    ``validation`` is None without one. A mix lies in no one ``place``: its ``sources`` say where
    each of them lay. ``validations`` are measured beside ``validation``.
    """

    training: SplitAbout = dataclasses.field(default=SplitAbout(), metadata=INLINE)
    place: str | None = dataclasses.field(default=None, metadata=ADDED)
    validation: SplitAbout | None = dataclasses.field(default=SplitAbout(), metadata=ADDED)
    sources: tuple[SourceAbout, ...] = dataclasses.field(default=(), metadata=ADDED)
    validations: tuple[ValidationAbout, ...] = dataclasses.field(default=(), metadata=ADDED)


@spec
class BestStep(PlainSpec):
    """The validation with the fewest bits per byte."""

    step: int
    bpb: float


@spec
class RulesAbout(PlainSpec):
    """The rules of a contest over a run, and what is known of each."""

    name: str
    finished: bool
    findings: tuple[Finding, ...]


@spec
class AverageAbout(PlainSpec):
    """Of which checkpoints an average is: their steps and fingerprints, and the decay if any."""

    steps: tuple[int, ...]
    decay: float | None
    checkpoints: tuple[str, ...]


@spec
class Agreement(PlainSpec):
    """How far logits are from those of the source, in float32, over so many tokens."""

    tokens: int
    mean: float
    largest: float


@spec
class ImportAbout(PlainSpec):
    """Where a model of others comes from.

    ``name`` is that of its file or directory, ``form`` is ``hf`` or ``gguf``, ``start`` the id
    that begins a document and ``template`` what chats are made with, verbatim. ``unchecked`` says
    why logits were not compared, if they were not.
    """

    name: str
    form: str
    start: int
    template: str | None = None
    agreement: Agreement | None = None
    unchecked: str = ""


@spec
class RunAbout(PlainSpec):
    """A run up to a checkpoint.

    ``recipe`` is a table as it was stored, for :func:`segpt.stages.resolve_spec.of_checkpoint` to
    read: whoever wants the weights alone can have them where this segpt no longer knows such a
    recipe. ``seconds`` is the time of training, ``tokens`` counts training tokens, and
    ``finished`` says that the run ended, by its recipe, by rules or with the text.
    """

    recipe: Mapping[str, Any] | None = dataclasses.field(default=None, metadata=ADDED)
    seconds: float | None = dataclasses.field(default=None, metadata=ADDED)
    tokens: int | None = dataclasses.field(default=None, metadata=ADDED)
    read: Coverage | None = dataclasses.field(default=None, metadata=ADDED)
    text: TextAbout | None = dataclasses.field(default=None, metadata=ADDED)
    finished: bool | None = dataclasses.field(default=None, metadata=ADDED)
    environment: Environment = dataclasses.field(default=Environment(), metadata=INLINE)
    best: BestStep | None = dataclasses.field(default=None, metadata=ADDED)
    rules: RulesAbout | None = dataclasses.field(default=None, metadata=ADDED)
    average: AverageAbout | None = dataclasses.field(default=None, metadata=ADDED)
    source: ImportAbout | None = dataclasses.field(default=None, metadata=ADDED)
