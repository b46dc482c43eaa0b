"""Attention windows: what a position sees, what a cache keeps, and how far positions may run."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from segpt.config import parts as slot
from segpt.config.base import decode, encode
from segpt.config.expand import expand
from segpt.config.layer import Attention
from segpt.config.model import ModelSpec
from segpt.errors import SpecError
from segpt.model import parts
from segpt.model.build import build
from segpt.model.cache import KVCache, first_rows
from segpt.model.fast import set_rate
from segpt.model.model import Model
from tests.model.states import state_of

Make = Callable[..., Model]
Draw = Callable[..., Tensor]


def in_blocks(model: Model, ids: Tensor, sizes: list[int], window: int | None) -> Tensor:
    """Logits of block after block through one cache."""
    cache: KVCache = {}
    start, pieces = 0, []
    with torch.no_grad():
        for size in sizes:
            pieces.append(model(ids[:, start : start + size], cache, start, window=window))
            start += size
    assert start == ids.size(1)
    return torch.cat(pieces, 1)


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 3, 8, 50])
@pytest.mark.parametrize("sizes", [[1] * 40, [5, 1, 1, 24, 2, 7], [40], [16, 16, 8]], ids=str)
def test_blocks_through_a_cache_equal_the_banded_pass(
    everything: ModelSpec, window: int, sizes: list[int], make: Make, tokens: Draw
) -> None:
    model = make(everything)
    ids = tokens(everything, time=40)
    with torch.no_grad():
        whole = model(ids, window=window)
    torch.testing.assert_close(in_blocks(model, ids, sizes, window), whole, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_blocks_equal_the_banded_pass_whatever_the_parts(
    spec: ModelSpec, make: Make, tokens: Draw
) -> None:
    model = make(spec)
    ids = tokens(spec, time=20)
    with torch.no_grad():
        whole, plain = model(ids, window=4), model(ids)
    found = in_blocks(model, ids, [3, 1, 9, 7], 4)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole[:, :4], plain[:, :4], rtol=0, atol=1e-5)
    if any(layer.mixer is not None for layer in spec.layers):
        assert not torch.allclose(whole[:, 4:], plain[:, 4:], rtol=0, atol=1e-4)


def test_a_window_of_everything_changes_nothing(
    everything: ModelSpec, make: Make, tokens: Draw
) -> None:
    model = make(everything)
    ids = tokens(everything)
    with torch.no_grad():
        assert torch.equal(model(ids, window=12), model(ids))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[40], [7] * 5 + [5], [1] * 40], ids=str)
def test_the_future_never_changes_the_past_under_a_window(
    everything: ModelSpec, sizes: list[int], make: Make, tokens: Draw
) -> None:
    model = make(everything)
    ids = tokens(everything, time=40)
    others = ids.clone()
    others[:, 23:] = (others[:, 23:] + 1) % everything.vocab
    before, after = (in_blocks(model, t, sizes, 6) for t in (ids, others))
    assert torch.equal(before[:, :23], after[:, :23])
    assert not torch.equal(before[:, 23:], after[:, 23:])


def test_every_run_reaches_one_window_further(
    everything: ModelSpec, make: Make, tokens: Draw
) -> None:
    model = make(everything)
    set_rate(model, 0)  # what a fast weight has learned is seen from any distance
    mixers = [everything.layers[everything.visits[i].layer].mixer for i in model.active]
    reach = 2 * sum(mixer is not None for mixer in mixers)  # windows of 3: itself and two before
    ids = tokens(everything, time=60)
    others = ids.clone()
    others[:, 9] = (others[:, 9] + 1) % everything.vocab
    with torch.no_grad():
        changed = (model(ids, window=3) - model(others, window=3)).abs().amax((0, 2))
    assert torch.equal(changed[:9], torch.zeros(9))
    assert torch.equal(changed[10 + reach :], torch.zeros(50 - reach))
    assert changed[9] > 1e-3


def test_a_cache_stays_as_small_as_its_window(
    everything: ModelSpec, make: Make, tokens: Draw
) -> None:
    model = make(everything)
    ids = tokens(everything, time=40)
    cache: KVCache = {}
    with torch.no_grad():
        for start in range(0, 40, 8):
            model(ids[:, start : start + 8], cache, start, window=6)
            for past in cache.values():
                if past.key is not None and past.value is not None:
                    assert past.key.size(1) == past.value.size(1) == 5
                    assert past.key.untyped_storage().nbytes() == past.key.numel() * 4


def test_rows_that_have_ended_drop_out_of_a_cache(
    everything: ModelSpec, make: Make, tokens: Draw
) -> None:
    model = make(everything)
    ids = tokens(everything, batch=3, time=20)
    cache: KVCache = {}
    with torch.no_grad():
        whole = model(ids, window=6)
        model(ids[:, :9], cache, 0, window=6)
        first_rows(cache, 2)
        two = model(ids[:2, 9:15], cache, 9, window=6)
        first_rows(cache, 1)
        one = model(ids[:1, 15:], cache, 15, window=6)
    torch.testing.assert_close(two, whole[:2, 9:15], rtol=0, atol=1e-5)
    torch.testing.assert_close(one, whole[:1, 15:], rtol=0, atol=1e-5)


def windowed(*windows: int | None) -> ModelSpec:
    """A model of plain layers, one for each of ``windows``."""
    mixer = {"heads": 2, "kv_heads": 1, "head_dim": 8, "query_key": [{"kind": "rope", "dims": 8}]}
    return expand(
        {
            "vocab": 40,
            "width": 16,
            "context": 32,
            "depth": len(windows),
            "layer": {"mixer": mixer, "feed": {"hidden": 24}},
            "override": [
                {"layers": str(i), "set": {"mixer": {"window": window}}}
                for i, window in enumerate(windows)
                if window is not None
            ],
        }
    )


@pytest.mark.parametrize(
    ("own", "given", "effective"),
    [
        ((5, 5), None, (5, 5)),
        ((5, None), 9, (5, 9)),
        ((5, 12), 9, (5, 9)),
        ((None, None), 9, (9, 9)),
    ],
)
def test_the_narrower_window_counts(
    own: tuple[int | None, ...],
    given: int | None,
    effective: tuple[int, ...],
    make: Make,
    tokens: Draw,
) -> None:
    model, same = make(windowed(*own)), make(windowed(*effective))
    ids = tokens(model.spec, time=30)
    cache: KVCache = {}
    with torch.no_grad():
        found = model(ids, cache, window=given)
        assert torch.equal(found, same(ids))
        torch.testing.assert_close(in_blocks(model, ids, [7, 1, 22], given), found)
    assert [p.key.size(1) for p in cache.values() if p.key is not None] == [
        window - 1 for window in effective
    ]


def test_a_window_of_the_model_itself_trains(make: Make, tokens: Draw) -> None:
    model = make(windowed(3, 7)).train()
    logits = model(tokens(model.spec, time=30))
    torch.autograd.backward(logits.logsumexp(-1).sum())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_windows_leave_the_fingerprint_of_other_models_alone() -> None:
    plain = windowed(None)
    assert "window" not in encode(plain)["layers"][0]["mixer"]
    for model in (plain, windowed(4)):
        assert decode(ModelSpec, encode(model)) == model
    assert isinstance(plain.layers[0].mixer, Attention)
    with pytest.raises(SpecError, match="a window holds at least the own position, got 0"):
        dataclasses.replace(plain.layers[0].mixer, window=0)


@pytest.mark.parametrize("turn", ["left", "right"])
@pytest.mark.parametrize("dims", [2, 8, 64])
def test_positions_in_the_millions_turn_as_exactly_as_small_ones(turn: str, dims: int) -> None:
    rope = parts.Rope(slot.Rope(dims=dims, turn="left" if turn == "left" else "right"))
    noise = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 50, 2, 64, generator=noise) for _ in range(2))

    def logits(start: int) -> Tensor:
        rq, rk = rope(q, k, state_of(q, begin=start))
        return torch.einsum("bqhc,bkhc->bhqk", rq, rk) / 8  # as attention scales them

    torch.testing.assert_close(logits(3_000_000), logits(100), atol=1e-4, rtol=0)


def test_a_stream_that_starts_in_the_millions_scores_the_same(tokens: Draw) -> None:
    model = build(windowed(None, 6))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) / 4)
        ids = tokens(model.spec, time=30)
        near, far = model(ids, start=100), model(ids, start=3_000_000)
    torch.testing.assert_close(far, near, atol=1e-4, rtol=0)
