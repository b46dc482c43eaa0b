"""Published models, written out in plain lines, against what their recipes build."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segpt.config.model import ModelSpec
from segpt.model.model import Model
from segpt.model.params import weights

Make = Callable[..., Model]
Draw = Callable[..., Tensor]
Weights = Mapping[str, Tensor]
HEADS, KV_HEADS, CHANNELS = 4, 2, 16


def rms(x: Tensor) -> Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt()


def rope(x: Tensor, dims: int) -> Tensor:
    a, b, rest = x[..., : dims // 2], x[..., dims // 2 : dims], x[..., dims:]
    rates = 10_000.0 ** (-torch.arange(0, dims, 2) / dims)
    angle = torch.outer(torch.arange(x.size(1)).float(), rates)[:, None]
    turned = a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin()
    return torch.cat([*turned, rest], -1)


def attention(h: Tensor, w: Weights, p: str, dims: int) -> tuple[Tensor, Tensor]:
    """The heads' outputs before the output matrix, and the values repeated to as many heads."""
    q, k, v = (
        (h @ w[f"{p}.mixer.body.{name}"].T).view(*h.shape[:2], -1, CHANNELS)
        for name in ("query", "key", "value")
    )
    q = rope(rms(q), dims) * w[f"{p}.mixer.body.query_key_parts.2.gain"]
    k, v = (t.repeat_interleave(HEADS // KV_HEADS, 2) for t in (rope(rms(k), dims), v))
    logits = torch.einsum("bqhc,bkhc->bhqk", q, k) / CHANNELS**0.5
    future = torch.ones(h.size(1), h.size(1)).triu(1).bool()
    share = logits.masked_fill(future, -torch.inf).softmax(-1)
    return torch.einsum("bhqk,bkhc->bqhc", share, v), v


def seed004(w: Weights, tokens: Tensor) -> Tensor:
    x = x0 = rms(w["table"][tokens])
    for layer in [0, 1, 2] * 8:
        p = f"layers.{layer}"
        m = w[f"{p}.join.0.mix"]
        x = m[0] * x + m[1] * x0
        h = rms(x)
        y, _ = attention(h, w, p, dims=CHANNELS)
        mixed = y.flatten(2) @ w[f"{p}.mixer.body.out"].T
        fed = F.relu(h @ w[f"{p}.feed.body.up"].T) ** 2 @ w[f"{p}.feed.body.down"].T
        x = x + w[f"{p}.mixer.gain"] * mixed + w[f"{p}.feed.gain"] * fed
    return 30 * torch.tanh(rms(x) @ w["table"].T / 30)


def golf16(w: Weights, tokens: Tensor) -> Tensor:
    x = x0 = rms(w["table"][tokens])
    pushed: list[Tensor] = []
    for n, layer in enumerate([0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10]):
        p, c = f"layers.{layer}", (layer + 1) ** -0.5
        if n >= 8 and pushed:
            g = torch.sigmoid(w[f"visits.{n}.0.gate"])
            x = (1 - g) * w[f"visits.{n}.0.scale"] * pushed.pop() + g * x
        m = w[f"{p}.join.0.mix"]
        x = start = m[0] * x + m[1] * x0
        y, v = attention(rms(x) * c, w, p, dims=4)
        unit = v / v.norm(dim=-1, keepdim=True)
        y = y - (y * unit).sum(-1, keepdim=True) * unit
        x = x + w[f"{p}.mixer.gain"] * (y.flatten(2) @ w[f"{p}.mixer.body.out"].T)
        h = rms(start if layer >= 7 else x) * c
        up = F.leaky_relu(h @ w[f"{p}.feed.body.up"].T, 0.5) ** 2
        x = x + w[f"{p}.feed.gain"] * (up @ w[f"{p}.feed.body.down"].T)
        if n < 8:
            pushed.append(x)
    assert not pushed
    return 30 * torch.tanh(rms(x) @ w["table"].T / 30)


@pytest.mark.parametrize("form", [seed004, golf16])
def test_a_recipe_builds_its_published_form(
    form: Callable[[Weights, Tensor], Tensor],
    small_recipe: Callable[[str], ModelSpec],
    make: Make,
    tokens: Draw,
) -> None:
    spec = small_recipe(form.__name__)
    model = make(spec)
    ids = tokens(spec, time=20)
    with torch.no_grad():
        wanted = form({w.name: w.tensor.double() for w in weights(model)}, ids)
        found = model(ids)
    assert wanted.std() > 0.1
    torch.testing.assert_close(found.double(), wanted, atol=1e-4, rtol=0)
