"""The loop: learning, averaging, stopping, and what a resumed run owes an uninterrupted one."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.config.base import patch
from segpt.config.expand import expand
from segpt.config.model import ModelSpec
from segpt.config.optimizer import Adam, Muon, Optimizer
from segpt.config.schedule import Seconds, Steps
from segpt.config.train import Average, Loops, TrainSpec
from segpt.errors import InterruptError, SpecError, TrainError
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.stages.checkpoint_io import read_checkpoint, save_checkpoint
from segpt.train.loop import StepMetrics
from segpt.train.mesh import Mesh
from segpt.train.trainer import Trainer
from segpt.values import Checkpoint, Tokenizer, arrays_digest
from tests.model.states import entering
from tests.train.running import train

Batches = Callable[[int], NDArray[np.int64]]
Make = Callable[..., Trainer]


def digest(run: Trainer) -> str:
    state = {name: value for name, value in run.state().items() if name != "elapsed"}
    return arrays_digest(state) + arrays_digest(run.averaged_weights())


def snapshot(run: Trainer, place: Path) -> None:
    save_checkpoint(
        place / str(run.step),
        Checkpoint(
            spec=run.spec,
            weights=run.averaged_weights(),
            tokenizer=Tokenizer("bytes", 257),
            step=run.step,
            progress=run.progress,
            documents=np.zeros(0, np.uint64),
            origin={},
            state=run.state(),
        ),
    )


@pytest.mark.slow
def test_loss_falls_and_metrics_are_reported(make: Make, batches: Batches) -> None:
    # a run that never logs its loss
    reports: list[StepMetrics] = []
    run = make(steps=60)
    train(run, batches, validate=lambda model: (1.5, 2.5), report=reports.append)
    assert [r.step for r in reports] == list(range(1, 61))
    assert reports[-1].loss < 0.7 * reports[0].loss
    assert [r.step for r in reports if r.validation_bpb == 2.5] == [10, 20, 30, 40, 50, 60]
    assert all(math.isfinite(r.gradient_norm) and r.tokens_per_second > 0 for r in reports)
    assert reports[-1].tokens == 60 * 8 * 12


@pytest.mark.slow
@pytest.mark.parametrize("matrix", [Muon(decay=0.1), Adam(decay=0.1)])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_every_step_resumes_bit_exactly(
    make: Make, batches: Batches, matrix: Muon | Adam, accumulation: int, tmp_path: Path
) -> None:
    # no checkpoint, no resume
    changes = {"optimizer": Optimizer(matrix=matrix), "accumulation": accumulation}
    steps = 8  # a visit joins halfway
    whole = make(save_every=1, steps=steps, **changes)
    train(whole, batches, save=lambda run: snapshot(run, tmp_path))
    expected = digest(whole)
    for k in range(1, steps):
        checkpoint = read_checkpoint(tmp_path / str(k), state=True)
        assert checkpoint.state is not None
        torch.manual_seed(k)  # another process has another generator
        resumed = make(steps=steps, **changes)
        resumed.restore(k, checkpoint.weights, checkpoint.state)
        train(resumed, batches)
        assert digest(resumed) == expected, f"resumed from step {k}"


@pytest.mark.slow
def test_accumulation_changes_only_rounding(make: Make, batches: Batches) -> None:
    one, four = make(accumulation=1), make(accumulation=4)
    train(one, batches)
    train(four, batches)
    for name, value in one.averaged_weights().items():
        assert np.allclose(value, four.averaged_weights()[name], atol=2e-4), name


@pytest.mark.slow
def test_average_is_right_from_the_first_step(make: Make, batches: Batches) -> None:
    # a shadow that starts as the random initialisation and is first updated at step 8000
    run = make(steps=40, average=Average(decay=0.999))
    train(run, batches)

    def loss() -> float:
        with torch.no_grad():
            tokens = torch.from_numpy(batches(10_000))
            logits = run.model(tokens[:, :-1]).flatten(0, 1)
            return float(torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()))

    raw = loss()
    with run.average.applied():
        averaged = loss()
    assert averaged < 1.05 * raw
    assert loss() == raw  # and the raw weights are back


def test_average_is_float32(make: Make) -> None:
    # in bfloat16, increments of a thousandth are lost
    run = make(average=Average(decay=0.999))
    run.average.updates = 10_000_000  # past the warm-up of the average
    with torch.no_grad():
        for weight in weights(run.model):
            weight.tensor.fill_(1.0)
        for tensor in run.average.shadow.values():
            tensor.fill_(0.5)
    for _ in range(5000):
        run.average.update(0.5)
    for tensor in run.average.shadow.values():
        assert tensor.dtype == torch.float32
        assert torch.all(tensor > 0.99)


def test_masters_are_float32_under_bfloat16_compute(make: Make, batches: Batches) -> None:
    # the whole model cast to bfloat16
    run = make(precision="bfloat16", steps=3)
    train(run, batches)
    assert {w.tensor.dtype for w in weights(run.model)} == {torch.float32}
    assert all(array.dtype == np.float32 for array in run.averaged_weights().values())


@pytest.mark.parametrize("share", [0.1, 10.0])
def test_the_gradient_is_clipped_as_a_whole(make: Make, batches: Batches, share: float) -> None:
    free = make(clip=None)
    norm = free.train_step(batches(0)).gradient_norm
    run = make(clip=share * float(norm))
    reported = run.train_step(batches(0)).gradient_norm
    assert torch.equal(reported, norm)  # it is not cut
    before, after = (
        [w.tensor.grad for w in weights(each.model) if w.tensor.grad is not None]
        for each in (free, run)
    )
    for whole, left in zip(before, after, strict=True):
        torch.testing.assert_close(left, min(1.0, share) * whole, rtol=1e-4, atol=1e-9)


def test_training_continues_after_validation(make: Make, batches: Batches) -> None:
    # caches filled in inference mode break the next backward pass
    def validate(model: Model) -> tuple[float, float]:
        with torch.no_grad():
            model(torch.from_numpy(batches(0))[:, :-1])
        return 0.0, 0.0

    run = make(steps=4, validate_every=1)
    validate(run.model)  # before the first training step, as warm-up 0 would
    train(run, batches, validate=validate)
    assert run.step == 4


def test_loops_join_during_training(make: Make, batches: Batches) -> None:
    seen: list[tuple[float, int]] = []
    run = make(validate_every=1)
    train(
        run,
        batches,
        validate=lambda m: (float(len(m.active)), 0.0),
        report=lambda r: seen.append((r.progress, int(r.validation_loss or 0))),
    )
    assert {visits for progress, visits in seen if progress < 0.5} == {3}
    assert {visits for progress, visits in seen if progress >= 0.5} == {4}


@pytest.mark.slow
def test_loops_are_drawn_once_the_whole_loop_has_joined(make: Make, batches: Batches) -> None:
    run = make(steps=40, loops=Loops(most=5))
    seen: list[tuple[float, int]] = []
    while run.progress < 1.0:
        at = run.progress
        run.train_step(batches(run.step))
        seen.append((at, len(run.model.active) - 2))  # layers 0 and 2 run once
    assert {loops for progress, loops in seen if progress < 0.5} == {1}
    assert {loops for progress, loops in seen if progress >= 0.5} == {1, 2, 3, 4, 5}


def test_validation_runs_the_route_as_written(make: Make, batches: Batches) -> None:
    seen: list[tuple[int, ...]] = []

    def validate(model: Model) -> tuple[float, float]:
        seen.append(model.active)
        return 0.0, 0.0

    run = make(steps=20, validate_every=1, loops=Loops(most=5))
    train(run, batches, validate=validate)
    assert seen[-10:] == [(0, 1, 2, 3)] * 10


@pytest.mark.slow
@pytest.mark.parametrize("back", [None, 1])
def test_drawn_loops_resume_bit_exactly(
    make: Make, batches: Batches, back: int | None, tmp_path: Path
) -> None:
    changes = {"loops": Loops(most=5, mean=2.5, back=back)}
    whole = make(save_every=1, **changes)
    train(whole, batches, save=lambda run: snapshot(run, tmp_path))
    for k in (9, 10, 19):
        checkpoint = read_checkpoint(tmp_path / str(k), state=True)
        assert checkpoint.state is not None
        resumed = make(**changes)
        resumed.restore(k, checkpoint.weights, checkpoint.state)
        train(resumed, batches)
        assert digest(resumed) == digest(whole), f"resumed from step {k}"


@pytest.mark.slow
def test_drawing_loops_teaches_every_depth(make: Make, batches: Batches) -> None:
    fixed, drawn = make(steps=80), make(steps=80, loops=Loops(most=6))
    tokens = torch.from_numpy(batches(10_000))

    def loss(run: Trainer, loops: int) -> float:
        with torch.no_grad():
            logits = run.model.loops(loops)(tokens[:, :-1]).flatten(0, 1)
            return float(torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()))

    for run in (fixed, drawn):
        train(run, batches)
    assert loss(drawn, 6) - loss(drawn, 2) < 0.5 * (loss(fixed, 6) - loss(fixed, 2))


def test_drawing_loops_needs_a_loop(how: TrainSpec) -> None:
    spec = expand(
        {
            "vocab": 8,
            "width": 8,
            "context": 8,
            "depth": 2,
            "layer": {"mixer": None, "feed": {"hidden": 8}},
        }
    )
    drawn = dataclasses.replace(how, loops=Loops(most=3))
    with pytest.raises(SpecError, match="has no loop"):
        Trainer(spec, drawn, Mesh(0, 1, torch.device("cpu")))


def test_not_a_number_stops_and_keeps_the_last_good_checkpoint(
    make: Make, batches: Batches
) -> None:
    saved: list[int] = []
    run = make()

    def save(run: Trainer) -> None:
        saved.append(run.step)
        if run.step == 10:
            with torch.no_grad():
                run.model.table.weight.fill_(float("nan"))

    with pytest.raises(TrainError, match="not finite at step 11"):
        train(run, batches, save=save)
    assert saved == [5, 10]


def test_a_stop_saves_at_that_step(make: Make, batches: Batches) -> None:
    saved: list[int] = []
    run = make()
    with pytest.raises(InterruptError, match="step 7"):
        train(run, batches, save=lambda r: saved.append(r.step), stop=lambda: run.step == 7)
    assert saved == [5, 7]


def test_length_in_seconds_follows_the_clock(make: Make, batches: Batches) -> None:
    ticks: Iterator[float] = iter(0.5 * i for i in range(10_000))
    rates: list[tuple[float, float]] = []
    run = make(length=Seconds(count=10.0))
    train(
        run,
        batches,
        clock=lambda: next(ticks),
        report=lambda r: rates.append((r.seconds, r.rate)),
    )
    assert run.step == 20  # half a second between the two readings of each step
    assert [s for s, _ in rates] == [0.5 * i for i in range(1, 21)]
    assert rates[-1][1] == 0.0


def test_a_batch_that_does_not_divide_is_refused(spec: ModelSpec) -> None:
    # 8 // world micro-batches silently change the batch
    for size, accumulation in ((3, 1), (5, 1), (2, 3)):
        with pytest.raises(TrainError, match="does not divide"):
            Mesh(0, size, torch.device("cpu")).rows(8, accumulation)
    rows = [Mesh(r, 2, torch.device("cpu")).rows(8, 2) for r in range(2)]
    taken = sorted(i for rank in rows for part in rank for i in range(*part.indices(8)))
    assert taken == list(range(8))


def test_runs_where_there_is_no_cuda(make: Make, batches: Batches) -> None:
    # CUDA required
    run = make(steps=1, compile="auto", precision="auto")
    train(run, batches)
    assert run.mesh.device.type == "cpu"


def test_seeds_and_initialisation_are_explicit(make: Make) -> None:
    # default torch initialisation
    a, b, c = (arrays_digest(make(seed=seed).averaged_weights()) for seed in (3, 3, 4))
    assert a == b != c


def test_bits_per_byte_of_training_is_all_bits_over_all_bytes(make: Make, batches: Batches) -> None:
    # a mean of ratios, or of losses weighted by bytes, where tokens spell different numbers of them
    sizes = np.arange(61) % 7
    reports: list[StepMetrics] = []
    run = make(steps=8, log_every=4)
    train(run, batches, report=reports.append, sizes=sizes)
    again, losses = make(steps=8), list[float]()
    while again.progress < 1.0:
        losses.append(float(again.train_step(batches(again.step)).loss))
    for i, report in enumerate(reports):
        steps = range(4 * i, 4 * i + 4)
        targets = np.concatenate([batches(step)[:, 1:] for step in steps])
        nats = sum(losses[step] for step in steps) * 8 * 12
        assert report.bpb == pytest.approx(nats / (math.log(2) * sizes[targets].sum()), rel=1e-6)
        assert report.loss == pytest.approx(np.mean([losses[step] for step in steps]), rel=1e-6)


def test_without_sizes_or_z_loss_nothing_is_said_of_them(make: Make, batches: Batches) -> None:
    reports: list[StepMetrics] = []
    train(make(steps=2), batches, report=reports.append)
    assert {(r.bpb, r.z_loss, r.kurtosis) for r in reports} == {(None, None, None)}


@pytest.mark.slow
def test_smoothed_targets_are_descended_and_the_loss_is_reported(
    make: Make, batches: Batches
) -> None:
    found: list[list[StepMetrics]] = [[], []]
    for reports, share in zip(found, (0.0, 0.5), strict=True):
        train(make(steps=30, label_smoothing=share), batches, report=reports.append)
    plain, smoothed = found
    assert plain[0].loss == smoothed[0].loss  # of the same weights
    assert plain[-1].loss < smoothed[-1].loss  # half of what was descended is something else


def test_z_loss_is_reported_beside_the_loss(make: Make, batches: Batches) -> None:
    reports: list[list[StepMetrics]] = [[], []]
    for c, found in zip((0.0, 0.5), reports, strict=True):
        train(make(steps=30, z_loss=c), batches, report=found.append)
    plain, with_z = reports
    assert with_z[0].loss == pytest.approx(plain[0].loss, rel=1e-6)  # the first step is the same
    assert with_z[0].z_loss == pytest.approx(0.5 * math.log(61) ** 2, rel=0.02)  # uniform at first
    assert (with_z[-1].z_loss or 9.0) < 0.7 * (with_z[0].z_loss or 0.0)


PARTS = {
    "plain": {},
    "values": {"mixer": {"value": ["value_residual"]}},
    "fast": {"feed": {"fast": {"chunk": 4, "rate": 0.01}}},
}


LOOPS = None, Loops(least=6, most=6), Loops(least=6, most=6, back=2)
RECOMPUTED = [
    pytest.param(
        parts,
        loops,
        recompute,
        id=f"{name}-loops{j}-{recompute}",
        # All visits of all, and some visits of each.
        marks=[] if recompute == -1 or i == j else pytest.mark.campaign,
    )
    for i, (name, parts) in enumerate(PARTS.items())
    for j, loops in enumerate(LOOPS)
    for recompute in (2, -1)
]


def forgetful(parts: dict[str, object]) -> ModelSpec:
    """A looped model with skips, whose parts write to what later ones read."""
    mixer = {"heads": 2, "kv_heads": 1, "head_dim": 16, "query_key": ["norm", "gain"]}
    layer: dict[str, object] = {
        "wiring": "parallel",
        "join": ["mix_input"],
        "mixer": mixer,
        "feed": {"hidden": 64, "act": "leaky_relu2"},
    }
    route = {"depth": 3, "route": "0 (1)*4 2", "skips": "mirror"}
    model = {"vocab": 61, "width": 32, "context": 12, "layer": patch(layer, parts)}
    return expand(model | route)


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "loops", "recompute"), RECOMPUTED)
def test_recomputing_changes_no_gradient(
    how: TrainSpec,
    batches: Batches,
    parts: dict[str, object],
    loops: Loops | None,
    recompute: int,
) -> None:
    # a visit that is computed again as another one, or from what was written after it
    found: list[dict[str, torch.Tensor]] = []
    for count in (0, recompute):
        spec = forgetful(parts)
        changed = dataclasses.replace(how, loops=loops, recompute=count)
        run = Trainer(spec, changed, Mesh(0, 1, torch.device("cpu")))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for weight in weights(run.model):  # no weight at zero, or gradients are too
                noise = torch.randn(weight.tensor.shape, generator=generator)
                weight.tensor.add_(0.2 * noise)
        run.train_step(batches(0))
        found.append(
            {w.name: w.tensor.grad for w in weights(run.model) if w.tensor.grad is not None}
        )
    kept, forgotten = found
    assert kept.keys() == forgotten.keys()
    assert len(kept) > 10
    for name, gradient in kept.items():
        assert torch.equal(gradient, forgotten[name]), name


def test_recomputing_takes_less_memory(how: TrainSpec, batches: Batches) -> None:
    spec = forgetful({})
    tokens = torch.from_numpy(batches(0))[:, :-1]

    def kept(recompute: int) -> int:
        run = Trainer(
            spec, dataclasses.replace(how, recompute=recompute), Mesh(0, 1, torch.device("cpu"))
        )
        held: dict[int, int] = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            hidden = run.model.hidden(tokens).x
        assert hidden.requires_grad
        return sum(held.values())

    everything, some, nothing = kept(0), kept(3), kept(-1)
    assert nothing < some < everything
    assert nothing < 0.3 * everything


def test_the_general_model_goes_on_without_recomputing(make: Make, batches: Batches) -> None:
    # no gradient, no second pass: a cache would be extended twice
    run = make(recompute=-1)
    tokens = torch.from_numpy(batches(0))[:, :-1]
    with torch.no_grad():
        whole = run.model(tokens)
    cache: dict[int, object] = {}
    parts = [run.model(tokens[:, i : i + 4], cache, i) for i in range(0, 12, 4)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_kurtosis_of_what_enters_each_visit(make: Make, batches: Batches) -> None:
    reports: list[StepMetrics] = []
    run = make(steps=20, log_every=4, kurtosis=True)  # 3 visits in the first half, then 4
    digests = digest(make(steps=20, log_every=4)), digest(run)
    assert digests[0] == digests[1]
    train(run, batches, report=reports.append)
    assert [len(r.kurtosis or []) for r in reports] == [3, 3, 4, 4, 4]
    plain = make(steps=20, log_every=4)
    train(plain, batches)
    assert digest(plain) == digest(run)  # looking changes nothing


def test_kurtosis_is_that_of_its_definition(make: Make, batches: Batches) -> None:
    run = make(accumulation=2)
    tokens = torch.from_numpy(batches(0))[:, :-1]
    run.coming()
    with entering(run.model) as entered:
        run.model.hidden(tokens)
    found = run.train_step(batches(0), watch=True).kurtosis
    assert found is not None
    for x, value in zip((x.detach().double() for x in entered), found.tolist(), strict=True):
        # raw moments: no mean is taken off
        wanted = (x.pow(4).mean(-1) / x.pow(2).mean(-1).pow(2)).mean()
        assert value == pytest.approx(float(wanted), rel=1e-5)


def test_tails_that_are_known() -> None:
    spec = forgetful({})
    run_model = Trainer(
        spec, TrainSpec(length=Steps(count=1), batch=1), Mesh(0, 1, torch.device("cpu"))
    ).model
    with torch.no_grad():
        run_model.table.weight.zero_()
        run_model.table.weight[:, 3] = 1.0  # one channel holds everything
    hidden = run_model.hidden(torch.zeros(1, 4, dtype=torch.int64), statistics=True)
    assert float(hidden.outputs.statistics["kurtosis"][0]) == pytest.approx(32.0)
