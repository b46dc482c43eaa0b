"""A score waits for the device once in a batch: for the figures of the batch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from segpt.config.score import ScoreSpec
from segpt.eval.tally import score_stream
from segpt.model.model import Model
from tests.waits import Waits

from .conftest import CONTEXT, make_ledger

RESULTS = ("eval/predictor.py", "_joined")
# These read tensors that are on the host, on which windows are laid out.
HOST = {("model/overlap.py", "of"), ("eval/surprisal.py", "window_hidden")}


@pytest.mark.slow
def test_a_score_waits_once_in_a_batch(
    able: Callable[[ScoreSpec], Model], combination: ScoreSpec
) -> None:
    batches: list[Any] = []
    with Waits() as waits:
        score_stream(able(combination), make_ledger(), combination, CONTEXT, batches.append)
    assert waits.functions.keys() - HOST == {RESULTS}, waits.places
    assert waits.functions[RESULTS] == 2 * len(batches)  # to the host, and to numpy


@pytest.mark.slow
def test_whole_rows_are_read_where_they_are_asked_for(
    able: Callable[[ScoreSpec], Model],
) -> None:
    spec, probes = ScoreSpec(stride=6, batch=4), np.array([3, 50])
    batches: list[Any] = []
    with Waits() as waits:
        score_stream(able(spec), make_ledger(), spec, CONTEXT, batches.append, probes=probes)
    assert waits.functions[RESULTS] == 2 * (len(batches) + len(probes))
