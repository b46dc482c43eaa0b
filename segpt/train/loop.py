"""The training loop: a step, and when to log, validate, save and stop."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt.config.model import ModelSpec
from segpt.config.schedule import Seconds, Steps
from segpt.config.train import TrainSpec
from segpt.errors import CheckpointError, InterruptError, TrainError
from segpt.kernels import onednn
from segpt.model.build import build, load_weights
from segpt.model.leaves import weights
from segpt.model.model import Model
from segpt.model.scaling import initialise, multipliers
from segpt.restoring import same_kind, taking_over

from . import schedule
from .average import Averaged
from .loss import token_loss
from .mesh import Mesh
from .optim import Optimizers
from .threads import Threads
from .validations import Validations

Batches = Callable[[int], NDArray[np.int64]]  # step -> (batch, context + 1)
Validate = Callable[[Model], tuple[float, float]]  # -> nats per token, bits per byte
Finish = Callable[["Run", float | None], bool]  # run, nats per token if just validated -> end
Clock = Callable[[], float]


class Taken(NamedTuple):
    """What one step was like in this process's share, still on the device.

    Both losses are means over tokens; ``kurtosis`` is one number for each visit that ran.
    """

    loss: Tensor
    gradient_norm: Tensor
    z_loss: Tensor
    kurtosis: Tensor | None


@dataclass(frozen=True)
class Report:
    """What one logged step looked like; losses are nats per token.

    ``loss`` is without ``z_loss``, and ``bpb`` says the same of the bytes that were trained on;
    like these it is a mean since the report before.
    """

    step: int
    progress: float
    loss: float
    rate: float
    gradient_norm: float
    tokens: int
    tokens_per_second: float
    seconds: float
    validation_loss: float | None = None
    validation_bpb: float | None = None
    validation_slope: float | None = None
    bpb: float | None = None
    z_loss: float | None = None
    kurtosis: list[float] | None = None


class Run:
    """A model in training: everything that changes from step to step."""

    def __init__(self, spec: ModelSpec, how: TrainSpec, mesh: Mesh) -> None:
        self.spec, self.how, self.mesh = spec, how, mesh
        self.rows = mesh.rows(how.batch, how.accumulation)
        torch.manual_seed(how.seed)  # whatever draws during training draws the same everywhere
        self.model = build(spec)
        initialise(self.model, how.scaling, how.seed)
        self.model.to(mesh.device)
        if how.loops is not None:
            spec.passes(how.loops.most)  # raises if there is no loop
        self.model.recompute = how.recompute
        self.hidden: Callable[[Tensor], Tensor] = self.model.hidden
        rates = multipliers(spec, how.scaling, how.optimizer)
        self.optimizers = Optimizers(self.model, how.optimizer, rates)
        self.average = Averaged(self.model, how.average)
        self.validations = Validations(how.best_after)
        self.threads = Threads(mesh.device.type if mesh.size == 1 else "shared")
        self.step, self.blocks, self.elapsed = 0, 0, 0.0

    @property
    def fraction(self) -> float:
        """The fraction of the run that is done."""
        match self.how.length:
            case Steps(count=steps):
                return min(1.0, self.step / steps)
            case Seconds(count=seconds):
                return min(1.0, self.elapsed / seconds)

    @property
    def progress(self) -> float:
        """How far schedules are: the fraction of their horizon, or of the run if they have none."""
        if self.how.horizon is None:
            return self.fraction
        return min(1.0, self.step / self.how.horizon)

    @property
    def schedule_progress(self) -> float:
        """Progress at the middle of the coming step, so that neither end of a ramp is lost."""
        match self.how.length:
            case Steps(count=steps):
                return (self.step + 0.5) / (self.how.horizon or steps)
            case Seconds():
                return self.progress

    @property
    def size(self) -> int:
        """How many sequences the coming step takes; micro-batches stay as large as they are."""
        return self.how.batch * schedule.batch(self.how.schedule, self.schedule_progress)

    @property
    def left(self) -> int | None:
        """How many sequences the run still takes; None if its length is in seconds."""
        return sequences(self.how, self.step)

    def parts(self, rows: int) -> list[slice]:
        """The micro-batches that this process takes of a step's sequences.

        Raises:
            TrainError: if they are no multiple of the batch of the spec.
        """
        factor, rest = divmod(rows, self.how.batch)
        if rest or not factor:
            raise TrainError(f"{rows} sequences are no multiple of the batch of {self.how.batch}")
        return self.mesh.rows(rows, self.how.accumulation * factor)

    def coming(self) -> Model:
        """The model in training mode, with the visits that run in the coming step."""
        how, loop, progress = self.how.loops, self.spec.loop, self.progress
        if how is None or loop is None:
            return self.model.at(progress).train()
        if not {*range(loop.start, loop.end)} <= {*self.spec.active(progress)}:
            return self.model.at(progress).train()
        drawn = schedule.loops(how, self.how.seed, self.step)
        return self.model.at(progress, drawn, how.back).train()

    @onednn.wanted()
    def advance(self, batch: NDArray[np.int64], *, watch: bool = False) -> Taken:
        """Take one optimizer step on a global batch of (sequences, context + 1) tokens.

        ``watch`` asks for the kurtosis of what enters each visit.
        """
        bfloat16 = self.how.precision == "bfloat16" or (
            self.how.precision == "auto" and self.mesh.device.type == "cuda"
        )
        self.coming()
        for weight in weights(self.model):
            weight.tensor.grad = None
        loss, z = (torch.zeros((), device=self.mesh.device) for _ in range(2))
        tails: list[Tensor] = []
        parts = self.parts(len(batch))
        for rows in parts:
            tokens = torch.from_numpy(batch[rows]).to(self.mesh.device, non_blocking=True)
            with torch.autocast(self.mesh.device.type, torch.bfloat16, enabled=bfloat16):
                if watch:
                    hidden, found = watched(self.model, tokens[:, :-1])
                    tails.append(found)
                else:
                    hidden = self.hidden(tokens[:, :-1])
                part = token_loss(self.model, hidden, tokens[:, 1:], self.how.z_loss)
            torch.autograd.backward(part.total / len(parts))
            loss += part.nats / len(parts)
            z += part.z / len(parts)
        # Visits that have not joined yet leave no gradient, and no rule touches their weights.
        learning = [w.tensor for w in weights(self.model) if w.tensor.grad is not None]
        grads = [t.grad for t in learning if t.grad is not None]
        self.mesh.mean(grads)
        norm = torch.nn.utils.get_total_norm(grads)
        if self.how.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(learning, self.how.clip, norm)
        at, steps = self.schedule_progress, self.step + 0.5
        self.optimizers.step(schedule.rate(self.how.schedule, at, steps), at, steps)
        self.average.update(self.fraction)
        self.step += 1
        self.blocks += len(batch)
        return Taken(loss, norm, z, torch.stack(tails).mean(0) if tails else None)

    def state(self) -> dict[str, NDArray[Any]]:
        """What resuming needs beside the averaged weights, as named arrays."""
        state = {f"raw|{w.name}": w.tensor.detach() for w in weights(self.model)}
        state |= self.optimizers.state()
        state["generator"] = torch.get_rng_state()
        arrays = {name: tensor.cpu().numpy().copy() for name, tensor in state.items()}
        arrays["elapsed"] = np.array(self.elapsed)
        arrays["updates"] = np.array(self.average.updates)
        arrays["blocks"] = np.array(self.blocks)
        arrays["validations"] = self.validations.state()
        return arrays

    def used(self) -> dict[str, NDArray[np.float32]]:
        """The weights to use, as named float32 arrays."""
        return {n: t.cpu().numpy().copy() for n, t in self.average.weights().items()}

    def restore(
        self, step: int, used: Mapping[str, NDArray[Any]], state: Mapping[str, NDArray[Any]]
    ) -> None:
        """Go back to where :meth:`used` and :meth:`state` were taken.

        Raises:
            CheckpointError: if something is missing, or of another shape or type.
        """
        what = "the state of the run"
        same_kind("the checkpoint", used, self.used())
        same_kind(what, state, {f"raw|{name}": array for name, array in self.used().items()})
        with taking_over(what, state, self.state, optional=("blocks", "validations")):
            self._restore(step, used, state)
        if min(self.step, self.blocks, self.average.updates, self.elapsed) < 0:
            raise CheckpointError(f"{what} counts below nothing; use an older checkpoint")

    def _restore(
        self, step: int, used: Mapping[str, NDArray[Any]], state: Mapping[str, NDArray[Any]]
    ) -> None:
        tensors = {
            name: torch.from_numpy(np.array(value)) for name, value in state.items() if value.ndim
        } | {name: torch.tensor(value.item()) for name, value in state.items() if not value.ndim}
        with torch.no_grad():
            for weight in weights(self.model):
                weight.tensor.copy_(tensors[f"raw|{weight.name}"])
        self.optimizers.restore(tensors)
        self.average.restore(
            {name: torch.from_numpy(np.array(value)) for name, value in used.items()},
            int(state["updates"]),
        )
        torch.set_rng_state(tensors["generator"])
        self.step, self.elapsed = step, float(state["elapsed"])
        self.blocks = int(state["blocks"]) if "blocks" in state else step * self.how.batch
        if "validations" in state:
            self.validations.restore(state["validations"])

    def start_from(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Begin with these weights instead of random ones; nothing else is taken over.

        Raises:
            CheckpointError: if names or shapes are not the model's.
        """
        load_weights(self.model, arrays)
        self.average = Averaged(self.model, self.how.average)


