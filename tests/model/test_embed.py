"""What tokens start as: each part against its formula, across blocks, never across documents."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from segpt.config import parts as slot
from segpt.config.base import encode
from segpt.config.expand import expand
from segpt.config.layout import Place, Role, layout
from segpt.config.model import ModelSpec
from segpt.config.train import Scaling
from segpt.errors import SpecError
from segpt.model import embed
from segpt.model.build import build
from segpt.model.cache import KVCache, LayerCache, first_rows
from segpt.model.model import Model
from segpt.model.scaling import initialise
from segpt.model.state import ForwardState
from tests.model.states import entering, state_of

Make = Callable[..., Model]
START, WIDTH = 7, 16
SMEAR = {"kind": "smear", "inputs": 5}
CHANNEL = {"kind": "smear", "gate": "channel"}
BIGRAM = {"kind": "bigram", "buckets": 13, "width": 4}
DIRECT = {"kind": "bigram", "buckets": 13, "width": WIDTH, "scale": 1.0}
FORMS: dict[str, list[Any]] = {
    "smear": [SMEAR],
    "channel": [CHANNEL],
    "bigram": [BIGRAM],
    "direct": [DIRECT],
    "all": [SMEAR, BIGRAM, CHANNEL, DIRECT, "normalise"],
}


def model_spec(*parts: Any, **changes: Any) -> ModelSpec:
    recipe: dict[str, Any] = {
        "vocab": 20,
        "width": WIDTH,
        "context": 32,
        "depth": 1,
        "start": START,
        "embed": ["token", *parts],
        "layer": {"mixer": None, "feed": {"hidden": 24}},
    }
    return expand(recipe | changes)


def ids(*starts: int, time: int = 24, batch: int = 2) -> Tensor:
    """Tokens of documents that start there, in every row."""
    generator = torch.Generator().manual_seed(3)
    found = torch.randint(START, (batch, time), generator=generator)
    found[:, list(starts)] = START
    return found


def embedded(
    model: Model, tokens: Tensor, sizes: Sequence[int] = (), cache: KVCache | None = None
) -> Tensor:
    """What the layers of the model would read, all at once or in blocks through a cache."""
    cache, start = {} if cache is None else cache, 0
    with torch.no_grad(), entering(model) as entered:
        if not sizes:
            model.hidden(tokens)
        for size in sizes:
            model.hidden(tokens[:, start : start + size], cache, start)
            start += size
    return torch.cat(entered, 1)


def stream(tokens: Tensor, cache: LayerCache | None = None) -> ForwardState:
    return state_of(torch.zeros(0), tokens=tokens, cache=cache, start=START)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_smear_by_token() -> None:
    part = embed.Smear(slot.Smear(inputs=5), WIDTH).double()
    tokens, x = ids(0, 9, 10), noise(2, 24, WIDTH)
    gate, scale = noise(5, seed=1), 0.7
    with torch.no_grad():
        part.gate.weight.copy_(gate)
        assert part.scale is not None
        part.scale.weight.fill_(scale)
        found = part(x, stream(tokens))
    for row in range(2):
        for t in range(24):
            wanted = x[row, t]
            if t > 0 and tokens[row, t] != START:
                share = 1 / (1 + torch.exp(-(gate * x[row, t, :5]).sum()))
                wanted = wanted + scale * share * x[row, t - 1]
            torch.testing.assert_close(found[row, t], wanted)


def test_smear_by_channel() -> None:
    part = embed.Smear(slot.Smear(gate="channel"), WIDTH).double()
    tokens, x, gate = ids(9, 10), noise(2, 24, WIDTH), noise(WIDTH, seed=1)
    with torch.no_grad():
        part.gate.weight.copy_(gate)
        found = part(x, stream(tokens))
    for t in range(24):
        before = torch.zeros(2, WIDTH).double() if t == 0 else x[:, t - 1]
        wanted = x[:, t] if t in (9, 10) else (1 - gate) * x[:, t] + gate * before
        torch.testing.assert_close(found[:, t], wanted)


@pytest.mark.parametrize("width", [4, WIDTH])
def test_bigrams_add_the_row_of_a_pair(width: int) -> None:
    part = embed.Bigram(slot.Bigram(buckets=13, width=width, scale=0.3), WIDTH).double()
    tokens, x, rows = ids(0, 9, 10), noise(2, 24, WIDTH), noise(13, width, seed=1)
    with torch.no_grad():
        part.rows.weight.copy_(rows)
        part.scale.weight.fill_(0.3)
        if part.projection is not None:
            part.projection.weight.copy_(noise(WIDTH, width, seed=2))
            rows = rows @ part.projection.weight.T
        assert (part.projection is None) == (width == WIDTH)
        found = part(x, stream(tokens))
    for row in range(2):
        for t, token in enumerate(tokens[row].tolist()):
            bucket = 12
            if t > 0 and token != START:
                bucket = (36313 * token ^ 27191 * int(tokens[row, t - 1])) % 12
            torch.testing.assert_close(found[row, t], x[row, t] + 0.3 * rows[bucket])


def test_a_token_need_not_be_normalised() -> None:
    for norm in (True, False):
        spec = model_spec(embed=[{"kind": "token", "norm": norm}])
        model = build(spec)
        initialise(model, Scaling(table=3.0), 0)
        rows = model.table(ids())
        size = rows.square().mean(-1, keepdim=True).sqrt()
        torch.testing.assert_close(embedded(model, ids()), rows / size if norm else rows)
    assert encode(slot.Token()) == {"kind": "token"}  # as it was stored before


def test_normalising_comes_where_it_stands() -> None:
    spec = model_spec(embed=[{"kind": "token", "norm": False}, CHANNEL, "normalise"])
    model = build(spec)
    initialise(model, Scaling(table=3.0), 0)
    with torch.no_grad():
        smear = model.embed[1]
        assert isinstance(smear, embed.Smear)
        smear.gate.weight.fill_(0.25)
    rows, tokens = model.table(ids()), ids()
    before = torch.cat([torch.zeros(2, 1, WIDTH), rows[:, :-1]], 1)
    mixed = torch.where((tokens == START)[..., None], rows, 0.75 * rows + 0.25 * before)
    wanted = mixed / mixed.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(embedded(model, tokens), wanted)


@pytest.mark.parametrize("form", FORMS)
def test_every_part_starts_as_identity(form: str) -> None:
    parts = [part for part in FORMS[form] if part != "normalise"]
    model, plain = build(model_spec(*parts)), build(model_spec())
    for one in (model, plain):
        initialise(one, Scaling(), 0)
    assert torch.equal(embedded(model, ids()), embedded(plain, ids()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", [[1] * 24, [1, 8, 1, 1, 5, 8], [9, 15], [10, 14]], ids=str)
def test_blocks_equal_the_whole(form: str, sizes: list[int], make: Make) -> None:
    model, tokens = make(model_spec(*FORMS[form])), ids(0, 9, 10)
    whole = embedded(model, tokens)
    torch.testing.assert_close(embedded(model, tokens, sizes), whole, atol=1e-6, rtol=0)
    changed = embedded(build_like(model), tokens)
    assert not torch.allclose(whole, changed, atol=1e-3)


def build_like(model: Model) -> Model:
    """A fresh model of the same table, in which no part has learned anything."""
    fresh = build(model.spec)
    initialise(fresh, Scaling(), 0)
    with torch.no_grad():
        fresh.table.weight.copy_(model.table.weight)
    return fresh


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", [[], [1] * 24, [9, 15]], ids=str)
def test_no_part_looks_into_another_document(form: str, sizes: list[int], make: Make) -> None:
    model, tokens = make(model_spec(*FORMS[form])), ids(9)
    others = tokens.clone()
    others[:, :9] = (others[:, :9] + 1) % START
    one, other = embedded(model, tokens, sizes), embedded(model, others, sizes)
    assert torch.equal(one[:, 9:], other[:, 9:])
    assert not torch.allclose(one[:, :9], other[:, :9], atol=1e-3)
    alone = embedded(model, tokens[:, 9:])
    torch.testing.assert_close(one[:, 9:], alone, atol=1e-6, rtol=0)
    others = tokens.clone()
    others[:, 12] = (others[:, 12] + 1) % START
    changed = (embedded(model, tokens) - embedded(model, others)).abs().amax((0, 2)) > 0
    several = 1 + sum(part != "normalise" for part in FORMS[form])  # each looks one further back
    assert changed.nonzero()[:, 0].tolist()[:2] == [12, 13]
    assert changed.nonzero()[:, 0].max() < 12 + several


def test_rows_that_have_ended_drop_out(make: Make) -> None:
    model, tokens, cache = make(model_spec(*FORMS["all"])), ids(0, 9, batch=3), KVCache()
    embedded(model, tokens, [11], cache)
    assert {place for place in cache if place < 0} == {-2, -3, -4, -5}
    first_rows(cache, 1)
    with torch.no_grad(), entering(model) as entered:
        model.hidden(tokens[:1, 11:], cache, 11)
    torch.testing.assert_close(entered[0], embedded(model, tokens)[:1, 11:], atol=1e-6, rtol=0)


def test_windows_own_the_tokens_that_look_back_beyond_them() -> None:
    assert build(model_spec()).private_prefix == 0
    assert build(model_spec("normalise")).private_prefix == 0
    for model in (build(model_spec(*form)) for form in FORMS.values()):
        backward = sum(isinstance(part, embed.Backward) for part in model.embed)
        assert model.private_prefix == backward > 0


def test_their_weights_are_laid_out() -> None:
    found = {
        w.name: (w.role, w.shape, w.layer, w.uses, w.place)
        for w in layout(model_spec(SMEAR, BIGRAM))
        if w.place is Place.EMBED
    }
    assert found == {
        "table": (Role.TABLE, (20, WIDTH), None, 1, Place.EMBED),
        "embed.1.gate": (Role.VECTOR, (5,), None, 1, Place.EMBED),
        "embed.1.scale": (Role.VECTOR, (1,), None, 1, Place.EMBED),
        "embed.2.rows": (Role.TABLE, (13, 4), None, 1, Place.EMBED),
        "embed.2.projection": (Role.MATRIX, (WIDTH, 4), None, 1, Place.EMBED),
        "embed.2.scale": (Role.VECTOR, (1,), None, 1, Place.EMBED),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed": ["normalise", "token"]}, "embed begins with token, and has it once"),
        ({"embed": []}, "embed begins with token"),
        ({"embed": ["token", "token"]}, "embed begins with token, and has it once"),
        (
            {"embed": ["token", SMEAR], "start": None},
            r"embed\[1\] looks at the token before, .*start",
        ),
        ({"embed": ["token", BIGRAM], "start": None}, r"embed\[1\] looks at the token before"),
        ({"embed": ["token", SMEAR | {"inputs": 17}]}, r"gate of embed\[1\] reads 17 of 16 chan"),
        ({"embed": ["token", SMEAR | {"inputs": 0}]}, "reads at least one channel, got 0"),
        ({"embed": ["token", BIGRAM | {"buckets": 1}]}, "two buckets and one channel at least"),
        ({"start": 20}, "start is a token id below 20, got 20"),
        ({"start": -1}, "start is a token id below 20, got -1"),
        ({"start": None, "documents": True}, "documents cannot be told apart; set start"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        model_spec(**changes)
