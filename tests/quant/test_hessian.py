"""Hessians against explicit sums over what each weight was given."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segpt.config.layout import Role
from segpt.errors import DataError
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.quant.hessian import hessians

MakeModel = Callable[..., Model]


def batches(count: int = 3) -> list[NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 64, (2, 16)) for _ in range(count)]


def second_moment(x: Tensor) -> Tensor:
    rows = x.detach().flatten(0, -2).double()
    return rows.T @ rows


@pytest.mark.parametrize("tied", [True, False])
def test_every_linear_map_has_the_moment_of_its_input(tiny: MakeModel, tied: bool) -> None:
    model = tiny(head={"tied": tied, "softcap": None})
    found = hessians(model, batches())
    linear = {w.name: w for w in weights(model) if w.role in (Role.MATRIX, Role.HEAD)}
    assert found.keys() == linear.keys() | ({"table"} if tied else set())
    for weight in linear.values():
        columns = weight.tensor.size(1)
        assert found[weight.name].shape == (columns, columns)
        assert found[weight.name].dtype == torch.float64
    with torch.no_grad():
        hidden = torch.cat([model.hidden(torch.from_numpy(b)).x for b in batches()])
    head = found["table" if tied else "head.matrix"]
    assert torch.allclose(head, second_moment(hidden) / 96, atol=1e-5)
    assert head.trace() == pytest.approx(32, rel=1e-4)  # the stream is normalised


def test_query_key_and_value_share_their_input_and_nothing_else_does(tiny: MakeModel) -> None:
    found = hessians(tiny(), batches())
    query, key, value, out = (
        found[f"layers.0.mixer.body.{name}"] for name in ("query", "key", "value", "out")
    )
    assert torch.equal(query, key)
    assert torch.equal(query, value)
    assert not torch.allclose(query, out)
    gate = found["layers.0.mixer.body.output_parts.0.gate"]
    assert torch.allclose(gate, query[:4, :4], atol=1e-5)


def test_a_looped_layer_sums_over_its_visits(tiny: MakeModel) -> None:
    """The same model unrolled has a Hessian per visit; the loop's is their sum."""
    looped = tiny(depth=2, route="0 (1)*3")
    unrolled = tiny(depth=4)
    copies = [0, 1, 1, 1]
    with torch.no_grad():
        unrolled.table.weight.copy_(looped.table.weight)
        for layer, source in zip(unrolled.layers, copies, strict=True):
            layer.load_state_dict(looped.layers[source].state_dict())
    one, many = hessians(looped, batches()), hessians(unrolled, batches())
    for name in ("mixer.body.query", "mixer.body.out", "feed.body.up", "feed.body.down"):
        visits = [many[f"layers.{i}.{name}"] for i in (1, 2, 3)]
        assert torch.allclose(one[f"layers.1.{name}"], torch.stack(visits).sum(0), rtol=1e-4)
        assert not torch.allclose(one[f"layers.1.{name}"], visits[0], rtol=0.1)
        assert torch.allclose(one[f"layers.0.{name}"], many[f"layers.0.{name}"], rtol=1e-4)


def test_batches_weigh_by_their_tokens(tiny: MakeModel) -> None:
    model, whole = tiny(), batches()
    split = [row[None] for batch in whole for row in batch]
    one, many = hessians(model, whole), hessians(model, iter(split))
    for name, value in one.items():
        assert torch.allclose(value, many[name], rtol=1e-4, atol=1e-6)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_hooks_are_removed_even_on_error(tiny: MakeModel) -> None:
    model = tiny()
    hessians(model, batches())
    assert hooks(model) == 0

    def failing() -> Iterator[NDArray[np.int64]]:
        yield batches()[0]
        assert hooks(model) > 0
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        hessians(model, failing())
    assert hooks(model) == 0


def test_no_text_is_refused(tiny: MakeModel) -> None:
    with pytest.raises(DataError, match="calibration"):
        hessians(tiny(), [])
