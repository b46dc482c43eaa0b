"""The head: its rows, its gain and its caps, against formulas in float64."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segpt.config import head as head_spec
from segpt.config.base import decode, encode
from segpt.config.caps import Asymmetric
from segpt.config.expand import expand
from segpt.config.layout import Place, Role, layout, parameters
from segpt.config.model import ModelSpec
from segpt.config.train import Scaling
from segpt.errors import SpecError
from segpt.model.build import build
from segpt.model.head import Head
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.model.scaling import initialise
from segpt.quant.hessian import hessians

Make = Callable[..., Model]
Draw = Callable[..., Tensor]

CAPS: dict[str, tuple[Any, Callable[[float], float]]] = {
    "none": (None, lambda z: z),
    "tanh": (15.0, lambda z: 15 * math.tanh(z / 15)),
    "sigmoid": (
        {"kind": "sigmoid", "cap": 30.0, "divisor": 7.5 * math.sqrt(24)},
        lambda z: 30 / (1 + math.exp(-z / (7.5 * math.sqrt(24)))),
    ),
    "algebraic": ({"kind": "algebraic", "cap": 15.0}, lambda z: 15 * z / math.sqrt(z * z + 225)),
    "asymmetric": (
        {"kind": "asymmetric", "init": 30.0},
        lambda z: 12 * math.tanh(z / 12) if z > 0 else 5 * math.tanh(z / 5),
    ),
}


def headed(**head: Any) -> ModelSpec:
    """A model of nothing but a table and a head."""
    return expand(
        {
            "vocab": 53,
            "width": 24,
            "context": 16,
            "depth": 1,
            "layer": {"mixer": None, "feed": {"hidden": 24}},
            "head": {"softcap": None} | head,
        }
    )


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_logits_are_capped_products(
    cap: str, tied: bool, scale: float, make: Make, tokens: Draw
) -> None:
    given, formula = CAPS[cap]
    model = make(headed(softcap=given, tied=tied, scale=scale, gain=True))
    ids = tokens(model.spec)
    with torch.no_grad():
        found = {w.name: w.tensor for w in weights(model)}
        rows = found["table" if tied else "head.matrix"].mul_(20)
        if cap == "asymmetric":
            found["head.cap.caps"].copy_(torch.tensor([12.0, 5.0]))
        x = last_stream(model, ids)
        unit = x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
        raw = scale * (unit * found["head.gain"].double()) @ rows.double().T
        wanted = raw.clone().apply_(formula)
        logits = model(ids)
    assert raw.abs().max() > 6
    torch.testing.assert_close(logits.double(), wanted, atol=2e-3, rtol=1e-5)


def last_stream(model: Model, ids: Tensor) -> Tensor:
    """What the last visit leaves, in float64."""
    found: list[Tensor] = []
    hook = model.layers[-1].register_forward_hook(lambda m, i, y: found.append(y.double()))
    model.hidden(ids)
    hook.remove()
    return found[0]


def test_a_sigmoid_cap_is_half_of_one_tanh() -> None:
    """30 s(z / (7.5 sqrt D)) = 15 (1 + tanh(z / (15 sqrt D)))."""
    z = torch.linspace(-2000, 2000, 99, dtype=torch.float64)
    build_cap = headed(softcap={"kind": "sigmoid", "cap": 30.0, "divisor": 7.5 * 24**0.5})
    found = build(build_cap).head.capped(z.expand(53, 99).T, build(build_cap).table)[:, 0]
    torch.testing.assert_close(found, 15 * (1 + torch.tanh(z / (15 * 24**0.5))))
    assert 0 <= found.min() < 1e-6
    assert 30 - 1e-6 < found.max() <= 30


def test_learned_caps_start_as_one_tanh(tokens: Draw) -> None:
    plain, learned = (
        build(headed(softcap=cap)) for cap in (8.0, {"kind": "asymmetric", "init": 8.0})
    )
    for model in (plain, learned):
        initialise(model, Scaling(table=5.0), 1)
    ids = tokens(plain.spec)
    with torch.no_grad():
        torch.testing.assert_close(learned(ids), plain(ids))


def test_a_tied_head_is_one_tensor(make: Make, tokens: Draw) -> None:
    """Not two that start alike: a change of either is one of both."""
    tied, untied = make(headed(tied=True)), make(headed(tied=False))
    assert [w.name for w in weights(tied) if w.role in (Role.TABLE, Role.HEAD)] == ["table"]
    assert parameters(untied.spec) - parameters(tied.spec) == 53 * 24
    assert not any(name.startswith("head") for name in tied.state_dict())
    ids = torch.tensor([[7, 7]])
    with torch.no_grad():
        before = tied(ids)
        tied.table.weight[9] *= 2  # not among the tokens that are read
        after = tied(ids)
    changed = (after - before).abs().amax((0, 1)) > 0
    assert changed.nonzero().flatten().tolist() == [9]
    torch.autograd.backward(tied(ids).logsumexp(-1).sum())
    assert tied.table.weight.grad is not None
    assert (tied.table.weight.grad[9] != 0).all()  # by the head
    assert (tied.table.weight.grad[7] != 0).all()


@pytest.mark.parametrize(("multiple", "rows"), [(1, 53), (8, 56), (53, 53), (64, 64)])
def test_rows_that_no_token_has_are_counted_but_never_predicted(
    multiple: int, rows: int, make: Make, tokens: Draw
) -> None:
    model = make(headed(tied=False, multiple=multiple))
    found = {w.name: w for w in layout(model.spec)}["head.matrix"]
    assert (found.shape, found.role, found.place) == ((rows, 24), Role.HEAD, Place.HEAD)
    ids = tokens(model.spec)
    matrix = model.head.matrix
    assert matrix is not None
    with torch.no_grad():
        assert not matrix.weight[53:].any()
        before = model(ids)
        matrix.weight[53:] = 1000
        assert torch.equal(model(ids), before)
    assert before.shape == (2, 12, 53)
    torch.autograd.backward(model(ids).logsumexp(-1).sum())
    assert matrix.weight.grad is not None
    assert (matrix.weight.grad[:53] != 0).any(1).all()
    assert not matrix.weight.grad[53:].any()


@pytest.mark.parametrize("scaling", [Scaling(), Scaling(matrix="normal")])
def test_how_the_matrix_of_a_head_starts(scaling: Scaling) -> None:
    for zero in (True, False):
        model = build(headed(tied=False, multiple=8, zero=zero))
        initialise(model, scaling, 1)
        assert model.head.matrix is not None
        assert (model.head.matrix.weight[:53] != 0).any() == (not zero)
        assert not model.head.matrix.weight[53:].any()
        with torch.no_grad():
            logits = model(torch.arange(9)[None])
        assert (logits == 0).all() == zero


def test_the_hessian_of_a_head_is_of_what_it_reads(variants: ModelSpec, make: Make) -> None:
    model = make(variants)
    assert model.head.gain is not None
    with torch.no_grad():
        model.head.gain.weight.mul_(3)
        ids = torch.randint(53, (2, 16), generator=torch.Generator().manual_seed(0))
        seen: list[Tensor] = []
        assert model.head.matrix is not None
        hook = model.head.matrix.register_forward_pre_hook(lambda m, i: seen.append(i[0]))
        model(ids)
        hook.remove()
        rows = seen[0].flatten(0, 1)
        moment = hessians(model, [ids.numpy().astype(np.int64)])["head.matrix"]
    torch.testing.assert_close(moment.float(), rows.T @ rows / 32, rtol=1e-4, atol=1e-5)


def test_heads_refuse_what_cannot_be() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"softcap": 0.0}, "softcap must be positive or null, got 0"),
        ({"scale": 0.0}, "the scale of logits is positive, got 0"),
        ({"tied": False, "multiple": 0}, "are a multiple of 1 or more, got 0"),
        ({"multiple": 8}, "a tied head has no matrix of its own; set head.tied to false"),
        ({"zero": True}, "a tied head has no matrix of its own"),
        ({"softcap": {"kind": "sigmoid", "cap": 30.0, "divisor": 0.0}}, "divisor of a sigmoid"),
        ({"softcap": {"kind": "algebraic", "cap": -1.0}}, "an algebraic cap is positive, got -1"),
        ({"softcap": {"kind": "asymmetric", "init": 0.0}}, "asymmetric caps start above zero"),
        ({"softcap": "sigmoid"}, r"head\.softcap: missing key 'cap' in sigmoid"),
        ({"softcap": {"kind": "tanh"}}, r"head\.softcap: unknown kind 'tanh'"),
    ]
    for head, message in cases:
        with pytest.raises(SpecError, match=message):
            headed(**head)


@pytest.mark.parametrize("cap", CAPS)
def test_heads_are_stored_and_read_back(cap: str) -> None:
    model = headed(softcap=CAPS[cap][0], tied=False, gain=True, multiple=8)
    assert decode(ModelSpec, encode(model)) == model
    assert isinstance(build(model).head, Head)
    plain = head_spec.Head(softcap=15.0)
    assert plain.weights(53, 24) == ()
    assert encode(plain) == {"kind": "head", "tied": True, "softcap": 15.0}
    assert decode(head_spec.Head, {"softcap": 15}) == plain
    assert isinstance(decode(head_spec.Head, {"softcap": "asymmetric"}).softcap, Asymmetric)
