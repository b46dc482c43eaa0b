"""Sensitivities against sums made token by token, against exact expectations, and against KL."""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segpt.config.layout import Role
from segpt.errors import DataError
from segpt.model.model import Model
from segpt.model.params import Matrix, Table, weights
from segpt.quant import sensitivity
from segpt.quant.sensitivity import Sensitivity, sensitivities
from segpt.quant.tune import divergence

MakeModel = Callable[..., Model]
Text = list[NDArray[np.int64]]
Chain = Callable[[int, int], Text]
FORMS: dict[str, dict[str, Any]] = {
    "tied and capped": {"head": {"tied": True, "softcap": 0.5}},
    "tied": {"head": {"tied": True, "softcap": None}},
    "untied and capped": {"head": {"tied": False, "softcap": 5.0}},
    "tied, scaled and capped in another way": {
        "head": {"softcap": {"kind": "algebraic", "cap": 2.0}, "scale": 0.7, "gain": True}
    },
    "untied, with rows to spare": {
        "head": {"tied": False, "multiple": 48, "softcap": {"kind": "asymmetric", "init": 5.0}}
    },
    "looped": {"route": "0 (1)*3"},
    "fast": {
        "route": "0 (1)*2",
        "override": [{"layers": "1", "set": {"feed": {"fast": {"chunk": 4}}}}],
    },
}


def batches(count: int = 3) -> Text:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 64, (2, 16)) for _ in range(count)]


class Call(NamedTuple):
    """A linear map at work: its name, inputs (tokens, columns) and output."""

    name: str
    x: Tensor
    output: Tensor


def watched(model: Model, ids: Tensor) -> tuple[list[Call], Tensor]:
    """Every linear map of a forward pass, the head that is a table among them, and the logits."""
    calls: list[Call] = []
    hooks = [
        weight.param.register_forward_hook(
            lambda _, inputs, output, name=weight.name: calls.append(
                Call(name, inputs[0].detach().flatten(0, -2), output)
            )
        )
        for weight in weights(model)
        if isinstance(weight.param, Matrix)
    ]
    rows = model.table.weight[ids]
    table = model.table.register_forward_hook(lambda *_: rows)
    hidden = model.hidden(ids).x
    logits = model.logits(hidden)
    if model.head.matrix is None:
        raw = hidden @ model.table.weight.T
        logits = model.head.capped(raw, model.table)
        calls.append(Call("head", hidden.detach().flatten(0, -2), raw))
    calls.append(Call("lookup", ids.flatten(), rows))
    for hook in [*hooks, table]:
        hook.remove()
    return calls, logits


def slow(model: Model, text: Text, seed: int) -> dict[str, Sensitivity]:
    """The definition: one token and one visit after another, in float64."""
    generator = torch.Generator().manual_seed(seed)
    curvature: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()).double())
    rows: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()).double())
    outputs: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()).double())
    looked_up = torch.zeros(model.table.weight.shape).double()
    for batch in text:
        calls, logits = watched(model, torch.from_numpy(batch))
        labels = torch.multinomial(
            logits.detach().flatten(0, 1).softmax(-1), 1, generator=generator
        )
        loss = -logits.flatten(0, 1).log_softmax(-1).gather(1, labels).sum()
        gradients = torch.autograd.grad(loss, [call.output for call in calls])
        visits: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for call, gradient in zip(calls, gradients, strict=True):
            tokens = gradient.flatten(0, -2).double()
            if call.name == "lookup":
                for token, g in zip(call.x.tolist(), tokens, strict=True):
                    looked_up[token] += g**2
                continue
            visits["table" if call.name == "head" else call.name].append((call.x.double(), tokens))
        for name, seen in visits.items():
            for (xs, gs), (others, slopes) in product(seen, seen):
                for x, g, y, h in zip(xs, gs, others, slopes, strict=True):
                    curvature[name] = curvature[name] + (g * h).mean() * torch.outer(x, y)
                    rows[name] = rows[name] + (x * y).mean() * g * h
                    outputs[name] = outputs[name] + (x * y).mean() * torch.outer(g, h)
    curvature["table"] = curvature["table"] + torch.diag(looked_up.mean(0))
    rows["table"] = rows["table"] + looked_up.mean(1)
    count = sum(batch.size for batch in text)
    heads = {"table", "head.matrix"}
    return {
        name: Sensitivity(
            total / count, rows[name] / count, None if name in heads else outputs[name] / count
        )
        for name, total in curvature.items()
    }


