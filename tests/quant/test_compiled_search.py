"""The loops that numba compiles against torch: the same codes, bit for bit."""

import functools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from segpt import trellis
from segpt.config.layout import Role
from segpt.errors import SegptError
from segpt.quant import compiled_search
from segpt.quant.design import design
from segpt.quant.gptq import inverse_factor
from segpt.quant.sensitivity import Sensitivity
from segpt.quant.stepped import to_stepped
from segpt.quant.viterbi import encode

pytestmark = pytest.mark.slow
CHOICES: tuple[compiled_search.Choice, ...] = ("torch", "numba")
STATES = (1, 4, 8, 16)


@pytest.fixture(autouse=True)
def _chosen() -> Iterator[None]:
    yield
    compiled_search.use("auto")


def moment(size: int, seed: int) -> Tensor:
    """(size, size), of correlated values."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=draw) / size**0.5
    x = torch.randn(3 * size, size, generator=draw) @ mixing
    return x.T @ x / len(x)


def both(weight: Tensor, factor: Tensor, steps: Tensor, states: int, price: Tensor | None) -> None:
    """Assert that torch and the loops choose the same."""
    codes = []
    for choice in CHOICES:
        compiled_search.use(choice)
        codes.append(encode(weight, factor, steps, states, penalty=price))
    assert codes[0].any()
    assert torch.equal(*codes)


@pytest.mark.parametrize("priced", [False, True])
@pytest.mark.parametrize("states", STATES)
def test_the_choices_are_the_same(states: int, priced: bool) -> None:
    pytest.importorskip("numba")
    draw = torch.Generator().manual_seed(states)
    weight = 3 * torch.randn(2, 40, 75, generator=draw)
    weight[0, 0] = 0.0
    weight[0, 1] = 1e4  # far beyond the last code
    weight[0, 2] = torch.arange(75) / 2 - 18.0  # ties
    factor = torch.stack([inverse_factor(moment(75, k).double(), 0.01).float() for k in (0, 1)])
    steps = 0.5 + torch.rand(2, 75, generator=draw)
    steps[0] = 1.0
    price = 0.2 * torch.rand(2, 75, generator=draw) if priced else None
    both(weight, factor, steps, states, price)


@pytest.mark.parametrize("states", STATES)
def test_the_choices_are_the_same_where_columns_do_not_meet(states: int) -> None:
    pytest.importorskip("numba")
    weight = (torch.arange(64).float() / 4 - 8).repeat(3, 1)  # every rounding tie
    both(weight, torch.eye(64), torch.ones(64), states, None)


@pytest.mark.parametrize("two_sided", [False, True])
def test_whole_weights_are_coded_the_same(two_sided: bool) -> None:
    pytest.importorskip("numba")
    weight = torch.randn(70, 50, generator=torch.Generator().manual_seed(5))
    outputs = moment(70, 1)
    curvature = moment(50, 2).double()
    sensitivity = Sensitivity(curvature, outputs.diagonal().double(), outputs)
    plan = design(weight, sensitivity, Role.MATRIX, two_sided=two_sided)
    coded = []
    for choice in CHOICES:
        compiled_search.use(choice)
        coded.append(to_stepped(weight, plan, 0.2 / plan.base_step, 8))
    assert coded[0] == coded[1]


@pytest.mark.parametrize("states", STATES)
def test_points_are_those_of_the_trellis(states: int) -> None:
    pytest.importorskip("numba")
    compiled_search.use("numba")
    codes = np.random.default_rng(states).integers(-127, 128, (9, 40)).astype(np.int8)
    reached = compiled_search.points(codes, states)
    assert np.array_equal(reached, trellis.points(codes, states))


def test_little_work_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    compiled_search.compiled.cache_clear()
    monkeypatch.setattr(compiled_search, "_torch_weights", 0)
    assert compiled_search.choose(compiled_search.MOST_TORCH) is None
    assert compiled_search.choose(1) is not None


def test_torch_searches_where_numba_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    @functools.cache
    def broken() -> compiled_search.SearchLoops:
        return compiled_search.SearchLoops(None, None, None, "ImportError: no such library")

    monkeypatch.setattr(compiled_search, "compiled", broken)
    assert compiled_search.choose(compiled_search.MOST_TORCH + 1) is None
    with pytest.raises(SegptError, match="no such library"):
        compiled_search.use("numba")
