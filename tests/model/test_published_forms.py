"""Recipes of published systems, narrowed, against the systems written out in plain lines."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segpt.config.recipe import read_recipe
from segpt.model.model import Model
from segpt.model.params import weights

Make = Callable[..., Model]
Draw = Callable[..., Tensor]
Weights = Mapping[str, Tensor]
Parts = tuple[Tensor, Tensor, Tensor]
CHANNELS, START, LONG, SHORT = 16, 1, 8, 4
NARROW = (
    "model.vocab=97",
    "model.width=64",
    "model.context=32",
    "model.layer.mixer.head_dim=16",
    "model.layer.feed.hidden=96",
)
LOOKING = (
    "model.start=1",
    "model.windows.long=8",
    "model.windows.short=4",
    "model.growth=null",
    "model.layer.mixer.heads=4",
    "model.layer.mixer.kv_heads=4",
    "model.layer.mixer.query_key[1].dims=16",
)


def rms(x: Tensor) -> Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt()


def turned(x: Tensor, rates: Tensor, sign: float = 1.0) -> Tensor:
    """Channels i and i + n of (batch, time, heads, channels) turn by the i-th of n rates."""
    n = len(rates)
    a, b, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    angle = torch.outer(torch.arange(x.size(1)).double(), rates)[:, None]
    cos, sin = angle.cos(), sign * angle.sin()
    return torch.cat([a * cos + b * sin, b * cos - a * sin, rest], -1)


def all_rates(dims: int) -> Tensor:
    return 10_000.0 ** (-torch.arange(0, dims, 2).double() / dims)


def half_rates(dims: int) -> Tensor:
    share = torch.linspace(0, 1, dims // 4).double()
    return torch.cat([(1 / 1024) ** share, torch.zeros(dims // 4)])


def by_head(x: Tensor) -> Tensor:
    return x.view(*x.shape[:-1], -1, CHANNELS)


def projected(h: Tensor, w: Weights, p: str) -> Parts:
    q, k, v = (by_head(h @ w[f"{p}.mixer.body.{name}"].T) for name in ("query", "key", "value"))
    return q, k, v


def attended(
    parts: Parts, scale: float, window: int | None = None, documents: Tensor | None = None
) -> Tensor:
    q, k, v = parts
    k, v = (t.repeat_interleave(q.size(2) // k.size(2), 2) for t in (k, v))
    time = torch.arange(q.size(1))
    behind = time[:, None] - time
    hidden = (behind < 0) | (behind >= (window or len(time)))
    if documents is not None:
        hidden = hidden | (documents[:, :, None] != documents[:, None])[:, None]
    logits = scale * torch.einsum("bqhc,bkhc->bhqk", q, k)
    return torch.einsum("bhqk,bkhc->bqhc", logits.masked_fill(hidden, -torch.inf).softmax(-1), v)


def documents_of(tokens: Tensor) -> Tensor:
    """A document's token of separation belongs to the one it opens."""
    return (tokens == START).cumsum(1)


def squared(h: Tensor, w: Weights, p: str) -> Tensor:
    return F.relu(h @ w[f"{p}.feed.body.up"].T) ** 2 @ w[f"{p}.feed.body.down"].T


def imu1(w: Weights, tokens: Tensor) -> Tensor:
    x, first = w["table"][tokens], torch.zeros(0)
    x = rms(x)
    for i in range(5):
        p, c = f"layers.{i}", (i + 1) ** -0.5
        h = rms(x) * w[f"{p}.mixer.gain"] * c
        q, k, v = projected(h, w, p)
        rates = all_rates(CHANNELS)
        q = rms(turned(q, rates, -1.0)) * w[f"{p}.mixer.body.query_key_parts.2.gain"]
        k = rms(turned(k, rates, -1.0))
        a, b = w[f"{p}.mixer.body.value_parts.0.mix"]
        s = w[f"{p}.mixer.body.value_parts.0.scale"]
        v = s * (a * v + b * (first if i else v)) / (a**2 + b**2).sqrt()
        first = first if i else v
        y = attended((q, k, v), CHANNELS**-0.5)
        gate = 2 * torch.sigmoid(h @ w[f"{p}.mixer.body.output_parts.0.gate"].T)
        x = x + (gate[..., None] * y).flatten(2) @ w[f"{p}.mixer.body.out"].T
        h = rms(x) * w[f"{p}.feed.gain"] * c
        opened, up = (h @ w[f"{p}.feed.body.up"].T).chunk(2, -1)
        x = x + (F.silu(opened) * up) @ w[f"{p}.feed.body.down"].T
    return (rms(x) * w["head.gain"]) @ w["table"].T


def lapp0(w: Weights, tokens: Tensor) -> Tensor:
    x = x0 = rms(w["table"][tokens])
    documents, first = documents_of(tokens), torch.zeros(0)
    pushed: list[Tensor] = []
    for n, i in enumerate([0, 1, 2, *[3, 4, 5, 6, 7, 8] * 4, 9, 10, 11]):
        p = f"layers.{i}"
        if n >= 15:
            x = x + w[f"visits.{n}.0.scale"] * pushed.pop()
        m = w[f"{p}.join.0.mix"]
        x = m[0] * x + m[1] * x0
        q, k, v = projected(rms(x), w, p)
        first = first if n else v
        share = w[f"{p}.mixer.body.value_parts.0.mix"]
        q, k = (turned(rms(t), half_rates(CHANNELS)) for t in (q, k))
        window = SHORT if n % 2 else LONG
        y = attended((q, k, (1 - share) * v + share * first), 0.12, window, documents)
        x = x + y.flatten(2) @ w[f"{p}.mixer.body.out"].T
        x = x + squared(rms(x), w, p)
        if n < 15:
            pushed.append(x)
    assert not pushed
    logits = rms(x) @ w["head.matrix"][:97].T
    return 30 * torch.sigmoid(logits / 7.5)


