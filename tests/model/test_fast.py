"""Fast weights against their definition, in pieces, and what they are worth once trained."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segpt.config import layer as spec
from segpt.config.base import decode, encode
from segpt.config.expand import expand
from segpt.config.model import ModelSpec
from segpt.config.train import Scaling
from segpt.errors import SpecError
from segpt.model.build import build
from segpt.model.cache import KVCache, LayerCache
from segpt.model.fast import FastWeight, fast_parts, set_rate
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.model.scaling import initialise
from segpt.model.state import ForwardState
from tests.model.states import state_of

Make = Callable[..., Model]
Draw = Callable[..., Tensor]
WIDTH, HIDDEN = 8, 20  # a change is as large as 5 positions


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(**fields: Any) -> FastWeight:
    part = FastWeight(spec.FastWeight(**{"chunk": 4} | fields), HIDDEN, WIDTH)
    with torch.no_grad():
        for seed, parameter in enumerate(part.parameters()):
            parameter.copy_(0.3 * noise(*parameter.shape, seed=seed))
    return part.requires_grad_(False)


def stream(x0: Tensor, cache: LayerCache | None = None) -> ForwardState:
    return state_of(x0, cache=cache)


def inputs(time: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, hidden, x and x0."""
    return (
        noise(2, time, WIDTH, seed=seed),
        noise(2, time, HIDDEN, seed=seed + 1),
        noise(2, time, WIDTH, seed=seed + 2),
        noise(2, time, WIDTH, seed=seed + 3),
    )


def definition(part: FastWeight, y: Tensor, hidden: Tensor, source: Tensor) -> Tensor:
    """One row, one chunk and one token after another, in float64, with the change itself."""
    y, hidden, source, taps = (t.double() for t in (y, hidden, source, part.taps.weight))
    eye = torch.eye(WIDTH).double()
    projection = eye if part.projection is None else part.projection.weight.double()
    answers = y.clone()
    for row in range(len(y)):
        change = torch.zeros(WIDTH, HIDDEN).double()
        for start in range(0, y.size(1), part.chunk):
            chunk = range(start, start + part.chunk)
            for t in set(chunk) & set(range(y.size(1))):
                answers[row, t] += change @ hidden[row, t]
            if chunk.stop > y.size(1):
                break
            update = torch.zeros_like(change)
            for t in chunk:
                near = range(t - len(taps) // 2, t + len(taps) // 2 + 1)
                value = sum(
                    tap * source[row, u] for tap, u in zip(taps, near, strict=True) if u in chunk
                )
                update += part.rate * torch.outer(projection @ value, hidden[row, t])
            if part.clip is not None:
                update *= min(1.0, part.clip / float(update.norm()))
            change = change + update
    return answers


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "long spans": {"chunk": 1, "taps": 1},
    "long chunks": {"chunk": 7},
    "clipped": {"clip": 2.0},
    "few taps": {"taps": 3, "projection": False, "source": "input", "rate": 0.05},
    "more taps than tokens": {"chunk": 2, "taps": 7},
}


@pytest.mark.parametrize("time", [1, 4, 5, 8, 31, 32])
@pytest.mark.parametrize("form", FORMS)
def test_the_definition(form: str, time: int) -> None:
    part = made(**FORMS[form])
    y, hidden, x, x0 = inputs(time)
    wanted = definition(part, y, hidden, x if part.source == "input" else x0)
    found = part(y, hidden, x, stream(x0))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    if time > part.chunk:
        assert (found - y)[:, part.chunk :].abs().amax() > 0.01
    assert torch.equal(found[:, : part.chunk], y[:, : part.chunk])


