"""What every model keeps, whatever its parts: causality, caching, compiling, joining late."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from segpt.config.expand import expand
from segpt.config.head import Head
from segpt.config.model import ModelSpec, joined_visits
from segpt.config.parts import Skip
from segpt.model.build import build, load_weights
from segpt.model.cache import KVCache
from segpt.model.feed import Dense
from segpt.model.model import Model
from segpt.model.overlap import Overlap
from segpt.model.params import weights

Make = Callable[..., Model]
Draw = Callable[..., Tensor]


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 7, 11])
def test_the_future_never_changes_the_past(
    spec: ModelSpec, cut: int, make: Make, tokens: Draw
) -> None:
    model = make(spec)
    ids = tokens(spec)
    others = ids.clone()
    others[:, cut:] = (others[:, cut:] + 1) % spec.vocab
    with torch.no_grad():
        before, after = model(ids), model(others)
    assert torch.equal(before[:, :cut], after[:, :cut])
    assert not torch.equal(before[:, cut:], after[:, cut:])


def test_every_position_sees_the_first_token(
    everything: ModelSpec, make: Make, tokens: Draw
) -> None:
    model = make(everything)
    ids = tokens(everything)
    others = ids.clone()
    others[:, 0] = (others[:, 0] + 1) % everything.vocab
    with torch.no_grad():
        changed = (model(ids) - model(others)).abs().amax((0, 2))
    assert (changed > 1e-4).all()


def test_rows_of_a_batch_are_independent(everything: ModelSpec, make: Make, tokens: Draw) -> None:
    model = make(everything)
    ids = tokens(everything, batch=3)
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[1:2], model(ids[1:2]), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [[1] * 12, [5, 1, 1, 4, 1], [12], [1, 11]], ids=str)
def test_caching_equals_the_full_pass(
    spec: ModelSpec, chunks: list[int], make: Make, tokens: Draw
) -> None:
    model = make(spec)
    ids = tokens(spec)
    cache: KVCache = {}
    start, pieces = 0, []
    with torch.no_grad():
        whole = model(ids)
        for size in chunks:
            pieces.append(model(ids[:, start : start + size], cache, start))
            start += size
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-5)
    visits = {index: past for index, past in cache.items() if index >= 0}
    assert visits.keys() == set(spec.active(1.0))  # one memory per visit, not per layer
    for index, past in visits.items():
        mixer = spec.layers[spec.visits[index].layer].mixer
        kept = min(12, (spec.windows()[index] or 99) - 1)
        shape = None if mixer is None else (2, kept, mixer.kv_heads, mixer.head_dim)
        assert (None if past.key is None else tuple(past.key.shape)) == shape


@pytest.mark.slow
@pytest.mark.parametrize("last", [1, 5, 12, 99])
def test_the_last_logits_equal_a_slice(
    spec: ModelSpec, last: int, make: Make, tokens: Draw
) -> None:
    model = make(spec)
    ids = tokens(spec)
    with torch.no_grad():
        whole, some = model(ids), model(ids, last=last)
    assert some.shape == (2, min(last, 12), spec.vocab)
    torch.testing.assert_close(some, whole[:, -last:], rtol=0, atol=1e-5)


def test_the_last_logits_after_a_cache(everything: ModelSpec, make: Make, tokens: Draw) -> None:
    model = make(everything)
    ids = tokens(everything)
    cache: KVCache = {}
    with torch.no_grad():
        whole = model(ids)
        first = model(ids[:, :7], cache, 0, last=2)
        second = model(ids[:, 7:], cache, 7, last=3)
    torch.testing.assert_close(first, whole[:, 5:7], rtol=0, atol=1e-5)
    torch.testing.assert_close(second, whole[:, -3:], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_compiling_changes_no_bit(everything: ModelSpec, make: Make, tokens: Draw) -> None:
    """Every part in six visits: the late ones of ``everything`` would only repeat them."""
    spec, _ = joined_visits(everything, 0.0)
    model = make(spec)
    ids = tokens(spec)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(ids), model(ids))
    torch.compiler.reset()


def runs(model: Model, ids: Tensor) -> list[int]:
    """The layers that one forward pass runs, in order."""
    order: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda module, args, i=i: order.append(i))
        for i, layer in enumerate(model.layers)
    ]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return order


def test_progress_decides_which_visits_run(everything: ModelSpec, make: Make, tokens: Draw) -> None:
    model = make(everything)
    ids = tokens(everything)
    assert runs(model, ids) == [0, 1, 2, 3, 1, 2, 3, 3, 3, 4]
    assert runs(model.set_progress(0.0), ids) == [0, 1, 2, 3, 3, 4]
    assert runs(model.set_progress(0.3), ids) == [0, 1, 2, 3, 1, 2, 3, 3, 4]
    assert runs(model.set_progress(0.6), ids) == [0, 1, 2, 3, 1, 2, 3, 3, 3, 4]
    assert runs(model.set_progress(0.59), ids) == [0, 1, 2, 3, 1, 2, 3, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("progress", [0.0, 0.35, 1.0])
def test_a_model_at_some_progress_equals_the_settled_one(
    spec: ModelSpec, progress: float, make: Make, tokens: Draw
) -> None:
    model = make(spec)
    small, kept = joined_visits(spec, progress)
    visits = {}
    for old, new in kept.items():
        sources = [i for i, p in enumerate(spec.visits[old].join) if not isinstance(p, Skip)]
        sources += [
            i
            for i, p in enumerate(spec.visits[old].join)
            if isinstance(p, Skip) and p.source in kept
        ]
        for place, i in enumerate(sorted(sources)):
            visits[f"visits.{old}.{i}."] = f"visits.{new}.{place}."
    arrays = {}
    for weight in weights(model):
        name = weight.name
        for old_prefix, new_prefix in visits.items():
            if name.startswith(old_prefix):
                arrays[new_prefix + name.removeprefix(old_prefix)] = weight.tensor
        if not name.startswith("visits."):
            arrays[name] = weight.tensor
    settled = build(small)
    load_weights(settled, {k: v.detach().numpy() for k, v in arrays.items()})
    ids = tokens(spec)
    with torch.no_grad():
        assert torch.equal(model.set_progress(progress)(ids), settled(ids))
        assert torch.equal(model.set_progress(progress)(ids, {}), settled(ids, {}))


def test_the_soft_cap_bounds_logits(everything: ModelSpec, make: Make, tokens: Draw) -> None:
    model = make(everything)
    assert everything.head == Head(tied=False, softcap=15.0)
    with torch.no_grad():
        model.head.matrix.weight.mul_(100)  # type: ignore[union-attr]
        logits = model(tokens(everything))
        raw = model.head.matrix(model.hidden(tokens(everything)).x)  # type: ignore[misc]
    assert raw.abs().max() > 200
    assert logits.abs().max() <= 15
    torch.testing.assert_close(logits, 15 * torch.tanh(raw / 15))


def test_without_a_soft_cap_logits_are_products(make: Make, tokens: Draw) -> None:
    spec = expand(
        {
            "vocab": 20,
            "width": 16,
            "context": 8,
            "depth": 1,
            "layer": {"mixer": None, "feed": {"hidden": 24}},
            "head": {"softcap": None},
        }
    )
    model = make(spec)
    ids = tokens(spec)
    with torch.no_grad():
        hidden = model.hidden(ids).x
        assert torch.equal(model(ids), hidden @ model.table.weight.T)
        torch.testing.assert_close(hidden.square().mean(-1), torch.ones(2, 12), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["golf16", "seed004"])
def test_recipes_run_in_bfloat16(
    name: str, small_recipe: Callable[[str], ModelSpec], make: Make, tokens: Draw
) -> None:
    spec = small_recipe(name)
    model = make(spec)
    ids = tokens(spec)
    exact = model(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    error = (logits - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    # bfloat16 keeps 8 bits: every one of the many roundings on the way is off by up to 2^-9
    assert 1e-5 < error < 0.05, error
    torch.autograd.backward(logits.square().mean())
    for weight in weights(model):
        assert weight.tensor.dtype == torch.float32
        assert weight.tensor.grad is not None
        assert weight.tensor.grad.isfinite().all(), weight.name


@pytest.mark.slow
@pytest.mark.parametrize("last", [None, 5])
def test_windows_that_share_tokens_give_what_each_gives_alone(
    spec: ModelSpec, make: Make, last: int | None
) -> None:
    model = make(spec)
    if model.private_prefix is None:
        pytest.skip("a token depends on all before it")
    ids = torch.randint(spec.vocab, (1, 40), generator=torch.Generator().manual_seed(3))
    where = torch.tensor([0, 4, 19, 20])[:, None] + torch.arange(16)
    overlap = Overlap.of(where, model.private_prefix)
    assert len(overlap.positions) == 36 + 4 * model.private_prefix
    with torch.no_grad():
        apart = model.hidden(ids[0, where], last=last).x
        together = model.hidden(ids[:, overlap.positions], last=last, overlap=overlap).x
    assert together.shape == apart.shape
    assert torch.allclose(together, apart, atol=2e-5)


def test_windows_share_what_comes_before_attention_only(make: Make) -> None:
    spec = expand(
        {
            "vocab": 20,
            "width": 16,
            "context": 8,
            "depth": 3,
            "layer": {
                "mixer": {"heads": 2, "kv_heads": 1, "head_dim": 8},
                "feed": {"hidden": 8},
                "wiring": "parallel",
            },
            "override": [{"layers": "0", "set": {"mixer": None}}],
        }
    )
    model = make(spec)
    ran: list[int] = []
    for part in model.modules():
        if isinstance(part, Dense):
            part.register_forward_hook(lambda m, i, y: ran.append(y[..., 0].numel()))
    where = torch.arange(4)[:, None] + torch.arange(6)
    with torch.no_grad():
        model.hidden(torch.arange(9)[None], overlap=Overlap(where, torch.arange(9)), last=2)
    assert ran == [9, 9, 8]
