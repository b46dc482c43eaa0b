"""What a score says about how it was made and what was proved, as it is stored."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from segpt.errors import SpecError

from .base import ADDED, INLINE, PlainSpec, decode, encode, spec
from .environment import Environment
from .kernels import Kernels
from .precision import Computed, of_measuring
from .score import Boundaries, Mode, ScoreSpec


@spec
class ReadingConditions(PlainSpec):
    """How a text was read: with the policy, all that a score depends on but for model and text.

    Both directions are here: :meth:`of` says what is kept of a spec, :meth:`spec` makes the spec
    again, with ``context`` as it was for the model, and without the stride that a rolling pass
    does not have. ``kernels`` round differently, and so does the ``precision`` of the model.
    """

    mode: Mode
    boundaries: Boundaries
    context: int
    model_context: int | None = dataclasses.field(default=None, metadata=ADDED)
    beyond_model_context: bool | None = dataclasses.field(default=None, metadata=ADDED)
    stride: int | None
    batch: int
    loops: int | None
    kernels: Kernels = dataclasses.field(default=Kernels(), metadata=ADDED)
    precision: Computed = dataclasses.field(default="float32", metadata=ADDED)

    @classmethod
    def of(cls, spec: ScoreSpec, trained: int) -> "ReadingConditions":
        """What is kept of ``spec`` beside :func:`stored_policy`, for a model of this context."""
        context = spec.reach(trained)
        return cls(
            mode=spec.mode,
            boundaries=spec.boundaries,
            context=context,
            model_context=trained,
            beyond_model_context=context > trained,
            stride=spec.stride if spec.mode == "strided" else None,
            batch=spec.batch,
            loops=spec.loops,
            kernels=spec.kernels,
            precision=of_measuring(spec.precision),
        )

    def spec(self, policy: Mapping[str, Any]) -> ScoreSpec:
        """The spec of which this was kept, and ``policy`` of :func:`stored_policy`.

        Raises:
            SpecError: if there is no such policy, or values do not go together.
        """
        learnt = dict(policy)
        table = {"ngram": learnt.pop("ngram", None), "policy": learnt}
        for name in (*READING, "kernels"):
            table[name] = encode(getattr(self, name))
        if self.precision != "float32":  # which is what a spec that names none comes to
            table["precision"] = self.precision
        if self.stride is None:  # of a rolling pass
            del table["stride"]
        return decode(ScoreSpec, table, "$.score")

    @classmethod
    def read(cls, conditions: Mapping[str, Any]) -> "ReadingConditions":
        """The conditions of reading among the stored ones of a score.

        Raises:
            SpecError: if they do not say all of it, or it is not sound.
        """
        if unsaid := sorted(set(READING) - conditions.keys()):
            raise SpecError(f"its conditions do not say {', '.join(unsaid)}; score it anew")
        names = {field.name for field in dataclasses.fields(cls)}
        return decode(cls, {name: conditions[name] for name in names & conditions.keys()})


# What every score says of how its text was read.
READING: Final = tuple(
    field.name
    for field in dataclasses.fields(ReadingConditions)
    if field.default is dataclasses.MISSING
)


def stored_policy(spec: ScoreSpec) -> dict[str, Any]:
    """The policy of a spec as a score keeps it, with the n-gram mixture if there is one."""
    return encode(spec.policy) | ({} if spec.ngram is None else {"ngram": encode(spec.ngram)})


@spec
class Conditions(PlainSpec):
    """The conditions of a score: what was proved, how the text was read, and where.

    A condition that could not be proved begins with ``failed`` or ``unchecked``. ``text`` is the
    digest of the text, ``documents`` counts its documents, ``raw_bytes`` its bytes, 0 where they
    are not known, and ``boundary_nats`` is the part of the nats that starts of documents took.
    ``contest`` says whether counts are those of the Parameter Golf contest; it is empty where they
    do not look like them.
    """

    coverage: str
    causal: str
    normalised: str
    order: str
    bytes: str
    overlap: str
    text: str
    documents: int
    denominator: str
    raw_bytes: int
    contest: str = dataclasses.field(default="", metadata=ADDED)
    boundary_nats: float
    reading: ReadingConditions = dataclasses.field(metadata=INLINE)
    environment: Environment = dataclasses.field(default=Environment(), metadata=INLINE)
