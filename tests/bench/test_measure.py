"""The benchmark measures what the quantize stage measures, and knows whose each token is."""

import dataclasses
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from bench.measure import HeldOut
from segpt.data.tokenizer import BYTES, load
from segpt.data.tokens import ids
from segpt.quant.quality import compare
from segpt.stages.calibrate import in_order
from segpt.stages.open_model import from_checkpoint

from .conftest import Made


def test_the_sums_are_those_of_the_stage(made: Made, hold_out: Callable[[Made], HeldOut]) -> None:
    held_out = hold_out(made)
    changed = {name: np.round(w, 1) for name, w in made.checkpoint.weights.items()}
    after = from_checkpoint(dataclasses.replace(made.checkpoint, weights=changed))
    before = from_checkpoint(made.checkpoint)
    blocks = in_order(made.validation, made.checkpoint.spec.context, made.validation.count)
    expected = compare(before, after, blocks, load(BYTES).sizes)
    cost = held_out.cost(after)
    assert held_out.bpb == pytest.approx(expected.bpb_before, rel=1e-9)
    assert held_out.divergence(cost).value == pytest.approx(expected.kl_mean, rel=1e-9)
    gap = expected.bpb_after - expected.bpb_before
    assert held_out.gap(cost).value == pytest.approx(gap, rel=1e-6)
    assert held_out.tokens.sum() == expected.tokens
    assert held_out.bytes.sum() == expected.bytes


def test_tokens_belong_to_the_document_they_are_in(
    made: Made, hold_out: Callable[[Made], HeldOut]
) -> None:
    held_out = hold_out(made)
    stream = ids(made.validation)
    tokens = stream.slice(0, len(stream))
    starts = np.append(np.flatnonzero(tokens == load(BYTES).start), len(tokens))
    sizes = [b - a - 1 for a, b in pairwise(starts)]
    assert held_out.count == len(sizes)
    assert held_out.bytes[:-1].tolist() == sizes[:-1]  # the last block may be cut off
    assert 0 < held_out.bytes[-1] <= sizes[-1]


def test_the_same_model_costs_nothing(made: Made, hold_out: Callable[[Made], HeldOut]) -> None:
    held_out = hold_out(made)
    cost = held_out.cost(from_checkpoint(made.checkpoint))
    assert not cost.loss.any()
    assert not cost.divergence.any()
