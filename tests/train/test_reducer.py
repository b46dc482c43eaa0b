"""Gradients travel during backward, matrices have owners, and the result is that of one process."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segpt.config.base import encode
from segpt.config.expand import expand
from segpt.config.model import ModelSpec
from segpt.config.optimizer import Muon, Neurons, Optimizer
from segpt.config.train import Loops, TrainSpec
from segpt.model.build import build
from segpt.model.params import weights
from segpt.train import reducer
from segpt.train.mesh import Mesh
from segpt.train.optim.division import owners
from segpt.train.reducer import GradientReducer, backward_order, divided
from tests.model.conftest import ROUTED
from tests.processes import in_two
from tests.train.two_reducers import Watched, run

SCRIPT = Path(__file__).with_name("two_reducers.py")
BYTES = 24000  # of a bucket: a layer or so

LATE: dict[str, Any] = {
    "vocab": 61,
    "width": 32,
    "context": 12,
    "depth": 4,
    "value_tables": 1,
    "head": {"tied": False},
    "layer": {
        "mixer": {
            "heads": 2,
            "kv_heads": 2,
            "head_dim": 16,
            "value": [{"kind": "value_embedding", "table": 0}],
        },
        "feed": {"hidden": 64},
    },
    "override": [{"layers": "0:2", "set": {"mixer": {"value": []}}}],
}
JOINT = Muon(neurons=Neurons(), joint=("query", "key", "value"))


def late() -> ModelSpec:
    """A model whose third layer, the first that looks values up, joins after 40 percent."""
    spec = expand(LATE)
    visits = list(spec.visits)
    visits[2] = dataclasses.replace(visits[2], since=0.4)
    return dataclasses.replace(spec, visits=tuple(visits))


@pytest.fixture(scope="module")
def runs(spec: ModelSpec, how: TrainSpec) -> list[tuple[ModelSpec, TrainSpec]]:
    """Drawn loops of a model with a tied head; lanes and loops that join; a layer that joins."""
    loops, joint = Loops(most=4, back=2), Optimizer(matrix=JOINT)
    return [
        (spec, dataclasses.replace(how, loops=loops, optimizer=joint, recompute=-1)),
        (expand(ROUTED | {"context": 12}), dataclasses.replace(how, clip=0.5)),
        (late(), dataclasses.replace(how, accumulation=2, optimizer=joint)),
    ]


@pytest.fixture(scope="module")
def alone(runs: list[tuple[ModelSpec, TrainSpec]]) -> list[dict[str, Any]]:
    """The same of one process, and which arrays it saves."""
    with pytest.MonkeyPatch.context() as patch:
        watched = Watched(patch)
        mesh = Mesh(0, 1, torch.device("cpu"))
        return [run({"spec": encode(s), "how": encode(h)}, mesh, watched) for s, h in runs]


@pytest.fixture(scope="module")
def said(runs: list[tuple[ModelSpec, TrainSpec]]) -> list[tuple[Any, Any]]:
    """What two processes say: of each run, and of the gradients that one of them has not."""
    tasks = [{"spec": encode(spec), "how": encode(how)} for spec, how in runs]
    words = json.dumps({"bytes": BYTES, "runs": tasks})
    return list(zip(*in_two(SCRIPT, words, last=2), strict=True))[::-1]


@pytest.fixture(scope="module")
def both(said: list[tuple[Any, Any]]) -> list[list[dict[str, Any]]]:
    """What each of two processes says of each run."""
    return [list(each) for each in zip(*said[0], strict=True)]


@pytest.mark.slow
def test_losses_are_those_of_one_process(
    alone: list[dict[str, Any]], both: list[list[dict[str, Any]]]
) -> None:
    for single, (first, second) in zip(alone, both, strict=True):
        losses = single["losses"]
        assert len(losses) == 20
        assert losses[-1] < losses[0] - 0.2
        assert first["losses"] == pytest.approx(losses, abs=1e-5)
        assert first["losses"] == second["losses"]
        assert first["digest"] == second["digest"]  # of all that is saved
        assert first["names"] == single["names"]


@pytest.mark.slow
def test_messages_leave_before_backward_ends(
    runs: list[tuple[ModelSpec, TrainSpec]], both: list[list[dict[str, Any]]]
) -> None:
    for (first, second), (_, how) in zip(both, runs, strict=True):
        assert first["steps"] == second["steps"]
        for events in first["steps"]:
            *earlier, last = events.split("(")
            assert earlier == ["", *[")"] * (how.accumulation - 1)]
            within, _, after = last.partition(")")
            assert len(within) >= 3
            assert set(within) == {"s"}
            assert after == "sg"  # what ends with backward, and one message for all matrices


@pytest.mark.slow
def test_a_matrix_is_orthogonalised_by_its_owner_alone(
    alone: list[dict[str, Any]], both: list[list[dict[str, Any]]]
) -> None:
    for single, ranks in zip(alone, both, strict=True):
        for norms, *owned in zip(*(each["matrices"] for each in (single, *ranks)), strict=True):
            assert sum(map(len, owned)) == len(norms)
            assert abs(len(owned[0]) - len(owned[1])) <= 2
            first, second = ({norm for norm in own if norm} for own in owned)
            assert not first & second


@pytest.mark.slow
def test_one_process_sends_nothing_and_hooks_nothing(alone: list[dict[str, Any]]) -> None:
    for single in alone:
        assert {events.strip("()") for events in single["steps"]} == {""}
        assert single["hooks"] == 0


@pytest.mark.slow
def test_a_gradient_of_one_process_is_one_of_all(said: list[tuple[Any, Any]]) -> None:
    # the rank where each weight has a gradient: both, the first, the second, none
    assert said[1][0] == said[1][1] == [1.5, 0.5, 1.0, None]


def test_weights_are_ordered_by_their_first_use() -> None:
    model = build(late())
    name_of = {id(w.tensor): w.name for w in weights(model)}

    def places(progress: float) -> list[str]:
        names = [name_of[id(t)] for t in backward_order(model.set_progress(progress))]
        return [".".join(name.split(".")[: 1 + name.startswith("layers.")]) for name in names]

    def runs_of(names: list[str]) -> list[str]:
        return [name for name, _ in itertools.groupby(names)]

    tables = ["value_tables", "table"]
    assert runs_of(places(1.0)) == ["head", *(f"layers.{i}" for i in (3, 2, 1, 0)), *tables]
    assert runs_of(places(0.0)) == ["head", *(f"layers.{i}" for i in (3, 1, 0)), *tables]


def test_a_shared_layer_waits_for_its_first_visit(spec: ModelSpec) -> None:
    model = build(spec)
    name_of = {id(w.tensor): w.name for w in weights(model)}
    model.set_progress(1.0, 4, 2)  # two passes without a gradient before two with one
    names = [name_of[id(tensor)] for tensor in backward_order(model)]
    layers = [name.split(".")[1] for name in names if name.startswith("layers.")]
    assert [layer for layer, _ in itertools.groupby(layers)] == ["2", "1", "0"]


def test_a_bucket_waits_for_those_before_it(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    monkeypatch.setattr(reducer, "BYTES", BYTES)
    monkeypatch.setattr(Mesh, "begin_sum", lambda _, flat: sent.append(flat.numel()))
    model = build(spec)
    gradients = GradientReducer(model, Mesh(0, 2, torch.device("cpu")))
    order = backward_order(model)
    torch.autograd.backward(order[0].sum())
    order[0].grad = None
    assert not sent  # an earlier micro-batch
    gradients.start()
    for tensor in reversed(order[1:]):
        torch.autograd.backward(tensor.sum())
    assert not sent
    torch.autograd.backward(order[0].sum())
    sizes = [sum(tensor.numel() for tensor in bucket) for bucket in divided(order, BYTES)]
    assert len(sizes) > 3
    assert sent == sizes[:-1]


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 60))
def test_buckets_keep_order_and_size(sizes: list[int], most: int) -> None:
    tensors = [torch.nn.Parameter(torch.zeros(size)) for size in sizes]
    buckets = divided(tensors, 4 * most)
    assert [id(t) for bucket in buckets for t in bucket] == [id(t) for t in tensors]
    for bucket in buckets:
        assert len(bucket) == 1 or sum(t.numel() for t in bucket) <= most
    for bucket, following in itertools.pairwise(buckets):
        assert sum(t.numel() for t in (*bucket, following[0])) > most


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 9))
def test_owners_share_the_cost(costs: list[int], size: int) -> None:
    owner = owners(tuple(costs), size)
    loads = [sum(c for c, o in zip(costs, owner, strict=True) if o == r) for r in range(size)]
    assert max(loads) - min(loads) <= max(costs, default=0)
    assert max(loads) <= sum(costs) / size + max(costs, default=0)
