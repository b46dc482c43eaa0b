"""Models with two lanes and skips of every form are scored in every way like others."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from segpt.coding.token_predictor import TokenPredictor
from segpt.config.score import ScoreSpec
from segpt.eval.ledger import EncodedText
from segpt.eval.tally import Tally
from segpt.model.model import Model

WIRED: dict[str, Any] = {
    "depth": 3,
    "route": "0 (1)*2 2",
    "skips": {"kind": "mirror", "form": "add", "per": "scalar"},
    "join": ["loop_embedding", "loop_gain"],
    "layer": {
        "gain": "input",
        "norm_scale": "visit",
        "wiring": "lanes",
        "join": [{"kind": "mix_input", "per": "scalar"}],
        "mixer": {"heads": 2, "kv_heads": 1, "head_dim": 8, "query_key": ["norm"]},
        "feed": {"hidden": 24},
    },
    "override": [
        {"layers": "0", "set": {"wiring": {"kind": "lanes", "order": "serial"}}},
        {"layers": "2", "set": {"wiring": {"kind": "lanes", "merge": "learned"}, "gain": "none"}},
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("boundaries", ["stream", "document"])
@pytest.mark.parametrize("mode", ["strided", "rolling"])
def test_steps_find_what_the_score_finds(
    mode: Any,
    boundaries: Any,
    tiny: Callable[..., Model],
    ledger: Callable[..., EncodedText],
    tallied: Callable[..., Tally],
) -> None:
    model, whole = tiny(noise=0.2, **WIRED), ledger()
    spec = ScoreSpec(mode=mode, boundaries=boundaries, stride=6, batch=4)
    steps = TokenPredictor(model, spec, int(whole.ids[0]), len(whole.ids) - 1)
    rows = []
    for token in whole.ids[1:].tolist():
        rows.append(steps.distribution()[token])
        steps.push(token)
    found = tallied(model, whole, spec, context=spec.reach(model.spec.context)).nats
    assert np.abs(found + np.array(rows)).max() < 1e-4
    assert found.std() > 0.1
