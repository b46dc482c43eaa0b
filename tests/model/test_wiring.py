"""How layers are wired: gains, norms, skips, loops and residual lanes, against their formulas."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segpt.config import parts as spec
from segpt.config.expand import expand
from segpt.config.layout import Place, Role, layout, parameters
from segpt.config.model import ModelSpec
from segpt.config.train import Scaling
from segpt.errors import SpecError
from segpt.model import parts
from segpt.model.build import build, load_weights
from segpt.model.cache import KVCache
from segpt.model.model import Model
from segpt.model.overlap import Overlap
from segpt.model.params import weights
from segpt.model.scaling import initialise
from segpt.model.state import ForwardState
from tests.model.states import state_of

Make = Callable[..., Model]
Draw = Callable[..., Tensor]
Weights = Mapping[str, Tensor]
WIDTH, HEADS, CHANNELS = 16, 2, 8


def model(layer: Mapping[str, Any], **more: Any) -> ModelSpec:
    body: dict[str, Any] = {
        "mixer": {"heads": HEADS, "kv_heads": HEADS, "head_dim": CHANNELS},
        "feed": {"hidden": 24},
    }
    recipe = {"vocab": 40, "width": WIDTH, "context": 32, "depth": 1, "layer": body | dict(layer)}
    return expand(recipe | more)


def of(made: Model) -> dict[str, Tensor]:
    return {w.name: w.tensor.detach().double() for w in weights(made)}


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()


def attention(w: Weights, i: int, h: Tensor) -> Tensor:
    """Plain attention of layer i on h (batch, time, width), in float64."""
    q, k, v = (
        (h @ w[f"layers.{i}.mixer.body.{name}"].T)
        .view(*h.shape[:2], HEADS, CHANNELS)
        .transpose(1, 2)
        for name in ("query", "key", "value")
    )
    logits = q @ k.mT / CHANNELS**0.5
    future = torch.ones(h.size(1), h.size(1)).triu(1).bool()
    y = logits.masked_fill(future, -torch.inf).softmax(-1) @ v
    return y.transpose(1, 2).flatten(2) @ w[f"layers.{i}.mixer.body.out"].T


def feed(w: Weights, i: int, h: Tensor) -> Tensor:
    hidden = F.relu(h @ w[f"layers.{i}.feed.body.up"].T) ** 2
    return hidden @ w[f"layers.{i}.feed.body.down"].T


def assert_gives(made: Model, ids: Tensor, x: Tensor) -> None:
    """The last stream is x, in float64, before it is normalised."""
    with torch.no_grad():
        found = made.hidden(ids).x
    assert x.std() > 0.1
    torch.testing.assert_close(found.double(), rms(x), atol=2e-5, rtol=0)


@pytest.mark.parametrize("norms", ["both", "feed"])
@pytest.mark.parametrize("gain", ["output", "input", "none"])
def test_gains_and_norms_are_where_the_spec_has_them(
    gain: str, norms: str, make: Make, tokens: Draw
) -> None:
    made = make(model({"gain": gain, "norms": norms, "norm_scale": 0.7}))
    ids, w = tokens(made.spec), of(made)
    names = {f"layers.0.{branch}.gain" for branch in ("mixer", "feed")}
    assert (names & w.keys() == names) == (gain != "none")

    def branch(name: str, body: Callable[[Weights, int, Tensor], Tensor], x: Tensor) -> Tensor:
        h = x if name == "mixer" and norms == "feed" else 0.7 * rms(x)
        scale = torch.ones(WIDTH) if gain == "none" else w[f"layers.0.{name}.gain"]
        return body(w, 0, scale * h) if gain == "input" else scale * body(w, 0, h)

    x = rms(w["table"][ids])
    x = x + branch("mixer", attention, x)
    assert_gives(made, ids, x + branch("feed", feed, x))


def test_a_norm_with_weights_brings_as_many_as_the_published_ones() -> None:
    """30 layers of 1152 channels with a norm of 1152 weights before each of two branches."""
    layer = {
        "gain": "input",
        "norm_scale": "depth",
        "mixer": {"heads": 18, "kv_heads": 6, "head_dim": 64},
        "feed": {"hidden": 3072, "act": "swiglu"},
    }
    large = expand({"vocab": 49152, "width": 1152, "context": 1024, "depth": 30, "layer": layer})
    gains = [w for w in layout(large) if w.part == "gain" and w.place in (Place.MIXER, Place.FEED)]
    assert [sum(w.size for w in gains if w.layer == i) for i in range(30)] == [2 * 1152] * 30
    matrices = 2 * 1152 * 1152 + 2 * 384 * 1152 + 3 * 3072 * 1152
    assert parameters(large) == 49152 * 1152 + 30 * (matrices + 2 * 1152)
    assert [layer.norm_scale for layer in large.layers] == [(i + 1) ** -0.5 for i in range(30)]


def test_a_scale_by_visit_goes_with_the_place_in_the_route(make: Make, tokens: Draw) -> None:
    made = make(model({"norm_scale": "visit", "mixer": None}, route="(0)*3"))
    assert [v.norm_scale for v in made.spec.visits] == [1, 2**-0.5, 3**-0.5]
    ids, w = tokens(made.spec), of(made)
    x = rms(w["table"][ids])
    for n in range(3):
        x = x + w["layers.0.feed.gain"] * feed(w, 0, rms(x) * (n + 1) ** -0.5)
    assert_gives(made, ids, x)


def test_mixing_weights_may_be_two_numbers(make: Make, tokens: Draw) -> None:
    join = [{"kind": "mix_input", "per": "scalar"}]
    made = make(model({"join": join, "mixer": None, "gain": "none"}))
    assert {n: tuple(t.shape) for n, t in of(made).items()}["layers.0.join.0.mix"] == (2, 1)
    ids, w = tokens(made.spec), of(made)
    a, b = w["layers.0.join.0.mix"]
    x0 = rms(w["table"][ids])
    x = a * x0 + b * x0
    assert_gives(made, ids, x + feed(w, 0, rms(x)))


def stream(time: int = 3) -> ForwardState:
    return state_of(torch.randn(2, time, WIDTH, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("per", ["channel", "scalar"])
@pytest.mark.parametrize("form", ["lerp", "add"])
def test_skips_are_added_or_blended_in(form: Any, per: Any) -> None:
    part = parts.Skip(spec.Skip(source=0, form=form, per=per), WIDTH)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in weights(part):
            weight.tensor.copy_(torch.randn(weight.tensor.shape, generator=generator))
    assert (
        sum(w.tensor.numel() for w in weights(part))
        == {
            ("lerp", "channel"): 2 * WIDTH,
            ("lerp", "scalar"): 2,
            ("add", "channel"): WIDTH,
            ("add", "scalar"): 1,
        }[form, per]
    )
    s, x = stream(), torch.randn(2, 3, WIDTH, generator=generator)
    assert part(x, s) is x  # what it skips from has not run
    s.memory.visits[0] = skipped = torch.randn(2, 3, WIDTH, generator=generator)
    found = of(part)  # type: ignore[arg-type]
    wanted = x + found["scale"] * skipped
    if form == "lerp":
        gate = torch.sigmoid(found["gate"])
        wanted = (1 - gate) * found["scale"] * skipped + gate * x
    torch.testing.assert_close(part(x, s).double(), wanted, atol=1e-6, rtol=0)


def test_what_tells_visits_apart_starts_as_nothing_and_belongs_to_each(
    make: Make, tokens: Draw
) -> None:
    plain = model({"mixer": None}, route="(0)*2")
    told = model({"mixer": None}, route="(0)*2", join=["loop_embedding", "loop_gain"])
    assert parameters(told) == parameters(plain) + 2 * 2 * WIDTH
    fresh, other = build(told), build(plain)
    initialise(fresh, Scaling(table=0.1), 1)
    w = of(fresh)
    names = [x.name for x in layout(plain)]
    load_weights(other, {name: w[name].numpy() for name in names})
    ids = tokens(told)
    with torch.no_grad():
        assert torch.equal(fresh(ids), other(ids))
    made = make(told)
    w = of(made)
    x = rms(w["table"][ids])
    for n in range(2):
        x = x + w[f"visits.{n}.0.shift"]
        fed = feed(w, 0, rms(x))
        x = x + w[f"visits.{n}.1.gain"] * w["layers.0.feed.gain"] * fed
    assert_gives(made, ids, x)


def lanes(order: str, merge: str = "mean", **more: Any) -> ModelSpec:
    wiring = {"kind": "lanes", "order": order}
    return model(
        {"wiring": "serial", "join": ["mix_input"], "norm_scale": "depth"},
        depth=4,
        override=[
            {"layers": "1:3", "set": {"wiring": wiring}},
            {"layers": "2", "set": {"wiring": wiring | {"merge": merge}}},
        ],
        **more,
    )


def serial_layer(w: Weights, i: int, x: Tensor, x0: Tensor) -> Tensor:
    m, c = w[f"layers.{i}.join.0.mix"], (i + 1) ** -0.5
    x = m[0] * x + m[1] * x0
    x = x + w[f"layers.{i}.mixer.gain"] * attention(w, i, c * rms(x))
    return x + w[f"layers.{i}.feed.gain"] * feed(w, i, c * rms(x))


def lane_layer(
    w: Weights, i: int, both: tuple[Tensor, Tensor], x0: Tensor, order: str
) -> tuple[Tensor, Tensor]:
    m, c = w[f"layers.{i}.join.0.mix"], (i + 1) ** -0.5
    keep, route = w[f"layers.{i}.lanes.keep"], w[f"layers.{i}.lanes.route"]
    one, two = both
    mixed = w[f"layers.{i}.mixer.gain"] * attention(w, i, c * rms(m[0] * one + m[1] * x0))
    if order == "parallel":
        fed = w[f"layers.{i}.feed.gain"] * feed(w, i, c * rms(two))
        return (
            keep[0] * one + route[0, 0] * mixed + route[0, 1] * fed,
            keep[1] * two + route[1, 0] * mixed + route[1, 1] * fed,
        )
    one, two = keep[0] * one + route[0, 0] * mixed, keep[0] * two + route[1, 0] * mixed
    fed = w[f"layers.{i}.feed.gain"] * feed(w, i, c * rms(m[0] * two + m[1] * x0))
    return keep[1] * one + route[0, 1] * fed, keep[1] * two + route[1, 1] * fed


@pytest.mark.parametrize("merge", ["mean", "learned"])
@pytest.mark.parametrize("order", ["parallel", "serial"])
def test_two_lanes_are_routed_and_merged(order: str, merge: str, make: Make, tokens: Draw) -> None:
    made = make(lanes(order, merge, skips="mirror"))
    ids, w = tokens(made.spec), of(made)
    x = x0 = rms(w["table"][ids])
    pushed = [x := serial_layer(w, 0, x, x0)]
    both = lane_layer(w, 1, (x, x), x0, order)
    pushed.append(both[0])

    def popped(n: int, x: Tensor) -> Tensor:
        g = torch.sigmoid(w[f"visits.{n}.0.gate"])
        return (1 - g) * w[f"visits.{n}.0.scale"] * pushed.pop() + g * x

    both = lane_layer(w, 2, (popped(2, both[0]), both[1]), x0, order)
    share = w["layers.2.lanes.share"] if merge == "learned" else 0.5
    x = share * both[0] + (1 - share) * both[1]
    assert_gives(made, ids, serial_layer(w, 3, popped(3, x), x0))


def test_a_skip_into_the_first_layer_with_lanes_reaches_one_of_them(
    make: Make, tokens: Draw
) -> None:
    wiring = {"layers": "1", "set": {"wiring": "lanes"}}
    made = make(model({}, depth=2, skips={"kind": "mirror", "form": "add"}, override=[wiring]))
    ids, w = tokens(made.spec), of(made)
    x = rms(w["table"][ids])
    x = x + w["layers.0.mixer.gain"] * attention(w, 0, rms(x))
    x = x + w["layers.0.feed.gain"] * feed(w, 0, rms(x))
    skipped = x + w["visits.1.0.scale"] * x
    mixed = w["layers.1.mixer.gain"] * attention(w, 1, rms(skipped))
    fed = w["layers.1.feed.gain"] * feed(w, 1, rms(x))
    keep, route = w["layers.1.lanes.keep"], w["layers.1.lanes.route"]
    one, two = (
        keep[i] * lane + route[i, 0] * mixed + route[i, 1] * fed
        for i, lane in enumerate((skipped, x))
    )
    assert_gives(made, ids, (one + two) / 2)


def test_lanes_start_as_published() -> None:
    for order, start in (("parallel", 1.1), ("serial", 1.1**0.5)):
        fresh = build(lanes(order, "learned"))
        initialise(fresh, Scaling(), 1)
        found = {w.name: w for w in weights(fresh)}
        assert torch.equal(found["layers.1.lanes.keep"].tensor, torch.full((2,), start))
        assert torch.equal(found["layers.1.lanes.route"].tensor, torch.ones(2, 2))
        assert found["layers.2.lanes.share"].tensor.tolist() == [0.5]
        places = {w.place for w in layout(fresh.spec) if ".lanes." in w.name}
        assert places == {Place.LANES}
        assert {w.role for w in layout(fresh.spec) if ".lanes." in w.name} == {Role.VECTOR}


def test_equal_lanes_that_keep_what_they_have_are_one_stream(tokens: Draw) -> None:
    """With all weights at one and equal branches, two lanes are a parallel layer."""
    wiring = {"kind": "lanes", "keep": 1.0}
    two, one = (
        build(model({"wiring": wiring}, depth=2)),
        build(model({"wiring": "parallel"}, depth=2)),
    )
    initialise(two, Scaling(table=0.1, outputs="random"), 1)
    w = {name: t.numpy() for name, t in of(two).items() if ".lanes." not in name}
    load_weights(one, w)
    ids = tokens(two.spec)
    with torch.no_grad():
        torch.testing.assert_close(two(ids), one(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("order", ["parallel", "serial"])
@pytest.mark.parametrize("loops", [1, 3])
def test_lanes_in_a_loop_are_cached_cut_and_shared(
    order: str, loops: int, make: Make, tokens: Draw
) -> None:
    made = make(lanes(order, route="0 (1:3)*2@0.5 3", skips="mirror")).loops(loops)
    ids = tokens(made.spec)
    cache: KVCache = {}
    with torch.no_grad():
        whole = made(ids)
        steps = [made(ids[:, i : i + 1], cache, i) for i in range(12)]
        torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-5, rtol=0)
        torch.testing.assert_close(made(ids, last=4), whole[:, -4:], atol=1e-5, rtol=0)
        text = torch.randint(40, (1, 20), generator=torch.Generator().manual_seed(3))
        where = torch.tensor([0, 3, 8])[:, None] + torch.arange(12)
        apart = made.hidden(text[0, where], last=5).x
        together = made.hidden(text, last=5, overlap=Overlap(where, torch.arange(20))).x
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


@pytest.mark.parametrize("order", ["parallel", "serial"])
def test_lanes_are_read_at_the_last_positions_only(order: str, make: Make, tokens: Draw) -> None:
    """In the last visit, and before any window has its own row."""
    wiring = {"wiring": {"kind": "lanes", "order": order}, "join": ["mix_input"]}
    made = make(model(wiring, depth=1))
    ids = tokens(made.spec)
    where = torch.tensor([0, 3, 6])[:, None] + torch.arange(6)
    with torch.no_grad():
        torch.testing.assert_close(made(ids, last=3), made(ids)[:, -3:], atol=1e-5, rtol=0)
        apart = made.hidden(ids[0, where], last=2).x
        together = made.hidden(ids[:1], last=2, overlap=Overlap(where, torch.arange(12))).x
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


def gradients(made: Model, ids: Tensor) -> dict[str, Tensor]:
    for weight in weights(made):
        weight.tensor.grad = None
    loss = F.cross_entropy(made(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    torch.autograd.backward(loss)
    return {w.name: w.tensor.grad for w in weights(made) if w.tensor.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("order", ["parallel", "serial"])
def test_compiling_lanes_changes_no_bit(order: str, make: Make, tokens: Draw) -> None:
    made = make(lanes(order, "learned", skips="mirror", join=["loop_embedding", "loop_gain"]))
    ids = tokens(made.spec)
    torch.compiler.reset()
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(ids), made(ids))
    torch.compiler.reset()


@pytest.mark.parametrize("recompute", [2, -1])
def test_recomputed_lanes_have_the_same_gradients(recompute: int, make: Make, tokens: Draw) -> None:
    spec = lanes("serial", "learned", route="0 (1:3)*2 3", join=["loop_gain"])
    made = make(spec)
    ids = tokens(spec)
    wanted = gradients(made, ids)
    made.recompute = recompute
    found = gradients(made, ids)
    assert found.keys() == wanted.keys() == {w.name for w in layout(spec)}
    for name, gradient in wanted.items():
        assert torch.equal(found[name], gradient), name


@pytest.mark.parametrize("start", [1, 2])
def test_truncated_loops_hand_on_the_gradient_of_both_lanes(
    start: int, make: Make, tokens: Draw
) -> None:
    """Whether lanes start within the loop or before it, what comes before learns."""
    spec = model({"wiring": "lanes"}, depth=4, route=f"0:{start} ({start})*3 {start + 1}:")
    made = make(spec)
    ids = tokens(spec)
    with torch.no_grad():
        whole = made.set_progress(1.0, 3)(ids)
        assert torch.equal(made.set_progress(1.0, 3, back=1)(ids), whole)
    found = gradients(made.set_progress(1.0, 3, back=1), ids)
    assert found.keys() == {w.name for w in layout(spec)}
    assert all(gradient.abs().max() > 0 for gradient in found.values())


def test_a_merge_that_nothing_reads_is_refused() -> None:
    override = [
        {"layers": "1", "set": {"wiring": {"kind": "lanes", "merge": "learned"}}},
        {"layers": "2", "set": {"wiring": "lanes"}},
    ]
    with pytest.raises(SpecError, match=r"layers\[1\]\.wiring: lanes go on after every visit of"):
        model({}, depth=3, override=override)
    with pytest.raises(SpecError, match="two lanes need a mixer and a feed to route between"):
        model({"wiring": "lanes", "feed": None})
    with pytest.raises(SpecError, match="unknown kind 'lane'; did you mean 'lanes'"):
        model({"wiring": "lane"})


def test_a_loop_may_grow_in_two_stages(make: Make, tokens: Draw) -> None:
    made = make(model({}, depth=11, route="0:3 (3:6)*3@0.5,0.65 6:", skips="mirror"))

    def order() -> list[int]:
        return [made.spec.visits[i].layer for i in made.active]

    middle = [3, 4, 5]
    for progress, times in ((0.0, 1), (0.49, 1), (0.5, 2), (0.64, 2), (0.65, 3), (1.0, 3)):
        made.set_progress(progress)
        assert order() == [0, 1, 2, *middle * times, 6, 7, 8, 9, 10]
        with torch.no_grad():
            assert made(tokens(made.spec, batch=1, time=4)).isfinite().all()
    assert [v.since for v in made.spec.visits] == [0] * 6 + [0.5] * 3 + [0.65] * 3 + [0] * 5


def test_the_feeds_of_a_repeated_layer_may_be_untied(make: Make, tokens: Draw) -> None:
    """One mixer in three visits, each followed by a feed of its own."""
    untied = model(
        {},
        depth=4,
        override=[
            {"layers": "0", "set": {"feed": None}},
            {"layers": "1:", "set": {"mixer": None}},
        ],
        route="0 1 0 2 0 3",
    )
    made = make(untied)
    ids, w = tokens(untied), of(made)
    x = rms(w["table"][ids])
    for i in (1, 2, 3):
        x = x + w["layers.0.mixer.gain"] * attention(w, 0, rms(x))
        x = x + w[f"layers.{i}.feed.gain"] * feed(w, i, rms(x))
    assert_gives(made, ids, x)
    assert {w.uses for w in layout(untied) if w.place is Place.MIXER} == {3}
    assert {w.uses for w in layout(untied) if w.place is Place.FEED} == {1}