@pytest.mark.parametrize("sizes", [[1] * 31, [5, 1, 1, 20, 4], [31], [3, 28], [8, 8, 15]], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_blocks_of_any_size_equal_one_pass(form: str, sizes: list[int]) -> None:
    part = made(**FORMS[form])
    tensors = inputs(31)
    whole = part(*tensors[:3], stream(tensors[3]))
    past, pieces = LayerCache(), []
    for block in zip(*(torch.split(t, sizes, 1) for t in tensors), strict=True):
        pieces.append(part(*block[:3], stream(block[3], past)))
        assert past.hidden is not None
        assert past.hidden.size(1) == sum(p.size(1) for p in pieces) % part.chunk
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", [0, 5, 7, 8, 30])
@pytest.mark.parametrize("form", FORMS)
def test_a_chunk_changes_only_later_chunks(form: str, place: int) -> None:
    """Also through convolutions, which see the tokens ahead."""
    part = made(**FORMS[form])
    y, hidden, x, x0 = inputs(31)
    before = part(y, hidden, x, stream(x0))
    for tensor in (x, x0, hidden):
        tensor[:, place] += 1
    changed = (part(y, hidden, x, stream(x0)) - before).abs().amax((0, 2))
    end = (place // part.chunk + 1) * part.chunk
    changed[place] = 0  # its own inputs are others
    assert torch.equal(changed[:end], torch.zeros(min(end, 31)))
    assert (changed[end:] > 1e-6).all()


def test_rows_of_a_batch_learn_apart() -> None:
    part = made()
    y, hidden, x, x0 = inputs(31)
    whole = part(y, hidden, x, stream(x0))
    alone = part(y[1:], hidden[1:], x[1:], stream(x0[1:]))
    torch.testing.assert_close(alone, whole[1:], rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_close() -> None:
    part = made(rate=0.02)
    exact = part(*(tensors := inputs(31))[:3], stream(tensors[3]))
    rounded = [t.bfloat16() for t in tensors]
    past = LayerCache()
    blocks = zip(*(torch.split(t, 9, 1) for t in rounded), strict=True)
    found = torch.cat([part(*block[:3], stream(block[3], past)) for block in blocks], 1)
    assert found.dtype == torch.bfloat16
    assert past.change is not None
    assert past.change.dtype == torch.float32
    assert (found - exact).norm() < 0.02 * exact.norm()


def without(model: Model) -> Model:
    """The same model, with feeds that have no fast weights."""
    table = encode(model.spec)
    for layer in table["layers"]:
        if layer["feed"] is not None:
            layer["feed"]["fast"] = None
    plain = build(decode(ModelSpec, table))
    plain.load_state_dict(
        {name: value for name, value in model.state_dict().items() if ".fast." not in name}
    )
    return plain


def test_at_rate_0_it_is_the_plain_model(everything: ModelSpec, make: Make, tokens: Draw) -> None:
    model = make(everything)
    plain, ids = without(model), tokens(everything, time=40)
    assert len(fast_parts(model)) == 4
    assert fast_parts(plain) == []
    with torch.no_grad():
        learned = model(ids)
        set_rate(model, 0)
        cache: KVCache = {}
        assert torch.equal(model(ids), plain(ids))
        assert torch.equal(model(ids, cache), plain(ids, {}))
        assert all(past.change is None and past.hidden is None for past in cache.values())
        assert not torch.allclose(learned[:, 3:], plain(ids)[:, 3:], atol=1e-3)
        set_rate(model, None)
        assert torch.equal(model(ids), learned)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[1] * 40, [23, 1, 1, 15], [37, 3]], ids=str)
def test_a_model_reads_in_blocks(
    everything: ModelSpec, sizes: list[int], make: Make, tokens: Draw
) -> None:
    model, ids = make(everything), tokens(everything, time=40)
    cache: KVCache = {}
    start, pieces = 0, []
    with torch.no_grad():
        whole = model(ids)
        for size in sizes:
            block = ids[:, start : start + size]
            pieces.append(model(block, cache, start, last=min(2, size)))
            start += size
            kept = whole[:, max(start - 2, start - size) : start]
            torch.testing.assert_close(pieces[-1], kept, rtol=0, atol=2e-5)


def test_every_visit_learns_its_own_change(make: Make, tokens: Draw) -> None:
    """A looped layer with fast weights is so many layers with the same weights."""
    table: dict[str, Any] = {
        "vocab": 30,
        "width": 16,
        "context": 16,
        "depth": 1,
        "layer": {"mixer": None, "feed": {"hidden": 24, "fast": {"chunk": 3}}},
    }
    looped, stacked = make(expand(table | {"route": "(0)*3"})), build(expand(table | {"depth": 3}))
    stacked.table.load_state_dict(looped.table.state_dict())
    for layer in stacked.layers:
        layer.load_state_dict(looped.layers[0].state_dict())
    ids = tokens(looped.spec)
    cache: KVCache = {}
    with torch.no_grad():
        assert torch.equal(looped(ids), stacked(ids))
        looped(ids, cache)
    changes = [past.change for past in cache.values()]
    assert len(changes) == 3
    assert not torch.allclose(changes[0], changes[1])  # type: ignore[arg-type]


SHORT = {
    "vocab": 24,
    "width": 32,
    "context": 64,
    "depth": 1,
    "layer": {"mixer": None, "feed": {"hidden": 64, "fast": {"chunk": 8, "rate": 0.05}}},
}


def fresh(seed: int = 0) -> Model:
    model = build(expand(SHORT))
    initialise(model, Scaling(table=0.1), seed)
    return model


def repetitive(batch: int, seed: int) -> Tensor:
    """Rows (batch, 65) that each repeat an order of all tokens of their own."""
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(24, generator=generator) for _ in range(batch)])
    return orders.repeat(1, 3)[:, :65]