def alike(one: Tensor, other: Tensor, share: float = 1e-4) -> bool:
    return float((one - other).norm()) <= share * float(other.norm())


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_definition(tiny: MakeModel, form: str) -> None:
    model = tiny(**FORMS[form])
    found, expected = sensitivities(model, batches(), seed=5), slow(model, batches(), seed=5)
    roles = (Role.TABLE, Role.HEAD, Role.MATRIX)
    assert found.keys() == {w.name for w in weights(model) if w.role in roles} == expected.keys()
    shapes = {w.name: w.tensor.shape for w in weights(model)}
    for name, mine in found.items():
        height, width = shapes[name]
        assert mine.curvature.shape == (width, width)
        assert mine.rows.shape == (height,)
        assert alike(mine.curvature, expected[name].curvature), name
        assert alike(mine.rows, expected[name].rows), name
        theirs = expected[name].outputs
        assert (mine.outputs is None) == (theirs is None) == (name in ("table", "head.matrix"))
        if mine.outputs is not None and theirs is not None:
            assert alike(mine.outputs.double(), theirs), name
            assert torch.allclose(mine.outputs.diagonal().double(), mine.rows, rtol=1e-4)
        # The two sides of the product have the same size.
        assert mine.curvature.trace() / width == pytest.approx(float(mine.rows.mean()), rel=1e-4)
    if form.startswith("untied"):
        looked_up = found["table"].curvature
        assert torch.equal(looked_up, looked_up.diagonal().diag())


def test_a_table_that_layers_share_is_looked_up_once_for_all(tiny: MakeModel) -> None:
    """An error in a row is made wherever the row is used, and the sum is what counts."""
    values = {"mixer": {"value": [{"kind": "value_embedding", "table": 0, "blend": 0.5}]}}
    model = tiny(
        embed=["token", {"kind": "bigram", "buckets": 11, "width": 4, "scale": 1.0}],
        override=[{"layers": ":", "set": values}],
        route="0 (1)*2",
        start=3,
        value_tables=1,
    )
    text = batches()
    found = sensitivities(model, text, seed=5)
    tables = {w.name: w.param for w in weights(model) if isinstance(w.param, Table)}
    assert found.keys() >= tables.keys() == {"table", "embed.1.rows", "value_tables.0"}
    generator = torch.Generator().manual_seed(5)
    sums = {name: torch.zeros(t.weight.shape).double() for name, t in tables.items()}
    for batch in text:
        # One tensor for each table and pass, whose gradient all its uses add up to.
        rows: dict[str, tuple[Tensor, Tensor]] = {}

        def once(leaf: Any, inputs: Any, _: Any, name: str, rows: Any = rows) -> Tensor:
            used = rows.setdefault(name, (inputs[0], leaf.weight[inputs[0]]))
            assert torch.equal(used[0], inputs[0])
            return used[1]

        hooks = [
            table.register_forward_hook(partial(once, name=name)) for name, table in tables.items()
        ]
        logits = model(torch.from_numpy(batch))
        for hook in hooks:
            hook.remove()
        shares = logits.detach().flatten(0, 1).softmax(-1)
        labels = torch.multinomial(shares, 1, generator=generator)
        loss = -logits.flatten(0, 1).log_softmax(-1).gather(1, labels).sum()
        grads = torch.autograd.grad(loss, [used for _, used in rows.values()])
        for (name, (ids, _)), grad in zip(rows.items(), grads, strict=True):
            sums[name].index_add_(0, ids.flatten(), grad.double().square().flatten(0, 1))
    count = sum(batch.size for batch in text)
    for name in ("embed.1.rows", "value_tables.0"):
        mine = found[name]
        assert mine.outputs is None
        assert alike(mine.rows, sums[name].mean(1) / count), name
        assert alike(mine.curvature, torch.diag(sums[name].mean(0)) / count), name
        assert (mine.rows > 0).any()
    unused = [i for i in range(64) if all((batch != i).all() for batch in text)]
    assert torch.equal(found["value_tables.0"].rows[unused], torch.zeros(len(unused)).double())


def test_few_tokens_at_a_time_change_nothing_but_the_labels(
    tiny: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    monkeypatch.setattr(sensitivity, "_TOKENS", 16)
    split = [row[None] for batch in batches() for row in batch]
    found, expected = sensitivities(model, batches()), slow(model, split, 0)
    for name, mine in found.items():
        assert alike(mine.curvature, expected[name].curvature), name


def test_labels_are_drawn_by_seed(tiny: MakeModel) -> None:
    model = tiny()
    one, same, other = (sensitivities(model, batches(), seed)["table"] for seed in (1, 1, 2))
    assert torch.equal(one.curvature, same.curvature)
    assert torch.equal(one.rows, same.rows)
    assert not torch.equal(one.rows, other.rows)


@pytest.mark.slow
def test_many_draws_approach_the_expectation_over_labels(trained: MakeModel, chain: Chain) -> None:
    """Summed over the vocabulary instead of drawn: sqrt(p) d log p is one gradient per token."""
    model, ids = trained(), torch.from_numpy(chain(3, 1)[0][:1, :8])
    calls, logits = watched(model, ids)
    logs = logits[0].log_softmax(-1)
    slopes = (0.5 * logs.detach()).exp() * logs
    outer: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()).double())
    for slope in slopes.flatten():
        gradients = torch.autograd.grad(slope, [call.output for call in calls], retain_graph=True)
        for call, gradient in zip(calls, gradients, strict=True):
            if call.name not in ("lookup", "head"):
                g = gradient.flatten(0, -2).double()
                energy = call.x.double().square().mean(1)
                outer[call.name] = outer[call.name] + (g * energy[:, None]).T @ g / ids.numel()
    found = sensitivities(model, [ids.repeat(256, 1)] * 3)
    for name, expected in outer.items():
        outputs = found[name].outputs
        assert outputs is not None
        assert alike(outputs.double(), expected, 0.1), name


