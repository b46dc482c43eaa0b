"""Multipliers of rates reach what the optimizer does, whatever its rule."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segpt.config.expand import expand
from segpt.config.layout import Role, layout
from segpt.config.optimizer import Adam, Muon, Optimizer
from segpt.config.schedule import Steps
from segpt.config.train import Mup, Scaling, TrainSpec
from segpt.model.build import build
from segpt.model.params import weights
from segpt.model.scaling import initialise, multipliers
from segpt.train.mesh import Mesh
from segpt.train.optim import Optimizers
from segpt.train.trainer import Trainer

SPEC = expand(
    {
        "vocab": 40,
        "width": 32,
        "context": 16,
        "depth": 1,
        "head": {"tied": False},
        "layer": {
            "mixer": {"heads": 2, "kv_heads": 2, "head_dim": 16},
            "feed": {"hidden": 64},
        },
    }
)
RULES = {
    "adam": Optimizer(matrix=Adam(rate=0.01)),
    "muon": Optimizer(matrix=Muon(rate=0.01, scale="rms")),
}


def updates(rules: Optimizer, scaling: Scaling) -> dict[str, Tensor]:
    """What one step changes, from the same start."""
    model = build(SPEC)
    initialise(model, Scaling(table=0.1, outputs="random"), 1)
    before = {w.name: w.tensor.detach().clone() for w in weights(model)}
    optimizers = Optimizers(model, rules, multipliers(SPEC, scaling, rules))
    ids = torch.randint(40, (4, 12), generator=torch.Generator().manual_seed(0))
    loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    torch.autograd.backward(loss)
    optimizers.step(1.0, 0.5, 10.0)
    return {w.name: w.tensor.detach() - before[w.name] for w in weights(model)}


def ratios(rules: Optimizer, mup: Mup) -> Mapping[str, float]:
    """How much larger updates are with multipliers than without."""
    plain, scaled = updates(rules, Scaling()), updates(rules, Scaling(mup=mup))
    return {name: float(scaled[name].norm() / plain[name].norm()) for name in plain}


@pytest.mark.parametrize("rule", RULES)
def test_a_multiplier_changes_the_update(rule: str) -> None:
    """An attribute that one optimizer reads and the other ignores moves neither table nor head."""
    rules, mup = RULES[rule], Mup(base_width=8, table=5.0, head=0.5)
    found = ratios(rules, mup)
    wanted = multipliers(SPEC, Scaling(mup=mup), rules)
    assert found == pytest.approx(wanted, rel=1e-3)
    assert wanted["table"] == 5
    assert wanted["head.matrix"] == 0.5 * 8 / 32
    assert {wanted[w.name] for w in layout(SPEC) if w.role is Role.VECTOR} == {1.0}
    matrices = [wanted[w.name] for w in layout(SPEC) if w.role is Role.MATRIX]
    assert all(factor < 0.6 for factor in matrices)


@pytest.mark.parametrize("rule", RULES)
def test_a_changed_multiplier_changes_the_update(rule: str) -> None:
    one, two = (ratios(RULES[rule], Mup(base_width=width)) for width in (8, 16))
    assert all(two[w.name] > 1.3 * one[w.name] for w in layout(SPEC) if w.role is Role.MATRIX)
    assert two["head.matrix"] == pytest.approx(2 * one["head.matrix"], rel=1e-3)


def test_a_run_trains_with_multipliers() -> None:
    how = TrainSpec(length=Steps(count=10), batch=2, scaling=Scaling(mup=Mup(base_width=8)))
    run = Trainer(SPEC, how, Mesh(0, 1, torch.device("cpu")))
    rates = {g.role: g.rule.rate for g in run.optimizers.groups()}
    assert rates[Role.HEAD] == pytest.approx(0.01 * 8 / 32)
    assert rates[Role.TABLE] == 0.01
    assert rates[Role.MATRIX] == 0.02
