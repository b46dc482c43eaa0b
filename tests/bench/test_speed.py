"""Rolling is several times faster than windows that overlap: a loose bound, in processor time."""

import time

import numpy as np
import pytest
import torch

from segpt.config.recipe import read_recipe
from segpt.config.score import ScoreSpec
from segpt.eval.ledger import EncodedText
from segpt.eval.tally import score_stream
from segpt.model.build import build
from segpt.model.scaling import initialise


@pytest.mark.slow
def test_rolling_is_faster_than_an_eighth_of_the_context() -> None:
    recipe = read_recipe("demo", ["model.depth=6"])  # of few layers, the head weighs more
    model, context = build(recipe.model).eval(), recipe.model.context
    initialise(model, recipe.train.scaling, 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ids = np.random.default_rng(0).integers(recipe.model.vocab, size=2049, dtype=np.uint32)
    stream = EncodedText(ids, np.ones(2048, np.int64), np.zeros(1, np.int64), 2048, "bytes")
    strided = ScoreSpec(stride=context // 8)
    best = dict[str, float]()
    try:
        for _ in range(2):
            for spec in (strided, ScoreSpec(mode="rolling")):
                started = time.process_time()
                score_stream(model, stream, spec, context)
                seconds = time.process_time() - started
                best[spec.mode] = min(best.get(spec.mode, seconds), seconds)
    finally:
        torch.set_num_threads(threads)
    assert best["strided"] > 2.5 * best["rolling"]