def nats(model: Model, ids: Tensor) -> Tensor:
    """By position, the mean over rows."""
    logits = model(ids[:, :-1])
    return F.cross_entropy(logits.mT, ids[:, 1:], reduction="none").mean(0)


def test_it_starts_as_the_plain_model_with_a_random_diagonal() -> None:
    model = fresh()
    (part,) = fast_parts(model)
    assert part.projection is not None
    found = part.projection.weight.detach()
    assert torch.equal(found, torch.diag(found.diagonal()))
    assert 0.01 < found.diagonal().std() < 0.03
    assert not part.taps.weight.any()
    ids = repetitive(2, 0)
    with torch.no_grad():
        assert torch.equal(model(ids), without(model)(ids))


def test_gradients_reach_taps_and_projection() -> None:
    """From a start where nothing is learned yet: first the taps, then the projection."""
    model = fresh()
    (part,) = fast_parts(model)
    assert part.projection is not None
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(nats(model, repetitive(4, 0)).mean())
        optimizer.step()
        assert part.taps.weight.grad is not None
        assert part.taps.weight.grad.abs().max() > 0
    assert part.projection.weight.grad is not None
    assert part.projection.weight.grad.abs().max() > 0


@pytest.fixture(scope="module")
def trained() -> Model:
    """Without attention: only a fast weight can know in which order a row goes."""
    model = fresh()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(150):
        optimizer.zero_grad()
        torch.autograd.backward(nats(model, repetitive(16, step)).mean())
        optimizer.step()
    return model


@pytest.mark.slow
@torch.no_grad()
def test_what_it_has_read_lowers_the_nats(trained: Model) -> None:
    ids = repetitive(64, 10_000)
    set_rate(trained, None)
    learned = nats(trained, ids)
    set_rate(trained, 0)
    plain = nats(trained, ids)
    set_rate(trained, None)
    assert torch.equal(learned[:8], plain[:8])
    assert learned[32:].mean() < plain[32:].mean() - 1
    assert learned[32:].mean() < learned[:24].mean() - 1
    assert (plain > 2.5).all()  # every token is as likely as another


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chunk": 0}, "learns after at least one token, not 0"),
        ({"rate": -0.1}, "rate of a fast weight is not negative"),
        ({"taps": 4}, "so they are odd; got 4"),
        ({"clip": 0.0}, "clip must be positive or null"),
        ({"chunk": 64}, "learns after 64 tokens never does within a context of 64"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    layer = {"mixer": None, "feed": {"hidden": 64, "fast": fields}}
    with pytest.raises(SpecError, match=message):
        expand(SHORT | {"layer": layer})


def test_specs_without_fast_weights_are_written_as_before() -> None:
    assert "fast" not in encode(spec.Dense(hidden=4))
    fast = dataclasses.replace(spec.Dense(hidden=4), fast=spec.FastWeight())
    assert decode(spec.Dense, encode(fast)) == fast


def test_every_weight_but_the_taps_starts_off_zero() -> None:
    zero = {w.name for w in weights(fresh()) if not w.tensor.any()}
    assert zero == {"layers.0.feed.body.down", "layers.0.feed.body.fast.taps"}