def changed(model: Model, name: str, change: Tensor) -> Model:
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(w for w in weights(other) if w.name == name).tensor.add_(change)
    return other


@pytest.mark.slow
@pytest.mark.parametrize("head", [{}, {"head": {"tied": False, "softcap": None}}])
def test_damage_predicts_the_divergence_that_a_change_makes(
    trained: MakeModel, chain: Chain, head: dict[str, Any]
) -> None:
    """Best where tokens' errors are independent; queries and keys mix them, and gates are small."""
    model = trained(**head)
    text = [block[:, :-1] for block in chain(2, 4)]
    found = sensitivities(model, text)
    for weight in weights(model):
        if weight.role is Role.VECTOR:
            continue
        ratios = []
        for seed in range(6):
            draw = torch.Generator().manual_seed(seed)
            change = torch.randn(weight.tensor.shape, generator=draw)
            change *= (1e-3 / found[weight.name].damage(change)) ** 0.5
            with torch.no_grad():
                after = divergence(model, changed(model, weight.name, change), np.concatenate(text))
            ratios.append(float(after) / found[weight.name].damage(change))
        loose = weight.name.endswith(("query", "key", "gate"))
        low, high = (0.4, 2.2) if loose else (0.75, 1.35)
        assert low < np.mean(ratios) < high, (weight.name, ratios)


def test_damage_is_quadratic_and_zero_for_what_never_matters(tiny: MakeModel) -> None:
    found = sensitivities(tiny(), batches())
    for value in found.values():
        change = torch.randn(len(value.rows), len(value.curvature))
        assert value.damage(2 * change) == pytest.approx(4 * value.damage(change))
        assert value.damage(torch.zeros_like(change)) == 0
        nothing = Sensitivity(value.curvature * 0, value.rows * 0, value.outputs)
        assert nothing.damage(change) == 0


@pytest.mark.slow
def test_damage_of_a_table_adds_up_over_its_rows(tiny: MakeModel) -> None:
    value = sensitivities(tiny(), batches())["table"]
    change = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    alone = sum(
        value.damage(torch.where(torch.arange(64)[:, None] == row, change, 0.0))
        for row in range(64)
    )
    assert value.damage(change) == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
def test_visits_of_a_looped_layer_add_up_before_they_are_squared(
    tiny: MakeModel, trained: MakeModel, chain: Chain
) -> None:
    """The sum of what each visit would cost alone misses what they do to a token together."""
    looped, unrolled = trained(depth=2, route="0 (1)*3"), tiny(depth=4)
    with torch.no_grad():
        unrolled.table.weight.copy_(looped.table.weight)
        for layer, source in zip(unrolled.layers, (0, 1, 1, 1), strict=True):
            layer.load_state_dict(looped.layers[source].state_dict())
    text = [block[:, :-1] for block in chain(2, 4)]
    one, many = sensitivities(looped, text), sensitivities(unrolled, text)
    for name in ("mixer.body.value", "mixer.body.out", "feed.body.up", "feed.body.down"):
        place = f"layers.1.{name}"
        together, apart = [], []
        for seed in range(6):
            draw = torch.Generator().manual_seed(seed)
            change = torch.randn(
                looped.layers[1].get_parameter(f"{name}.weight").shape, generator=draw
            )
            change *= (1e-3 / one[place].damage(change)) ** 0.5
            with torch.no_grad():
                cost = float(
                    divergence(looped, changed(looped, place, change), np.concatenate(text))
                )
            together.append(cost / 1e-3)
            apart.append(cost / sum(many[f"layers.{i}.{name}"].damage(change) for i in (1, 2, 3)))
        assert 0.7 < np.mean(together) < 1.5, name
        assert abs(np.log(np.mean(together))) < abs(np.log(np.mean(apart))), name


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_the_model_is_left_as_it_was(tiny: MakeModel) -> None:
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    sensitivities(model, batches())
    assert hooks(model) == 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def failing() -> Iterator[NDArray[np.int64]]:
        yield batches()[0]
        assert hooks(model) > 0
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        sensitivities(model, failing())
    assert hooks(model) == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_text_is_refused(tiny: MakeModel) -> None:
    with pytest.raises(DataError, match="calibration"):
        sensitivities(tiny(), [])
