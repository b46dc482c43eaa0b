"""The recipe that a checkpoint carries, and changes to it."""

import dataclasses
from collections.abc import Sequence

from segpt.errors import CheckpointError, SpecError
from segpt.spec.base import decode, encode
from segpt.spec.layout import parameters
from segpt.spec.model import ModelSpec
from segpt.spec.quant import Method, QuantSpec, Rule
from segpt.spec.recipe import Recipe, apply_settings
from segpt.spec.score import ScoreSpec, Sgd
from segpt.values import Checkpoint

# Test-time training by size: what the contest's 36M models use, and what suits models of a few
# million parameters, measured on training-domain text.
LARGE = 10_000_000
ADAPT_LARGE = Sgd(chunk=32_768, rate=0.005, momentum=0.9, epochs=3, anneal="cosine")


def of_checkpoint(checkpoint: Checkpoint, settings: Sequence[str] = ()) -> Recipe:
    """The recipe a checkpoint was trained with, after ``path=value`` settings.

    Raises:
        CheckpointError: if it carries none.
    """
    table = checkpoint.about.get("recipe")
    if not isinstance(table, dict):
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
    spec = recipe.quantize
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
    return dataclasses.replace(chosen, budget=budget or spec.budget or recipe.pack.budget)


def _with_bits(spec: QuantSpec, bits: int) -> QuantSpec:
    rules = tuple(
        Rule(role="matrix", bits=bits, layers=rule.layers, group=rule.group)
        if rule.role == "matrix"
        else rule
        for rule in spec.rules
    )
    return dataclasses.replace(spec, rules=rules)


def score_spec(
    model: ModelSpec,
    *,
    ttt: bool,
    recipe: Recipe | None = None,
    stride: int | None = None,
    context: int | None = None,
    settings: Sequence[str] = (),
) -> ScoreSpec:
    """How to score a model: as the recipe says, or else by its size; then settings.

    Settings change ``score.`` and ``adapt.`` values; ``adapt`` is the policy under ``ttt``.

    Raises:
        SpecError: if a setting is neither, or does not fit.
    """
    if recipe is not None:
        plain, policy = recipe.score, recipe.adapt
    else:
        plain = ScoreSpec(stride=min(64, max(1, (context or model.context) // 2)))
        policy = ADAPT_LARGE if parameters(model) >= LARGE else Sgd()
    plain = dataclasses.replace(
        plain, context=context or plain.context, stride=stride or plain.stride
    )
    table = apply_settings({"score": encode(plain), "adapt": encode(policy)}, settings)
    if unknown := sorted(table.keys() - {"score", "adapt"}):
        raise SpecError(f"--set {unknown[0]}: scoring has the settings score.* and adapt.* only")
    chosen = {"policy": table["adapt"]} if ttt else {}
    return decode(ScoreSpec, table["score"] | chosen, "$.score")
