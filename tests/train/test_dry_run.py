"""What a run says about itself before it starts, against what it then is."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from segpt.artifact.container import pack
from segpt.config.base import encode
from segpt.config.flops import flops
from segpt.config.quant import QuantSpec, Rule
from segpt.config.recipe import Bytes, Recipe, read_recipe
from segpt.config.rules import find
from segpt.errors import SpecError, TrainError
from segpt.model.build import build
from segpt.model.params import weights
from segpt.stages import dry_run, estimate
from segpt.stages.dry_run import group_table
from segpt.stages.quantize import quantize
from segpt.train.mesh import Mesh
from segpt.train.trainer import Trainer
from segpt.values import Checkpoint, Tokenizer

LOOPED = "model.route='0 (1)*3 2'"
SMALL = ("model.width=96", "model.vocab=300", "model.context=32", "train.batch=4")


def describe(*given: Any, **named: Any) -> dict[str, Any]:
    """What the command says of a run, as JSON values."""
    return dict(encode(dry_run.describe(*given, **named)))


@pytest.mark.slow
def test_a_dry_run_states_the_loop_and_what_is_drawn() -> None:
    plain, fixed = describe(read_recipe("demo")), describe(read_recipe("demo", [LOOPED]))
    assert (plain["loop"], plain["loops"]) == (None, None)
    assert (fixed["loop"], fixed["loops"]) == ({"start": 1, "size": 1, "times": 3}, None)
    drawn = describe(read_recipe("demo", [LOOPED, "train.loops.most=6", "train.loops.mean=3"]))
    assert drawn["loop"] == fixed["loop"]
    assert drawn["loops"]["least"] == 1
    assert drawn["loops"]["most"] == 6
    assert drawn["loops"]["mean"] == 3.0


def test_a_dry_run_refuses_to_draw_without_a_loop() -> None:
    with pytest.raises(SpecError, match="has no loop"):
        describe(read_recipe("demo", ["train.loops.most=6"]))


def alone(recipe: Recipe) -> Trainer:
    return Trainer(recipe.model, recipe.train, Mesh(0, 1, torch.device("cpu")))


def a_batch(recipe: Recipe) -> Any:
    size = (recipe.train.batch, recipe.model.context + 1)
    return np.random.default_rng(0).integers(recipe.model.vocab, size=size)


@pytest.mark.parametrize("settings", [(), (LOOPED,), ("model.head.tied=false",)])
def test_operations_are_those_of_the_products(settings: tuple[str, ...]) -> None:
    recipe = read_recipe("demo", [*SMALL, *settings])
    model = build(recipe.model)
    tokens = torch.from_numpy(a_batch(recipe))[:, :-1]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    products = sum(
        count
        for op, count in counter.get_flop_counts()["Global"].items()
        if "attention" not in str(op)  # counted as if nothing were masked
    )
    found = flops(recipe.model)
    assert found.matrices + found.head == products / tokens.numel()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), ("train.optimizer.matrix=adam", "train.average=null")])
def test_memory_is_what_a_run_takes(settings: tuple[str, ...]) -> None:
    recipe = read_recipe("demo", [*SMALL, *settings])
    memory = describe(recipe)["memory"]
    run = alone(recipe)
    run.train_step(a_batch(recipe))
    size = sum(4 * w.tensor.numel() for w in weights(run.model))
    assert memory["weights"] == memory["gradients"] == size
    state = run.optimizers.state()
    held = sum(4 * t.numel() for name, t in state.items() if not name.startswith("adam.step"))
    assert sum(memory["optimizer"].values()) == held
    assert memory["average"] == sum(4 * t.numel() for t in run.average.shadow.values())
    assert describe(recipe)["memory_bytes"] == estimate.memory(recipe).total


@pytest.mark.parametrize("accumulation", [1, 2])
def test_activations_are_what_autograd_keeps(accumulation: int) -> None:
    recipe = read_recipe("demo", [*SMALL, f"train.accumulation={accumulation}"])
    model = build(recipe.model)
    own = {w.tensor.untyped_storage().data_ptr() for w in weights(model)}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # alive, so that no other takes its place
        return tensor

    rows = recipe.train.batch // accumulation
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.hidden(torch.from_numpy(a_batch(recipe))[:rows, :-1]).x
    held = sum(storage.nbytes() for storage in kept.values())
    loss = 4 * hidden.numel() + 4 * recipe.model.vocab * recipe.model.width
    assert estimate.activations(recipe) == pytest.approx(held + loss, rel=0.02)


def test_steps_are_timed_where_they_are_small() -> None:
    about = describe(read_recipe("demo", [*SMALL, "train.length.count=1000"]), "cpu")
    assert about["step_seconds_source"].startswith("measured")
    assert about["seconds"] == pytest.approx(1000 * about["step_seconds"])
    assert 0 < about["step_seconds"] < 5


@pytest.mark.slow
def test_steps_are_worked_out_where_they_are_large() -> None:
    about = describe(read_recipe("golf16"), "cpu")
    assert about["step_seconds_source"].startswith("estimated: 3.3")
    assert about["step_seconds"] > 60
    assert about["memory"]["activations"] > 10**9


def test_growing_batches_are_counted() -> None:
    ramp = ("train.length.count=10", "train.schedule.ramp={milestones: [0.5]}")
    plain, ramped = (describe(read_recipe("demo", s)) for s in (ramp[:1], ramp))
    assert ramped["tokens"] == 1.5 * plain["tokens"]


METHODS = [
    QuantSpec(method="nearest", rules=(*QuantSpec().rules, Rule(role="matrix", bits=bits)))
    for bits in (3, 6, 8)
]
RATED = [QuantSpec(method="rd", rate=rate, search=0, tune_steps=0) for rate in (2.5, 5.0)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec", [*METHODS, *(pytest.param(spec, marks=pytest.mark.slow) for spec in RATED)]
)
def test_the_predicted_file_is_as_large_as_the_packed_one(spec: QuantSpec) -> None:
    settings = ("model.width=96", "model.vocab=1000", "train.length.count=1")
    recipe = read_recipe("demo", settings)
    run = alone(recipe)
    generator = np.random.default_rng(0)
    for weight in weights(run.model):  # weights as after training: none is zero
        if weight.tensor.dim() == 2 and min(weight.tensor.shape) > 2:
            noise = generator.normal(size=weight.tensor.shape).astype(np.float32)
            weight.tensor.data.copy_(torch.from_numpy(noise * 0.05))
    checkpoint = Checkpoint(
        spec=recipe.model,
        weights={w.name: w.tensor.detach().numpy() for w in weights(run.model)},
        tokenizer=Tokenizer("bytes", 1000),
        step=1,
        progress=1.0,
        documents=np.zeros(0, np.uint64),
        origin={},
    )
    blocks = [a_batch(recipe)] * 2 if spec.designed else []
    packed = pack(quantize(checkpoint, spec, blocks))
    told = dataclasses.replace(recipe, quantize=spec, tokenizer=Bytes())
    predicted, _ = estimate.artifact_bytes(told)
    assert predicted == pytest.approx(packed.size, rel=0.03)


def test_a_grid_that_clips_nothing_takes_what_theory_says() -> None:
    for bits, clip in ((6, 12.85), (7, 14.0), (8, 20.0)):
        theory = 2.0471 + np.log2((2 ** (bits - 1) - 1) / clip)
        found = estimate.code_bits(Rule(role="matrix", bits=bits, clip=clip))
        assert found == pytest.approx(theory, abs=0.015)
    clipped = Rule(role="matrix", bits=2, clip=1.25)
    assert 1.0 < estimate.code_bits(clipped) < np.log2(3)


def test_a_dry_run_is_held_to_rules() -> None:
    found = describe(read_recipe("demo"), rules=find("golf"))["rules"]
    assert found["name"] == "golf"
    assert {f["rule"]: f["holds"] for f in found["findings"]}["artifact"] is None


def test_groups_are_shown_in_columns() -> None:
    run = alone(read_recipe("demo", [*SMALL, "train.optimizer.matrix.decay=0.1"]))
    head, *rows = group_table(run.optimizers.groups())
    assert head.split() == ["weights", "of", "rule", "rate", "decay", "tensors", "weights"]
    assert len({len(line) for line in (head, *rows)}) == 1
    (matrix,) = [row for row in rows if row.startswith("matrix")]
    assert matrix.split()[-5:-2] == ["muon", "0.018", "0.1"]
    total = sum(int(row.split()[-1].replace(",", "")) for row in rows)
    assert total == sum(w.tensor.numel() for w in weights(run.model))


@pytest.mark.slow
def test_activations_are_those_of_the_device_and_of_one_process() -> None:
    recipe = read_recipe("demo", [*SMALL, "train.batch=8"])
    here, there = estimate.activations(recipe), estimate.activations(recipe, "cuda")
    assert here is not None
    assert there is not None
    assert there < 0.8 * here  # bfloat16, which `auto` means there
    half = read_recipe("demo", [*SMALL, "train.batch=8", "train.precision=bfloat16"])
    assert estimate.activations(half) == there
    shared = describe(recipe, processes=4)
    assert shared["processes"] == 4
    assert shared["memory"]["activations"] < 0.5 * here
    with pytest.raises(TrainError, match="does not divide among 3 processes"):
        describe(recipe, processes=3)


@pytest.mark.slow
def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = read_recipe("demo", SMALL)
    assert describe(recipe)["warnings"] == []
    monkeypatch.setattr(estimate, "machine_memory", lambda: (10**6, 10**6))
    (line,) = describe(recipe)["warnings"]
    assert "more than the 0.0 GB of this machine; set train.accumulation=2" in line
    settings = [*SMALL, "pack.budget=1kB", "quantize.method=gptq"]
    *_, line = describe(read_recipe("demo", settings))["warnings"]
    assert "over the budget of 1,000" in line
    *_, line = describe(read_recipe("demo", [*SMALL, "pack.budget=10kB"]))["warnings"]
    assert "bits for a weight" in line
