"""The recipe that a checkpoint carries, and changes to it."""

import dataclasses
from collections.abc import Sequence

from segpt.errors import CheckpointError, SpecError
from segpt.spec.base import decode, encode
from segpt.spec.layout import parameters
from segpt.spec.model import ModelSpec
from segpt.spec.quant import QuantSpec, Rule
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


def with_bits(spec: QuantSpec, bits: int | None, method: str | None) -> QuantSpec:
    """The spec with another width for the matrices, or another method."""
    table = encode(spec)
    if method is not None:
        table["method"] = method
    changed = decode(QuantSpec, table)
    if bits is None:
        return changed
    rules = tuple(
        Rule(role="matrix", bits=bits, layers=rule.layers, group=rule.group)
        if rule.role == "matrix"
        else rule
        for rule in changed.rules
    )
    return dataclasses.replace(changed, rules=rules)


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
