"""The recipe that a checkpoint carries, and changes to it."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from segpt.config.base import answer, decode, encode, kind_of
from segpt.config.layout import parameters
from segpt.config.model import ModelSpec
from segpt.config.ngram import Ngram
from segpt.config.precision import Precision
from segpt.config.quant import Method, QuantSpec, Rule
from segpt.config.recipe import Recipe, apply_settings
from segpt.config.score import (
    Boundaries,
    Frozen,
    InPlace,
    LowRank,
    Mode,
    Phased,
    Policy,
    ScoreSpec,
    Sgd,
)
from segpt.errors import CheckpointError, SpecError
from segpt.values import Checkpoint

# Test-time training by size: what the contest's 36M models use, and what suits models of a few
# million parameters, measured on training-domain text.
LARGE = 10_000_000
# Of models without recipe: bits per weight, and tokens of a row of text, since those of their
# context can be too many for memory.
IMPORTED_RATE: Final = 4.0
IMPORTED_CONTEXT: Final = 512
POLICIES: Mapping[str, Policy] = {
    "none": Frozen(),
    "sgd": Sgd(),
    "low_rank": LowRank(),
    "phased": Phased(),
    "in_place": InPlace(),
}
ADAPT_LARGE = Sgd(chunk=32_768, rate=0.005, momentum=0.9, epochs=3, anneal="cosine")
POLICIES_LARGE: Mapping[str, Policy] = {**POLICIES, "sgd": ADAPT_LARGE}


def of_checkpoint(checkpoint: Checkpoint, settings: Sequence[str] = ()) -> Recipe:
    """The recipe a checkpoint was trained with, after ``path=value`` settings.

    Raises:
        CheckpointError: if it carries none.
    """
    table = checkpoint.about.recipe
    if table is None:
        raise CheckpointError("the checkpoint carries no recipe, so its settings are unknown")
    return decode(Recipe, apply_settings(table, settings), "$.recipe")


def quant_spec(
    recipe: Recipe,
    *,
    method: Method | None = None,
    budget: int | None = None,
    bits: int | None = None,
) -> QuantSpec:
    """How to quantize: as the recipe says, with another method, and with bits or a budget for it.

    Bits are the width of the matrices' grids, which is what ``gptq`` takes; under ``trellis`` and
    ``rd`` they are the mean bits per weight. Bits alone mean ``gptq``. Designed steps with neither
    rate nor budget use up the budget of the recipe.

    Raises:
        SpecError: if the method has no budget, or both bits and a budget are given to one.
    """
    return _quant_spec(recipe.quantize, method, bits, budget, recipe.pack.budget)


def imported_quant_spec(
    model: ModelSpec,
    settings: Sequence[str] = (),
    *,
    method: Method | None = None,
    budget: int | None = None,
    bits: int | None = None,
) -> QuantSpec:
    """How to quantize a model without recipe: by its size, then settings and what is asked for.

    Designed steps with neither rate nor budget take :data:`IMPORTED_RATE` bits per weight.

    Raises:
        SpecError: if a setting is none of ``quantize.``, or things do not go together.
    """
    usual = QuantSpec(context=IMPORTED_CONTEXT)
    if parameters(model) >= LARGE:
        usual = dataclasses.replace(usual, search=0, tune_steps=0)
    table = apply_settings({"quantize": encode(usual)}, settings)
    if unknown := sorted(table.keys() - {"quantize"}):
        raise SpecError(
            f"--set {unknown[0]}: a model without recipe has the settings quantize.* only"
        )
    return _quant_spec(decode(QuantSpec, table["quantize"], "$.quantize"), method, bits, budget)


def _quant_spec(
    spec: QuantSpec,
    method: Method | None,
    bits: int | None,
    budget: int | None,
    usual_budget: int | None = None,
) -> QuantSpec:
    if method is None and bits is not None and budget is None:
        method = "gptq" if spec.designed else spec.method
    chosen = dataclasses.replace(spec, method=method or spec.method, budget=None, rate=None)
    if not chosen.designed:
        chosen = dataclasses.replace(chosen, budget=budget)
        return chosen if bits is None else _with_bits(chosen, bits)
    if bits is not None:
        return dataclasses.replace(chosen, rate=float(bits), budget=budget)
    if budget is None and spec.rate is not None:
        return dataclasses.replace(chosen, rate=spec.rate)
    budget = budget or spec.budget or usual_budget
    rate = IMPORTED_RATE if budget is None else None
    return dataclasses.replace(chosen, budget=budget, rate=rate)


def _with_bits(spec: QuantSpec, bits: int) -> QuantSpec:
    rules = tuple(
        Rule(role="matrix", bits=bits, layers=rule.layers, group=rule.group)
        if rule.role == "matrix"
        else rule
        for rule in spec.rules
    )
    return dataclasses.replace(spec, rules=rules)


@dataclass(frozen=True)
class Reading:
    """How a text is read, where that is not left to the recipe or to the size of the model.

    Attributes:
        mode: whether windows overlap, or one pass rolls through the text.
        boundaries: whether every document begins anew.
        stride: tokens from one window to the next, which asks for windows.
        context: tokens that a prediction reads at most.
        loops: how often the loop of the model is gone through.
        precision: what the model multiplies in.
    """

    mode: Mode | None = None
    boundaries: Boundaries | None = None
    stride: int | None = None
    context: int | None = None
    loops: int | None = None
    precision: Precision | None = None


UNSAID: Final = Reading()


def score_spec(
    model: ModelSpec,
    *,
    policy: str = "none",
    recipe: Recipe | None = None,
    reading: Reading = UNSAID,
    settings: Sequence[str] = (),
) -> ScoreSpec:
    """How to score a model: as the recipe says, or else by its size; then settings.

    ``policy`` names one of :data:`POLICIES`, or ``best`` for the recipe's or that of the model's
    size, or ``ngram``, or both as in ``sgd+ngram``. The ``reading`` comes before the recipe;
    what adapts to documents rolls through each of them. Settings change ``score.``, ``adapt.``
    and ``ngram.`` values.

    Raises:
        SpecError: if there is no such policy, or a setting is none of these or does not fit.
    """
    adapt, ngram = _policy(policy, recipe, large=parameters(model) >= LARGE)
    plain = encode(recipe.score if recipe is not None else _usual(model, reading.context, adapt))
    if reading.stride is not None and reading.mode is None:
        reading = dataclasses.replace(reading, mode="strided")
    if adapt.per_document and (reading.mode or plain["mode"]) == "rolling":
        reading = dataclasses.replace(reading, boundaries=reading.boundaries or "document")
    plain |= {name: value for name, value in vars(reading).items() if value is not None}
    table = apply_settings(
        {"score": plain, "adapt": encode(adapt), "ngram": encode(ngram)}, settings
    )
    if unknown := sorted(table.keys() - {"score", "adapt", "ngram"}):
        hint = answer(unknown[0], "score")
        raise SpecError(
            f"--set {unknown[0]}: scoring has the settings score.*, adapt.* and ngram.* only"
            + (f"; {hint}" if hint else "")
        )
    chosen = {"policy": table["adapt"], "ngram": table["ngram"]}
    spec = decode(ScoreSpec, table["score"] | chosen, "$.score")
    spec.check_positions(model)
    return spec


def strided_spec(model: ModelSpec, context: int | None = None) -> ScoreSpec:
    """What gains are measured against: overlapping windows, and nothing is learnt."""
    return ScoreSpec(context=context, stride=min(64, max(1, (context or model.context) // 2)))


def _usual(model: ModelSpec, context: int | None, policy: Policy) -> ScoreSpec:
    """One rolling pass where it was seen to be no worse than overlapping windows."""
    windows = model.positions is not None or parameters(model) >= LARGE
    mode = "strided" if windows else policy.best_mode
    return dataclasses.replace(strided_spec(model, context), mode=mode)


def _policy(name: str, recipe: Recipe | None, *, large: bool) -> tuple[Policy, Ngram | None]:
    """The policy of a name, and the n-gram mixture that goes with it."""
    names = ["none" if n == "frozen" else kind_of(n) for n in name.split("+")]
    others = [n for n in names if n != "ngram"] or ["none"]
    ngram = Ngram() if "ngram" in names else None
    if others == ["best"]:
        if recipe is not None:
            return recipe.adapt, recipe.ngram or ngram
        return (ADAPT_LARGE, ngram) if large else (LowRank(), ngram or Ngram())
    if len(others) > 1 or others[0] not in POLICIES:
        known = ", ".join([*POLICIES, "ngram", "best"])
        raise SpecError(f"--ttt {name!r}: write one of {known}, or one of them and +ngram")
    return (POLICIES_LARGE if large else POLICIES)[others[0]], ngram