def watched(model: Model, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The final stream, and the kurtosis of what enters each visit on the way.

    That is the mean over tokens of the mean fourth power over channels, divided by the square of
    the mean square: 3 for normal numbers, the width where one channel is all. No mean is taken off.
    """
    found: list[Tensor] = []

    @torch.no_grad()
    def watch(x: Tensor) -> None:
        square = x.float().square()
        ratio = square.square().mean(-1) / square.mean(-1).clamp_min(1e-8).square()
        found.append(ratio.mean())

    model.watch = watch
    try:
        return model.hidden(tokens), torch.stack(found)
    finally:
        model.watch = None


def sequences(how: TrainSpec, first: int = 0) -> int | None:
    """How many sequences a run takes from step ``first`` on; None if its length is in seconds."""
    if not isinstance(how.length, Steps):
        return None
    horizon = how.horizon or how.length.count
    at = ((step + 0.5) / horizon for step in range(first, how.length.count))
    return how.batch * sum(schedule.batch(how.schedule, progress) for progress in at)


def compile_model(run: Run, batch: NDArray[np.int64], notice: Callable[[str], None]) -> None:
    """Compile the forward pass where the spec asks for it, or say why it stays eager.

    The probe is a forward and backward pass, because compilers fail at the first call.
    """
    wanted = run.how.compile == "on" or (
        run.how.compile == "auto" and run.mesh.device.type == "cuda"
    )
    if not wanted:
        return
    if run.how.loops is not None:  # every number of loops is one more graph
        numbers = run.how.loops.most - run.how.loops.least + 1
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 8 + numbers)
    if run.spec.growth is not None:  # and so is every width of windows
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 8 + run.spec.growth.widths)
    compiled = torch.compile(run.model.hidden)
    tokens = torch.from_numpy(batch[run.rows[0]]).to(run.mesh.device)
    try:
        torch.autograd.backward(compiled(tokens[:, :-1]).sum())
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        if run.how.compile == "on":
            reason = str(error).strip().splitlines()[0]
            raise TrainError(
                f"torch.compile does not work here: {reason}; set train.compile=off"
            ) from error
        notice("torch.compile does not work here (is there a C++ compiler?); running eagerly")
        return
    run.hidden = compiled


def train(
    run: Run,
    batches: Batches,
    *,
    validate: Validate | None = None,
    save: Callable[[Run], None] | None = None,
    report: Callable[[Report], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    finish: Finish = lambda _run, _nats: False,
    sizes: NDArray[np.int64] | None = None,
    clock: Clock = time.perf_counter,
) -> None:
    """Train until the spec's length is reached, or ``finish`` ends the run.

    ``finish`` is asked after every step, and after a validation again with its loss. What it may
    depend on, the run and that loss, is the same in every process. ``sizes`` are the bytes that
    each token spells, (vocab,), from which reports tell the bits per byte of what is trained on.

    Raises:
        InterruptError: after saving, when ``stop`` says so in any process.
        TrainError: when the loss or the gradient stops being finite, or memory runs out; what
            was saved before stays.
    """
    how, mesh = run.how, run.mesh
    loss, z = (torch.zeros((), device=mesh.device) for _ in range(2))  # sums over sequences
    read, since, size = run.blocks, run.elapsed, 0
    done = run.fraction >= 1.0
    while not done:
        started = clock()
        try:
            batch = batches(run.step)
            watch = how.kurtosis and (run.step + 1) % how.log_every == 0
            part, norm, part_z, kurtosis = run.advance(batch, watch=watch)
            run.threads.step()
        except torch.OutOfMemoryError as error:
            raise TrainError(
                f"the device ran out of memory at step {run.step}; "
                f"set train.accumulation={2 * how.accumulation} (the result stays the same)"
            ) from error
        loss += part * len(batch)
        z += part_z * len(batch)
        size += 0 if sizes is None else int(sizes[batch[:, 1:]].sum())
        if run.step % how.log_every == 0 or run.step % how.save_every == 0:
            _check_finite(run, loss, norm)
        run.elapsed = mesh.first(run.elapsed + clock() - started)
        interrupted, done = mesh.any(stop()), run.fraction >= 1.0 or finish(run, None)
        if interrupted or done:
            _check_finite(run, loss, norm)

        validation: tuple[float, float] | None = None
        best = False
        if validate is not None and (done or run.step % how.validate_every == 0):
            with run.average.applied():
                nats, bpb = validate(run.model.at(run.progress).eval())
            validation = mesh.mean_value(nats), mesh.mean_value(bpb)
            best = run.validations.add(run.step, run.blocks * run.spec.context, *validation)
            done = done or finish(run, validation[0])
        if interrupted or done or validation is not None or run.step % how.log_every == 0:
            means = [total / (run.blocks - read) for total in (loss, z)]
            mesh.mean([*means, *([] if kurtosis is None else [kurtosis])])
            mean, mean_z = map(float, means)
            tokens = (run.blocks - read) * run.spec.context
            report(
                Report(
                    step=run.step,
                    progress=run.fraction,
                    loss=mean,
                    rate=schedule.rate(how.schedule, run.progress, run.step),
                    gradient_norm=float(norm),
                    tokens=run.blocks * run.spec.context,
                    tokens_per_second=tokens / (run.elapsed - since + 1e-9),
                    seconds=run.elapsed,
                    validation_loss=validation[0] if validation else None,
                    validation_bpb=validation[1] if validation else None,
                    validation_slope=run.validations.slope if validation else None,
                    bpb=mean * tokens / (math.log(2) * size) if size else None,
                    z_loss=mean_z if how.z_loss else None,
                    kurtosis=None if kurtosis is None else kurtosis.tolist(),
                )
            )
            read, since, size = run.blocks, run.elapsed, 0
            loss.zero_()
            z.zero_()
        kept = (best and how.keep_best) or run.step % how.save_every == 0
        if save is not None and (interrupted or done or kept):
            save(run)
        if validation is not None or kept:
            run.threads.restart()  # validating and saving are no steps
        if interrupted and not done:
            raise InterruptError(f"stopped at step {run.step}, which is saved")


def _check_finite(run: Run, loss: Tensor, norm: Tensor) -> None:
    if not (math.isfinite(float(loss)) and math.isfinite(float(norm))):
        raise TrainError(
            f"loss or gradient is not finite at step {run.step} (loss {float(loss)}, gradient "
            f"norm {float(norm)}); the last saved checkpoint is good; lower the rates, "
            "e.g. --set train.optimizer.matrix.rate=0.01"
        )
