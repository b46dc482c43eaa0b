"""The guide to adding an optimizer, followed to the letter in a copy of the package."""

import re
from pathlib import Path

import pytest

from tests.house.guide import copied, replaced, run, steps

TRAIN = """
import sys
import numpy as np, torch
import segpt
from segpt.config.base import decode, encode
from segpt.config.expand import expand
from segpt.config.train import TrainSpec
from segpt.model.params import weights
from segpt.train.trainer import Trainer
from segpt.train.mesh import Mesh
from segpt.train.optim import remembered

assert segpt.__file__.startswith(sys.argv[1]), segpt.__file__
mixer = dict(heads=2, kv_heads=1, head_dim=16)
short = dict(vocab=61, width=32, context=12, depth=2, layer=dict(mixer=mixer, feed=dict(hidden=64)))
spec = expand(short)
rule = dict(kind="lion", rate=0.002, decay=0.1)
rules = dict(matrix=rule, table=rule, vector="lion")
train = dict(length=dict(kind="steps", count=40), batch=8, average=None, optimizer=rules)
how = decode(TrainSpec, train | dict(schedule=dict(warmdown=0.0), clip=None))
assert decode(TrainSpec, encode(how)) == how

def batch(step):
    generator = np.random.default_rng([7, step])
    steps = np.where(generator.random((8, 12)) < 0.9, 5, 11)
    first = generator.integers(61, size=(8, 1))
    return np.concatenate([first, steps], 1).cumsum(1) % 61

def run():
    return Trainer(spec, how, Mesh(0, 1, torch.device("cpu")))

whole, losses = run(), []
before = {w.name: w.tensor.detach().clone() for w in weights(whole.model)}
losses.append(float(whole.train_step(batch(0)).loss))
for w in weights(whole.model):  # M was zero, so the sign is that of the gradient
    decay = 0.1 if w.role.value != "vector" else 0.0
    rate = 0.002 if decay else 0.001
    expected = before[w.name] * (1 - rate * decay) - rate * w.tensor.grad.sign()
    assert torch.allclose(w.tensor, expected, atol=1e-7), w.name
    momentum = whole.optimizers.state()["lion.exp_avg|" + w.name]
    assert torch.allclose(momentum, 0.01 * w.tensor.grad), w.name
again = run()
again.restore(whole.step, whole.averaged_weights(), whole.state())
for step in range(1, 40):
    losses.append(float(whole.train_step(batch(step)).loss))
    again.train_step(batch(step))
ours, theirs = whole.averaged_weights(), again.averaged_weights()
assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
assert losses[-1] < losses[0] - 1, losses
kept = remembered(how.optimizer.matrix, (32, 16))
assert [(part.name, part.shape) for part in kept] == [("lion.exp_avg", (32, 16))]
print(*(str(group) for group in whole.optimizers.groups()), sep="\\n")
"""


def follow(package: Path) -> None:
    """Do what the guide says, and no more."""
    (rule, module, lines), places = steps("Adding an optimizer")
    assert places == [
        "segpt/config/optimizer.py",
        "segpt/train/optim/lion.py",
        "segpt/train/optim/registry.py",
    ]
    specs, new, registry = (package.parent / place for place in places)
    definition, union = rule.split("\n\n\n")
    before = union.strip().rsplit(" | ", 1)[0]
    replaced(specs, f"\n{before}\n", f"\n{definition}\n\n\n{union.strip()}\n")
    assert not new.exists()
    new.write_text(module, encoding="utf-8")
    specs_of, optimizer, line = lines.rstrip("\n").split("\n")
    (old,) = re.findall(
        r"^from segpt\.config\.optimizer import .*$", registry.read_text(), re.MULTILINE
    )
    replaced(registry, old, specs_of)
    replaced(registry, "\nfrom .muon import", f"\n{optimizer}\nfrom .muon import")
    replaced(registry, "\n}\n", f"\n{line}\n}}\n")


@pytest.mark.slow
def test_an_optimizer_is_a_rule_a_file_and_a_line(tmp_path: Path) -> None:
    follow(copied(tmp_path, "train"))
    shown = run(tmp_path, "-c", TRAIN, str(tmp_path)).splitlines()
    assert len(shown) == 3
    assert all("tensors, Lion, rate 0.00" in line for line in shown)
    line = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/train/test_optim.py"]
    passed = run(tmp_path, *line)
    assert int(re.findall(r"(\d+) passed", passed)[0]) > 80
