"""A model mixed with n-gram counts, defined in plain torch, in float64.

It is what :mod:`segpt.eval.ngram` computes with numpy once the counts are known: there are the
formulas. Counting goes token by token and is no part of it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

STEEPEST = 10.0  # the logit of a share stays within this
SMALLEST = 1e-150  # what a probability counts as at least, where gradients are concerned


class NgramMixtureCall(NamedTuple):
    """Targets, what the model gives them, and what n-gram tables know of them.

    Attributes:
        model: (targets,) log-probabilities of the model.
        frequency: (tables, targets) the share of each target after the context of a table.
        features: (features, tables, targets) of the contexts.
        known: bool (tables, targets), whether a table has seen the context.
        weights: (features, tables) of the logits of shares.
    """

    model: Tensor
    frequency: Tensor
    features: Tensor
    known: Tensor
    weights: Tensor


class NgramMixtureResult(NamedTuple):
    """``nats`` (targets,) and how to lower them, ``gradients`` (features, tables, targets)."""

    nats: Tensor
    gradients: Tensor


class NgramRowsCall(NamedTuple):
    """Whole distributions.

    Attributes:
        model: (rows, vocab) log-probabilities of the model.
        kept: (rows,) the share of it that stays.
        counted: (rows, vocab) what counts add to the probabilities.
    """

    model: Tensor
    kept: Tensor
    counted: Tensor


def mixture_reference(call: NgramMixtureCall) -> NgramMixtureResult:
    """Nats (targets,) and gradients (features, tables, targets), in the dtype of the model's.

    P_i = k_i P_{i-1} + (1 - k_i) f_i from the model's P_0 on, with k_i = 1 / (1 + exp(-w_i x_i))
    where table i knows the context, and 1 elsewhere.
    """
    model, frequency, features = (
        call.model.double(),
        call.frequency.double(),
        call.features.double(),
    )
    logit = (call.weights.double()[..., None] * features).sum(0).clamp(-STEEPEST, STEEPEST)
    kept = torch.where(call.known, torch.sigmoid(logit), 1.0)
    added = (1 - kept) * frequency
    tables = len(kept)
    kept_from = torch.ones(tables + 1, len(model), dtype=torch.float64, device=model.device)
    kept_from[:-1] = kept.flip(0).cumprod(0).flip(0)  # row i: the product of shares from i on
    counted = torch.zeros_like(model)
    mixed = [model.exp().clamp_min(SMALLEST)]  # P_0 to P_n
    for i in range(tables):
        counted = kept[i] * counted + added[i]
        mixed.append(kept[i] * mixed[i] + added[i])
    below = torch.stack(mixed)
    rise = (below[:-1] - frequency) * kept_from[1:] / below[-1] * kept * (1 - kept)
    nats = -torch.logaddexp(model + kept_from[0].log(), counted.log())
    return NgramMixtureResult(nats.to(call.model.dtype), (features * rise).to(call.model.dtype))


def rows_reference(call: NgramRowsCall) -> Tensor:
    """The log-probabilities (rows, vocab) of both together, in the dtype of the model's."""
    kept = call.model.double() + call.kept.double().log()[:, None]
    return torch.logaddexp(kept, call.counted.double().log()).to(call.model.dtype)
