"""Attention that keeps documents apart: each is as if it were alone, however it is read."""

import dataclasses
import itertools
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from segpt import kernels
from segpt.config.base import encode
from segpt.config.expand import expand
from segpt.config.model import ModelSpec
from segpt.model.cache import KVCache, first_rows
from segpt.model.model import Model

Make = Callable[..., Model]
START = 7
STARTS = (0, 5, 6, 19, 31)
LOOKING: list[Any] = [
    {"kind": "token", "norm": False},
    {"kind": "smear", "inputs": 5},
    {"kind": "bigram", "buckets": 13, "width": 4},
    "normalise",
]


def model_spec(**changes: Any) -> ModelSpec:
    recipe: dict[str, Any] = {
        "vocab": 20,
        "width": 16,
        "context": 32,
        "depth": 3,
        "route": "0 (1)*2 2",
        "skips": "mirror",
        "join": ["mix_input"],
        "start": START,
        "documents": True,
        "layer": {
            "mixer": {
                "heads": 2,
                "kv_heads": 1,
                "head_dim": 8,
                "query_key": ["norm", {"kind": "rope", "dims": 8}],
                "value": ["value_residual"],
            },
            "feed": {"hidden": 24},
        },
    }
    return expand(recipe | changes)


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "windowed": {"override": [{"layers": "1", "set": {"mixer": {"window": 4}}}]},
    "embedded": {"embed": LOOKING},
}


@pytest.fixture(params=FORMS)
def model(request: pytest.FixtureRequest, make: Make) -> Model:
    found: Model = make(model_spec(**FORMS[request.param]))
    return found


def ids(*starts: int, time: int = 40, batch: int = 2) -> Tensor:
    """Tokens of documents that start there; the second row has one less."""
    found = torch.randint(START, (batch, time), generator=torch.Generator().manual_seed(3))
    found[:, list(starts)] = START
    found[1:, 19] = 3
    return found


def apart(model: Model, tokens: Tensor, window: int | None = None) -> Tensor:
    """Logits of every document of every row alone."""
    rows = []
    for row in tokens:
        borders = sorted({0, *(row == START).nonzero()[:, 0].tolist(), len(row)})
        with torch.no_grad():
            rows.append(
                torch.cat([model(row[None, i:j], window=window) for i, j in pairwise(borders)], 1)
            )
    return torch.cat(rows)


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 1, 3, 8])
@pytest.mark.parametrize("starts", [STARTS, (5, 6, 19, 31), (39,), (1, 2, 3), ()], ids=str)
def test_each_document_is_as_if_alone(
    model: Model, window: int | None, starts: tuple[int, ...]
) -> None:
    tokens = ids(*starts)
    with torch.no_grad():
        found = model(tokens, window=window)
    torch.testing.assert_close(found, apart(model, tokens, window), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "window"),
    [
        # Forty steps take long; other windows meet steps of one in the second sizes.
        *(pytest.param([1] * 40, window) for window in (None, 3)),
        *(pytest.param([1] * 40, window, marks=pytest.mark.campaign) for window in (1, 8)),
        *itertools.product(([5, 1, 1, 24, 2, 7], [40], [19, 12, 9]), (None, 1, 3, 8)),
    ],
    ids=str,
)
def test_so_is_one_that_is_read_in_blocks(
    model: Model, sizes: list[int], window: int | None
) -> None:
    tokens, cache, start, pieces = ids(*STARTS), KVCache(), 0, []
    with torch.no_grad():
        for size in sizes:
            pieces.append(model(tokens[:, start : start + size], cache, start, window=window))
            start += size
    wanted = apart(model, tokens, window)
    torch.testing.assert_close(torch.cat(pieces, 1), wanted, atol=1e-5, rtol=0)
    for place, past in cache.items():
        if place >= 0:
            assert past.key is not None
            assert past.documents is not None
            assert past.documents.shape == past.key.shape[:2]


def test_rows_that_have_ended_drop_out(model: Model) -> None:
    tokens, cache = ids(*STARTS, batch=3), KVCache()
    with torch.no_grad():
        model(tokens[:, :17], cache, 0, window=8)
        first_rows(cache, 1)
        found = model(tokens[:1, 17:], cache, 17, window=8)
    wanted = apart(model, tokens[:1], 8)[:, 17:]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_without_the_mask_documents_see_each_other(make: Make) -> None:
    spec = model_spec()
    crossing = make(dataclasses.replace(spec, documents=False))
    tokens = ids(*STARTS)
    with torch.no_grad():
        found = crossing(tokens)
    wanted = apart(crossing, tokens)
    torch.testing.assert_close(found[0, :5], wanted[0, :5], atol=1e-5, rtol=0)
    assert not torch.allclose(found[:, 6:], wanted[:, 6:], atol=1e-3)
    assert "documents" not in encode(model_spec(documents=False, start=None))


def test_backends_agree_forward_and_backward(model: Model) -> None:
    tokens, found = ids(*STARTS), []
    for backend in ("reference", "torch"):
        with kernels.use(backend):
            model.zero_grad(set_to_none=True)
            logits = model(tokens, window=6)
            torch.autograd.backward(logits.square().mean())
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append([logits.detach(), *grads])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_compiling_changes_no_bit(make: Make) -> None:
    """A compiled pass always has the mask, and an eager one only where it hides something."""
    model = make(model_spec(depth=2, route=":", embed=LOOKING))
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for starts in (STARTS, (), (0,)):
            assert torch.equal(compiled(ids(*starts)), model(ids(*starts)))
    torch.compiler.reset()
