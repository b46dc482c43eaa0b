"""Tuning: what is float makes up for what is coded."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.config.layout import Role
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.quant.tune import divergence, tune

MakeModel = Callable[..., Model]
Text = list[NDArray[np.int64]]
Chain = Callable[[int, int], Text]


def halfway(teacher: Model) -> tuple[Model, set[str]]:
    """A student whose table and first layer are coarse, and their names."""
    student = copy.deepcopy(teacher).requires_grad_(False)
    coarse = set()
    for weight in weights(student):
        if weight.role is not Role.VECTOR and not weight.name.startswith("layers.1"):
            step = float(weight.tensor.square().mean().sqrt())
            weight.tensor.copy_((weight.tensor / step).round() * step)
            coarse.add(weight.name)
    return student, coarse


def loss(teacher: Model, student: Model, text: Text) -> float:
    with torch.no_grad():
        return float(divergence(teacher, student, np.concatenate(text)))


@pytest.mark.slow
def test_it_lowers_the_divergence_with_what_is_left(trained: MakeModel, chain: Chain) -> None:
    teacher = trained()
    student, coarse = halfway(teacher)
    before = {w.name: w.tensor.clone() for w in weights(student)}
    float_before = {w.name: w.tensor.detach().clone() for w in weights(teacher)}
    seen, unseen = ([block[:, :-1] for block in chain(seed, 40)] for seed in (5, 6))
    first, elsewhere = loss(teacher, student, seen), loss(teacher, student, unseen)
    done: list[int] = []
    tune(student, teacher, coarse, seen, 0.01, done.append)
    assert loss(teacher, student, seen) < 0.8 * first
    assert loss(teacher, student, unseen) < 0.8 * elsewhere
    assert done == list(range(1, 41))
    for weight in weights(student):
        assert torch.equal(weight.tensor, before[weight.name]) is (weight.name in coarse)
        assert not weight.tensor.requires_grad
        assert weight.tensor.grad is None
    for weight in weights(teacher):
        assert torch.equal(weight.tensor, float_before[weight.name])
        assert weight.tensor.grad is None


def test_the_same_steps_give_the_same_weights(trained: MakeModel, chain: Chain) -> None:
    teacher = trained()
    text = [block[:, :-1] for block in chain(5, 3)]
    one, two = (halfway(teacher) for _ in range(2))
    for student, coarse in (one, two):
        tune(student, teacher, coarse, text, 0.01)
    states = one[0].state_dict(), two[0].state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("everything", [True, False])
def test_without_batches_or_weights_nothing_happens(
    trained: MakeModel, chain: Chain, everything: bool
) -> None:
    teacher = trained()
    student, coarse = halfway(teacher)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    if everything:
        frozen, text = {w.name for w in weights(student)}, [chain(5, 1)[0][:, :-1]]
    else:
        frozen, text = coarse, []
    tune(student, teacher, frozen, text, 0.01)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert not any(parameter.requires_grad for parameter in student.parameters())


def test_weights_of_zero_do_not_stop_it(trained: MakeModel, chain: Chain) -> None:
    teacher = trained()
    student, coarse = halfway(teacher)
    name = "layers.1.feed.body.up"
    next(w for w in weights(student) if w.name == name).tensor.zero_()
    tune(student, teacher, coarse, [chain(5, 1)[0][:, :-1]], 0.01)
    assert all(w.tensor.isfinite().all() for w in weights(student))


def test_divergence_is_the_mean_over_tokens(trained: MakeModel, chain: Chain) -> None:
    teacher, batch = trained(), chain(5, 1)[0][:, :-1]
    student, _ = halfway(teacher)
    assert loss(teacher, teacher, [batch]) == 0
    with torch.no_grad():
        p, q = (model(torch.from_numpy(batch)).softmax(-1).double() for model in (teacher, student))
    expected = float((p * (p / q).log()).sum(-1).mean())
    assert loss(teacher, student, [batch]) == pytest.approx(expected, rel=1e-4)
