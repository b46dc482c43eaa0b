"""Keys that lie in a ring of slots: a model that reads in blocks says what it says otherwise."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from segpt.config.model import ModelSpec
from segpt.kernels import Backend, use
from segpt.kernels.attention import CACHED_ATTENTION, Ring
from segpt.kernels.attention.cached import CachedCall, reference
from segpt.model.cache import KVCache, LayerCache, pick_rows
from segpt.model.model import Model
from tests.model.conftest import Make

Draw = Callable[..., Tensor]


class InSlots(Backend[CachedCall, Tensor]):
    """A back end on every device; it counts its calls."""

    name, priority = "in_slots", 99

    def __init__(self) -> None:
        self.calls = 0

    def refusal(self, call: CachedCall) -> str | None:
        return None

    def run(self, call: CachedCall) -> Tensor:
        self.calls += 1
        return reference(call)


@pytest.fixture
def in_slots(monkeypatch: pytest.MonkeyPatch) -> InSlots:
    backend = InSlots()
    monkeypatch.setattr(CACHED_ATTENTION, "backends", [backend])
    return backend


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_ring_holds_the_latest_in_order() -> None:
    keys, values = noise(2, 50, 1, 3), noise(2, 50, 1, 3, seed=1)
    ring = Ring(torch.empty(2, 9, 1, 3), torch.empty(2, 9, 1, 3), 0, 0)
    end = 0
    for count in (3, 4, 1, 5, 2, 5, 0, 4):
        ring = ring.latest(4).add(keys[:, end : end + count], values[:, end : end + count])
        end += count
        seen = slice(end - ring.length, end)
        assert ring.length == min(end, 4 + count) or end < 8
        for held, whole in zip(ring.in_order(), (keys, values), strict=True):
            assert torch.equal(held, whole[:, seen])
    with pytest.raises(ValueError, match="9 slots hold 8 keys and no 2 more"):
        ring.add(keys[:, :2], values[:, :2])


def blocks(model: Model, ids: Tensor, cache: KVCache, sizes: list[int], begin: int = 0) -> Tensor:
    """Logits of rows (batch, time) that are read in blocks with a window of 6."""
    made = []
    with torch.no_grad():
        for size in sizes:
            made.append(model(ids[:, begin : begin + size], cache, begin, window=6))
            begin += size
    return torch.cat(made, 1)


def test_a_model_rolls_over_its_slots(
    everything: ModelSpec, make: Make, tokens: Draw, in_slots: InSlots
) -> None:
    model, ids = make(everything), tokens(everything, time=40)
    sizes = [8, 8, 3, 1, 8, 8]
    cache: KVCache = {}
    with use(cached_attention="reference"):
        expected = blocks(model, ids, cache, sizes)
        assert in_slots.calls == 0
        assert all(layer.ring is None for layer in cache.values())
    cache = {}
    result = blocks(model, ids, cache, sizes[:2])
    memory = [layer.ring.keys.data_ptr() for layer in cache.values() if layer.ring is not None]
    assert memory
    assert in_slots.calls == 2 * len(memory)
    result = torch.cat([result, blocks(model, ids, cache, sizes[2:], 16)], 1)
    torch.testing.assert_close(result, expected[:, : result.size(1)], atol=2e-5, rtol=0)
    after = [layer.ring.keys.data_ptr() for layer in cache.values() if layer.ring is not None]
    assert after == memory  # nothing was moved


def test_it_goes_on_from_one_kind_of_cache_to_the_other(
    everything: ModelSpec, make: Make, tokens: Draw, in_slots: InSlots
) -> None:
    model, ids = make(everything), tokens(everything, time=40)
    with use(cached_attention="reference"):
        expected = blocks(model, ids, {}, [8] * 5)
    cache: KVCache = {}
    made = [blocks(model, ids, cache, [8], 0)]
    with use(cached_attention="reference"):
        made.append(blocks(model, ids, cache, [8], 8))
    made += [blocks(model, ids, cache, [8, 8], 16)]
    pick_rows(cache, torch.arange(len(ids)).flip(0))
    made.append(blocks(model, ids.flip(0), cache, [8], 32).flip(0))
    torch.testing.assert_close(torch.cat(made, 1), expected, atol=2e-5, rtol=0)


def test_what_a_ring_holds_can_be_stored() -> None:
    rolled, extended = LayerCache(), LayerCache()
    for seed, count in enumerate((7, 3, 9, 1)):
        key, value = noise(1, count, 2, 4, seed=seed), noise(1, count, 2, 4, seed=9 + seed)
        ring = rolled.roll(key, value, 6)
        keys, values = extended.extend(key, value, 6)
        assert torch.equal(ring.in_order()[0], keys)
        assert torch.equal(ring.in_order()[1], values)
        stored = rolled.tensors()
        assert stored.keys() == extended.tensors().keys() == {"key", "value"}
        assert torch.equal(stored["key"], extended.tensors()["key"])
        assert torch.equal(stored["value"], extended.tensors()["value"])
