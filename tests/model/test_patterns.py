"""Windows that differ by layer or by visit, and windows that grow over training."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from segpt.coding.token_predictor import TokenPredictor
from segpt.config.base import decode, encode
from segpt.config.expand import expand
from segpt.config.flops import flops
from segpt.config.model import ModelSpec, joined_visits
from segpt.config.score import ScoreSpec
from segpt.config.window import Growth
from segpt.errors import SpecError
from segpt.eval.policies import reach
from segpt.model.cache import KVCache
from segpt.model.model import Model

Make = Callable[..., Model]
Draw = Callable[..., Tensor]


def patterned(depth: int = 4, **fields: Any) -> ModelSpec:
    """A model without anything that sees far but attention."""
    mixer = {"heads": 2, "kv_heads": 1, "head_dim": 8, "query_key": [{"kind": "rope", "dims": 8}]}
    return expand(
        {
            "vocab": 40,
            "width": 16,
            "context": 64,
            "depth": depth,
            "layer": {"mixer": mixer, "feed": {"hidden": 24}},
        }
        | fields
    )


LSSS = {"long": 12, "short": 4, "pattern": "LSSS", "last": "long"}


def test_patterns_go_by_layer() -> None:
    spec = patterned(7, windows=LSSS, route="0 (1:6)*2 6")
    mixers = [layer.mixer.window for layer in spec.layers if layer.mixer is not None]
    assert mixers == [12, 4, 4, 4, 12, 4, 12]
    assert spec.windows() == (12, 4, 4, 4, 12, 4, 4, 4, 4, 12, 4, 12)
    assert all(visit.window is None for visit in spec.visits)


def test_patterns_go_by_visit() -> None:
    """A layer that runs at even and at odd places has both windows."""
    spec = patterned(3, windows={"long": 12, "short": 6, "by": "visit"}, route="0 (1)*3 2")
    assert spec.windows() == (12, 6, 12, 6, 12)
    assert {layer.mixer.window for layer in spec.layers if layer.mixer is not None} == {None}


def test_a_window_of_a_layer_itself_stays_and_no_attention_needs_none() -> None:
    override = [
        {"layers": "1", "set": {"mixer": {"window": 9}}},
        {"layers": "2", "set": {"mixer": None}},
    ]
    spec = patterned(4, windows={"short": 5, "pattern": "S"}, override=override)
    assert spec.windows() == (5, 9, None, 5)
    spec = patterned(4, windows={"short": 5, "pattern": "L", "last": "short"})
    assert spec.windows() == (None, None, None, 5)


def test_the_narrower_of_layer_and_visit_counts() -> None:
    spec = patterned(2, windows={"long": 12, "short": 6})
    visits = tuple(
        dataclasses.replace(v, window=w) for v, w in zip(spec.visits, (7, 7), strict=True)
    )
    assert dataclasses.replace(spec, visits=visits).windows() == (7, 6)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ({"short": 4, "pattern": "LX"}, r"windows: pattern is a word of L and S .* got 'LX'"),
        ({"short": 4, "pattern": ""}, "pattern is a word of L and S"),
        ({"short": 4, "long": 3}, "the short window is not wider than the long one; got 4 and 3"),
        ({"long": 4}, r"windows: missing key 'short'"),
        ({"short": 4, "shrt": 4}, r"windows: unknown key 'shrt' in windows; did you mean 'short'"),
        ({"short": 0}, "a window holds at least the own position, got 0"),
    ],
)
def test_patterns_refuse_what_cannot_be(windows: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        patterned(windows=windows)


def test_only_what_windows_show_changes(make: Make, tokens: Draw) -> None:
    """Each visit lets a token reach one window further back, and not one position more."""
    spec = patterned(3, windows={"long": 9, "short": 3, "by": "visit"}, route="0 (1)*2 2")
    model = make(spec)
    far = sum(window - 1 for window in spec.windows() if window is not None)
    assert far == reach(model, 64, ScoreSpec()) == 8 + 2 + 8 + 2
    ids = tokens(spec, time=40)
    others = ids.clone()
    others[:, 5] = (others[:, 5] + 1) % spec.vocab
    with torch.no_grad():
        changed = (model(ids) - model(others)).abs().amax((0, 2)) > 0
    assert changed.nonzero().flatten().tolist() == list(range(5, 5 + far + 1))


@pytest.mark.slow
@pytest.mark.parametrize("by", ["layer", "visit"])
@pytest.mark.parametrize("sizes", [[1] * 40, [17, 1, 1, 21], [40]], ids=str)
def test_decoding_has_the_windows_of_training(
    by: str, sizes: list[int], make: Make, tokens: Draw
) -> None:
    """Every visit its own one, to the position: none is widened, narrowed or shared."""
    model = make(patterned(5, windows=LSSS | {"by": by}, route="0 (1:4)*2 4"))
    ids = tokens(model.spec, time=40)
    cache: KVCache = {}
    start, pieces = 0, []
    with torch.no_grad():
        model.train()
        trained = model(ids)
        model.eval()
        for size in sizes:
            pieces.append(model(ids[:, start : start + size], cache, start))
            start += size
    torch.testing.assert_close(torch.cat(pieces, 1), trained, rtol=0, atol=1e-5)
    kept = [past.key.size(1) for past in cache.values() if past.key is not None]
    assert kept == [window - 1 for window in model.spec.windows() if window is not None]


@pytest.mark.parametrize("without", ["0", "1:", ":"])
def test_layers_without_attention_decode(without: str, make: Make, tokens: Draw) -> None:
    override = [{"layers": without, "set": {"mixer": None}}]
    model = make(patterned(3, windows=LSSS, override=override))
    ids = tokens(model.spec, time=40)
    for window in (None, 5):
        cache: KVCache = {}
        with torch.no_grad():
            whole = model(ids, window=window)
            pieces = [model(ids[:, i : i + 8], cache, i, window=window) for i in range(0, 40, 8)]
        torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-5)
    assert reach(model, 64, ScoreSpec()) == {"0": 3 + 11, "1:": 11, ":": 0}[without]
    if without == ":":
        with torch.no_grad():  # each token on its own
            torch.testing.assert_close(model(ids[:, 7:8]), model(ids)[:, 7:8], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["rolling", "strided"])
def test_a_score_by_steps_has_the_windows_of_training(
    mode: Literal["rolling", "strided"], make: Make, tokens: Draw
) -> None:
    override = [{"layers": "2", "set": {"mixer": None}}]
    model = make(patterned(4, windows=LSSS, override=override))
    ids = tokens(model.spec, batch=1, time=30)[0]
    steps = TokenPredictor(model, ScoreSpec(mode=mode, stride=8), int(ids[0]), 29)
    found = []
    for token in ids[1:]:
        found.append(steps.distribution()[token])
        steps.push(int(token))
    with torch.no_grad():  # the context of 64 holds all of it
        rows = model(ids[None])[0].double().log_softmax(-1)
    wanted = rows[:-1].gather(1, ids[1:, None])[:, 0].numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_the_census_counts_windows_by_visit() -> None:
    wide, narrow = (patterned(2, windows={"long": 8, "short": s, "by": "visit"}) for s in (8, 2))
    # queries and keys, and values: 4 x 16 channels for each position that is seen less
    assert flops(wide).attention - flops(narrow).attention == pytest.approx(
        64 * (8 * (128 - 7) - 2 * (128 - 1)) / 128, abs=1
    )


def shares(growth: Growth, window: int | None, progress: list[float]) -> list[int | None]:
    return [growth.at(window, p) for p in progress]


def test_linear_growth_in_blocks() -> None:
    growth = Growth(full=1728)
    steps = [i / 1700 for i in range(1701)]
    for p in steps:
        widest = max(128, math.ceil(1728 * p / 128) * 128)
        assert growth.at(1792, p) == widest
        assert growth.at(896, p) == max(128, widest // 256 * 128)
    assert shares(growth, 1792, [0.0, 0.5, 1.0]) == [128, 896, 1792]
    # half of one block is none, which is why the short window has a least one
    assert shares(growth, 896, [0.0, 0.05, 0.5, 1.0]) == [128, 128, 384, 896]
    assert {growth.at(1792, p) for p in steps} == {128 * i for i in range(1, 15)}
    assert shares(growth, None, [0.0, 0.5, 1.0]) == [128, 896, None]


def test_cubic_growth() -> None:
    growth = Growth(full=3456, shape="cubic")
    for p in (0.0, 0.1, 0.3, 0.5, 0.7, 0.95):
        share = 4 * p**3 - 6 * p**2 + 3 * p
        assert growth.at(3456, p) == max(128, math.ceil(3456 * share / 128) * 128)
    widths = [growth.at(3456, i / 500) or 0 for i in range(501)]
    assert widths == sorted(widths)
    assert (widths[0], widths[-1]) == (128, 3456)


def test_narrow_windows_stay_as_they_are() -> None:
    growth = Growth(full=64, multiple=16)
    assert shares(growth, 5, [0.0, 0.5, 1.0]) == [5, 5, 5]
    assert shares(growth, 100, [0.0, 0.5, 0.99]) == [16, 32, 64]
    assert growth.at(100, 1.0) == 100


@pytest.mark.parametrize("fields", [{"full": 0}, {"full": 64, "multiple": 0}])
def test_growth_is_positive(fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="windows grow to a positive size in positive multiples"):
        Growth(**fields)


GROWING = {"windows": {"long": 12, "short": 6}, "growth": {"full": 12, "multiple": 3}}


def test_a_model_in_training_has_the_windows_of_its_progress(make: Make, tokens: Draw) -> None:
    model = make(patterned(2, **GROWING))
    assert encode(model.spec)["growth"]["full"] == 12
    assert decode(ModelSpec, encode(model.spec)) == model.spec
    ids = tokens(model.spec, time=40)
    for progress, windows in [(0.0, (3, 3)), (0.5, (6, 3)), (0.8, (12, 6)), (1.0, (12, 6))]:
        fixed = patterned(2, windows={"long": windows[0], "short": windows[1]})
        with torch.no_grad():
            assert torch.equal(model.set_progress(progress)(ids), make(fixed)(ids))
        small, _ = joined_visits(model.spec, progress)
        assert small.growth is None
        assert small.windows() == windows
    assert model.windows == (12, 6)  # what is scored, in the end


def test_models_without_growth_are_stored_as_before() -> None:
    plain = patterned(2)
    assert "growth" not in encode(plain)
    assert "window" not in encode(plain)["visits"][0]
    assert joined_visits(plain, 0.5)[0] == plain