def daisy(w: Weights, tokens: Tensor) -> Tensor:
    depth = 16
    left: list[Tensor] = []
    x = x0 = rms(w["table"][tokens])
    documents = documents_of(tokens)
    tables = {0: 0, 1: 1, 2: 2, depth - 3: 0, depth - 2: 1}
    sources = {depth - 3: 9, depth - 2: 6, depth - 1: 3}
    for i in range(depth):
        p = f"layers.{i}"
        if i in sources:
            x = x + w[f"visits.{i}.0.scale"] * left[sources[i]]
        m = w[f"{p}.join.0.mix"]
        x = m[0] * x + m[1] * x0
        if (i + 1) % 8:
            q, k, v = projected(x, w, p)
            q, k, v = turned(rms(q), half_rates(16)), turned(rms(k), half_rates(16)), rms(v)
            if i in tables:
                keep, blend = w[f"{p}.mixer.body.value_parts.1.mix"]
                rows = w[f"value_tables.{tables[i]}"][tokens]
                v = keep * v + blend * by_head(rows)
            y = attended((q, k, v), 0.12, SHORT if i % 4 else LONG, documents)
            x = x + y.flatten(2) @ w[f"{p}.mixer.body.out"].T
        x = x + squared(rms(x), w, p)
        left.append(x)
    z = rms(x) @ w["head.matrix"][:97].T
    return 15 * z / (z**2 + 225).sqrt()


def frontier(w: Weights, tokens: Tensor) -> Tensor:
    documents = documents_of(tokens)
    pushed: list[Tensor] = []
    x = w["table"][tokens]
    gate = torch.sigmoid((x[..., :12] * w["embed.1.gate"]).sum(-1, keepdim=True))
    before = F.pad(x, (0, 0, 1, 0))[:, :-1]
    x = x0 = rms(x + w["embed.1.scale"] * gate * before * (tokens != START)[..., None])
    lane: Tensor | None = None
    for n, i in enumerate([0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10]):
        p, c = f"layers.{i}", (i + 1) ** -0.5
        if i == 8:
            lane = x
        if n >= 8 and pushed:
            g = torch.sigmoid(w[f"visits.{n}.0.gate"])
            x = (1 - g) * w[f"visits.{n}.0.scale"] * pushed.pop() + g * x
        mix = w[f"{p}.join.0.mix"]
        u = mix[0] * x + mix[1] * x0
        h = rms(u) * c
        q, k, v = projected(h, w, p)
        q, k = (turned(rms(t), all_rates(8)) for t in (q, k))
        q = q * w[f"{p}.mixer.body.query_key_parts.2.gain"]
        y = attended((q, k, v), CHANNELS**-0.5, None, documents)
        own = F.normalize(v.repeat_interleave(2, 2), dim=-1)
        y = y - (y * own).sum(-1, keepdim=True) * own
        opened = torch.sigmoid(0.5 * h[..., :12] @ w[f"{p}.mixer.body.output_parts.1.gate"].T)
        y = (opened[..., None] * y).flatten(2) @ w[f"{p}.mixer.body.out"].T
        mixed = w[f"{p}.mixer.gain"] * y
        read = u + mixed if lane is None else lane
        up = F.leaky_relu((rms(read) * c) @ w[f"{p}.feed.body.up"].T, 0.5) ** 2
        fed = w[f"{p}.feed.gain"] * (up @ w[f"{p}.feed.body.down"].T)
        if lane is None:
            x = u + mixed + fed
        else:
            keep, route = w[f"{p}.lanes.keep"], w[f"{p}.lanes.route"]
            x, lane = (
                keep[j] * t + route[j, 0] * mixed + route[j, 1] * fed
                for j, t in enumerate((x, lane))
            )
        if n < 8:
            pushed.append(x)
    assert lane is not None
    return 30 * torch.tanh(rms((x + lane) / 2) @ w["table"].T / 30)


FORMS: dict[str, tuple[Callable[[Weights, Tensor], Tensor], tuple[str, ...]]] = {
    "imu1": (
        imu1,
        (
            "model.depth=5",
            "model.layer.mixer.heads=6",
            "model.layer.mixer.kv_heads=2",
            "model.layer.mixer.query_key[0].dims=16",
        ),
    ),
    "lapp0": (lapp0, (*LOOKING, "model.head.softcap.divisor=7.5")),
    "daisy-350m": (daisy, LOOKING),
    "frontier": (
        frontier,
        (
            "model.layer.mixer.heads=4",
            "model.layer.mixer.kv_heads=2",
            "model.layer.mixer.query_key[1].dims=8",
        ),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_recipe_builds_the_published_system(name: str, make: Make, tokens: Draw) -> None:
    form, settings = FORMS[name]
    spec = read_recipe(name, [*NARROW, *settings]).model
    model = make(spec)
    ids = tokens(spec, time=20)
    with torch.no_grad():
        wanted = form({w.name: w.tensor.double() for w in weights(model)}, ids)
        found = model(ids)
    assert wanted.std() > 0.05
    torch.testing.assert_close(found.double(), wanted, atol=2e-4, rtol=0)
