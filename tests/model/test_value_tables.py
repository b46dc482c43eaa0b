"""Tables of values: what they add to attention's values, who shares them, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from segpt.config import parts as slot
from segpt.config.base import encode
from segpt.config.expand import expand
from segpt.config.layer import Attention
from segpt.config.layout import Place, Role, layout
from segpt.config.model import ModelSpec
from segpt.config.train import Scaling
from segpt.errors import SpecError
from segpt.model import parts
from segpt.model.build import build
from segpt.model.model import Model
from segpt.model.params import Table
from segpt.model.scaling import initialise
from segpt.model.state import ForwardState
from tests.model.states import state_of

Make = Callable[..., Model]


def lookup(number: int, **changes: Any) -> dict[str, Any]:
    return {"kind": "value_embedding", "table": number, **changes}


def model_spec(*values: list[Any], **changes: Any) -> ModelSpec:
    """A layer for each list of parts of its value slot."""
    mixer = {"heads": 2, "kv_heads": 1, "head_dim": 8}
    recipe: dict[str, Any] = {
        "vocab": 20,
        "width": 16,
        "context": 32,
        "depth": len(values),
        "layer": {"mixer": mixer, "feed": {"hidden": 24}},
        "override": [
            {"layers": str(i), "set": {"mixer": {"value": value}}} for i, value in enumerate(values)
        ],
    }
    return expand(recipe | changes)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stream(tokens: Tensor, *tables: Table) -> ForwardState:
    return state_of(noise(1), tokens=tokens, tables=tables)


@pytest.mark.parametrize("per_head", [False, True])
def test_values_and_rows_are_blended(per_head: bool) -> None:
    part = parts.ValueEmbedding(slot.ValueEmbedding(table=1, per_head=per_head), kv_heads=3)
    tables = Table(9, 24).double(), Table(9, 24).double()
    tokens, v = torch.tensor([[1, 8, 1], [0, 2, 3]]), noise(2, 3, 3, 8)
    mix = noise(2, 3, 1, seed=1) if per_head else noise(2, seed=1)
    with torch.no_grad():
        tables[1].weight.copy_(noise(9, 24, seed=2))
        part.double().mix.weight.copy_(mix)
        found = part(v, v, stream(tokens, *tables))
    for row in range(2):
        for t in range(3):
            for head in range(3):
                a, b = mix[:, head, 0] if per_head else mix
                rows = noise(9, 24, seed=2)[tokens[row, t], 8 * head : 8 * head + 8]
                torch.testing.assert_close(found[row, t, head], a * v[row, t, head] + b * rows)


def test_a_value_norm_makes_every_head_unit_on_average() -> None:
    v = 5 * noise(2, 3, 2, 8)
    found = parts.ValueNorm()(v, v, stream(torch.zeros(2, 3).long()))
    wanted = v / v.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_value_embedding_starts_as_identity_unless_told_otherwise() -> None:
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        found = {}
        for name, value in {
            "none": [],
            "identity": [lookup(0)],
            "half": [lookup(0, keep=0.5, blend=0.5)],
        }.items():
            model = build(model_spec(value, value_tables=1 if value else 0))
            initialise(model, Scaling(table=1.0), 0)
            for table in model.value_tables:
                assert isinstance(table, Table)
                table.weight.copy_(noise(20, 8))
            tables = [table for table in model.value_tables if isinstance(table, Table)]
            found[name] = v = noise(2, 6, 1, 8).float()
            for part in model.modules():
                if isinstance(part, parts.ValueEmbedding):
                    found[name] = part(v, v, stream(tokens, *tables))
    assert torch.equal(found["identity"], found["none"])
    rows = noise(20, 8).float()[tokens].view(2, 6, 1, 8)
    torch.testing.assert_close(found["half"], (found["none"] + rows) / 2)


def test_tables_are_laid_out_once_however_many_layers_share_them() -> None:
    spec = model_spec(
        [lookup(0)], [], [lookup(1), lookup(0)], value_tables=2, route="0 (1:3)*3", vocab=33
    )
    found = [w for w in layout(spec) if w.place is Place.VALUE]
    assert [(w.name, w.shape, w.layer, w.uses) for w in found] == [
        ("value_tables.0", (33, 8), None, 4),
        ("value_tables.1", (33, 8), None, 3),
    ]
    assert all(w.role is Role.TABLE and w.by_token for w in found)


def test_a_token_changes_only_what_its_own_rows_touch(make: Make) -> None:
    """A row that no token of the text asks for has no effect, and one that is asked for has."""
    model = make(model_spec([lookup(0)], [lookup(0)], value_tables=1))
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        before = model(tokens)
        model.value_tables[0].weight[9] += 1  # type: ignore[index, operator]
        assert torch.equal(model(tokens), before)
        model.value_tables[0].weight[3] += 1  # type: ignore[index, operator]
        changed = (model(tokens) - before).abs().amax((0, 2))
    assert torch.equal(changed[:2], torch.zeros(2))
    assert (changed[2:] > 1e-4).all()


def test_gradients_of_all_layers_meet_in_their_table(make: Make) -> None:
    model, tokens = (
        make(model_spec([lookup(0)], [lookup(0)], value_tables=1)),
        torch.tensor([[1, 2]]),
    )
    table = model.value_tables[0]
    assert isinstance(table, Table)
    whole = torch.autograd.grad(model(tokens).square().sum(), table.weight)[0]
    each = []
    for layer in range(2):
        rows = table.weight.detach().clone().requires_grad_()
        calls: list[int] = []

        def only(
            _m: Any, i: Any, y: Tensor, n: int = layer, r: Tensor = rows, c: Any = calls
        ) -> Any:
            c.append(1)
            return r[i[0]] if len(c) == n + 1 else y.detach()

        hook = table.register_forward_hook(only)
        each.append(torch.autograd.grad(model(tokens).square().sum(), rows)[0])
        hook.remove()
    torch.testing.assert_close(whole, each[0] + each[1], atol=1e-5, rtol=1e-4)
    assert torch.equal(whole[3:], torch.zeros(17, 8))


def test_stored_specs_keep_their_bytes() -> None:
    stored = encode(model_spec([]))
    assert not stored.keys() & {"start", "documents", "value_tables"}
    assert Attention(heads=1, kv_heads=1, head_dim=2).value == ()


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        ([[lookup(1)]], {"value_tables": 1}, r"layers\[0\] embeds values from table 1 of 1"),
        ([[lookup(0)]], {}, r"layers\[0\] embeds values from table 0 of 0; set value_tables"),
        ([[lookup(-1)]], {"value_tables": 1}, r"layers\[0\] embeds values from table -1"),
        ([[lookup(0)]], {"value_tables": 2}, "no layer uses value table 1; lower value_tables"),
        ([[]], {"value_tables": -1}, "value_tables is not negative, got -1"),
        (
            [[lookup(0)], [lookup(0)]],
            {
                "value_tables": 1,
                "layer": {
                    "mixer": {"heads": 2, "kv_heads": 1, "head_dim": 8},
                    "feed": {"hidden": 24},
                },
                "override": [
                    {"layers": ":", "set": {"mixer": {"value": [lookup(0)]}}},
                    {"layers": "1", "set": {"mixer": {"kv_heads": 2}}},
                ],
            },
            r"share value table 0 must have values of one width, got \[8, 16\]",
        ),
    ],
)
def test_what_is_refused(values: list[list[Any]], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        model_spec(*values, **changes)
