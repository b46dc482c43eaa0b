"""The modules that are built are the weights that the spec implies, and all of them learn."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segpt.config.layout import layout, parameters
from segpt.config.model import ModelSpec
from segpt.config.recipe import names, read_recipe
from segpt.errors import CheckpointError
from segpt.model.build import build, load_weights
from segpt.model.model import Model
from segpt.model.params import weights

Make = Callable[..., Model]
Draw = Callable[..., Tensor]


def assert_as_laid_out(spec: ModelSpec) -> None:
    with torch.device("meta"):
        model = build(spec)
    found = [(w.name, w.role, tuple(w.tensor.shape)) for w in weights(model)]
    assert found == [(w.name, w.role, w.shape) for w in layout(spec)]
    assert sum(p.numel() for p in model.parameters()) == parameters(spec)
    assert {id(p) for p in model.parameters()} == {id(w.tensor) for w in weights(model)}


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_shipped_recipes_are_built_as_laid_out(name: str) -> None:
    assert_as_laid_out(read_recipe(name).model)


def test_models_are_built_as_laid_out(spec: ModelSpec) -> None:
    assert_as_laid_out(spec)


@pytest.mark.slow
def test_every_weight_receives_gradient(spec: ModelSpec, make: Make, tokens: Draw) -> None:
    model = make(spec)
    ids = tokens(spec, time=13)
    loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    torch.autograd.backward(loss)
    for weight in weights(model):
        gradient = weight.tensor.grad
        assert gradient is not None, weight.name
        assert gradient.isfinite().all(), weight.name
        assert gradient.abs().max() > 0, weight.name


def arrays_of(model: Model) -> dict[str, np.ndarray]:
    return {w.name: w.tensor.detach().numpy().copy() for w in weights(model)}


def test_loading_restores_the_function(everything: ModelSpec, make: Make, tokens: Draw) -> None:
    model, other = make(everything), make(everything, seed=5)
    ids = tokens(everything)
    with torch.no_grad():
        assert not torch.equal(model(ids), other(ids))
        arrays = arrays_of(model)
        for array in arrays.values():
            array.flags.writeable = False  # as memory-mapped ones are
        load_weights(other, arrays)
        assert torch.equal(model(ids), other(ids))


def test_loading_converts_to_float32(everything: ModelSpec, make: Make) -> None:
    model, other = make(everything), make(everything, seed=5)
    load_weights(other, {k: v.astype(np.float64) for k, v in arrays_of(model).items()})
    for mine, theirs in zip(weights(model), weights(other), strict=True):
        assert theirs.tensor.dtype == torch.float32
        assert torch.equal(mine.tensor, theirs.tensor)


def test_loading_refuses_what_does_not_fit(everything: ModelSpec, make: Make) -> None:
    model = make(everything)
    arrays = arrays_of(model)
    missing = {k: v for k, v in arrays.items() if k != "head.matrix"}
    with pytest.raises(CheckpointError, match=r"weight 'head\.matrix' is in the model or in the"):
        load_weights(model, missing)
    with pytest.raises(CheckpointError, match="weight 'extra' is in the model or in the file, but"):
        load_weights(model, arrays | {"extra": arrays["table"]})
    with pytest.raises(CheckpointError, match=r"weight 'table' is \(32, 61\), expected \(61, 32\)"):
        load_weights(model, arrays | {"table": arrays["table"].T})
