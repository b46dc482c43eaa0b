"""The training loop: a step, and when to log, validate, save and stop."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segpt.errors import InterruptError, TrainError
from segpt.model.build import build
from segpt.model.leaves import weights
from segpt.model.model import Model
from segpt.model.scaling import initialise
from segpt.spec.model import ModelSpec
from segpt.spec.train import Seconds, Steps, TrainSpec

from . import schedule
from .average import Averaged
from .mesh import Mesh
from .optim import Optimizers

Batches = Callable[[int], NDArray[np.int64]]  # step -> (batch, context + 1)
Validate = Callable[[Model], tuple[float, float]]  # -> nats per token, bits per byte
Clock = Callable[[], float]


@dataclass(frozen=True)
class Report:
    """What one logged step looked like; losses are nats per token."""

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
        self.forward: Callable[[Tensor], Tensor] = self.model
        self.optimizers = Optimizers(self.model, how.optimizer)
        self.average = Averaged(self.model, how.average)
        self.step, self.elapsed = 0, 0.0

    @property
    def progress(self) -> float:
        """The fraction of the run that is done."""
        match self.how.length:
            case Steps(count=steps):
                return min(1.0, self.step / steps)
            case Seconds(count=seconds):
                return min(1.0, self.elapsed / seconds)

    @property
    def schedule_progress(self) -> float:
        """Progress at the middle of the coming step, so that neither end of a ramp is lost."""
        match self.how.length:
            case Steps(count=steps):
                return (self.step + 0.5) / steps
            case Seconds():
                return self.progress

    def coming(self) -> Model:
        """The model in training mode, with the visits that run in the coming step."""
        how, loop, progress = self.how.loops, self.spec.loop, self.progress
        if how is None or loop is None:
            return self.model.at(progress).train()
        if not {*range(loop.start, loop.end)} <= {*self.spec.active(progress)}:
            return self.model.at(progress).train()
        drawn = schedule.loops(how, self.how.seed, self.step)
        return self.model.at(progress, drawn, how.back).train()

    def advance(self, batch: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Take one optimizer step on a global batch of (sequences, context + 1) tokens.

        Returns:
            Mean loss over this process's share and gradient norm, both still on the device.
        """
        bfloat16 = self.how.precision == "bfloat16" or (
            self.how.precision == "auto" and self.mesh.device.type == "cuda"
        )
        self.coming()
        for weight in weights(self.model):
            weight.tensor.grad = None
        loss = torch.zeros((), device=self.mesh.device)
        for rows in self.rows:
            tokens = torch.from_numpy(batch[rows]).to(self.mesh.device, non_blocking=True)
            with torch.autocast(self.mesh.device.type, torch.bfloat16, enabled=bfloat16):
                logits = self.forward(tokens[:, :-1])
            part = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            part = part / self.how.accumulation
            torch.autograd.backward(part)
            loss += part.detach()
        # Visits that have not joined yet leave no gradient, and no rule touches their weights.
        learning = [w.tensor for w in weights(self.model) if w.tensor.grad is not None]
        grads = [t.grad for t in learning if t.grad is not None]
        self.mesh.mean(grads)
        norm = torch.nn.utils.get_total_norm(grads)
        if self.how.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(learning, self.how.clip, norm)
        at = self.schedule_progress
        self.optimizers.step(schedule.rate(self.how.schedule, at), at)
        self.average.update()
        self.step += 1
        return loss, norm

    def state(self) -> dict[str, NDArray[Any]]:
        """What resuming needs beside the averaged weights, as named arrays."""
        state = {f"raw|{w.name}": w.tensor.detach() for w in weights(self.model)}
        state |= self.optimizers.state()
        state["generator"] = torch.get_rng_state()
        arrays = {name: tensor.cpu().numpy().copy() for name, tensor in state.items()}
        arrays["elapsed"] = np.array(self.elapsed)
        arrays["updates"] = np.array(self.average.updates)
        return arrays

    def used(self) -> dict[str, NDArray[np.float32]]:
        """The weights to use, as named float32 arrays."""
        return {n: t.cpu().numpy().copy() for n, t in self.average.weights().items()}

    def restore(
        self, step: int, used: Mapping[str, NDArray[Any]], state: Mapping[str, NDArray[Any]]
    ) -> None:
        """Go back to where :meth:`used` and :meth:`state` were taken."""
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
    compiled = torch.compile(run.model)
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
    run.forward = compiled


def train(
    run: Run,
    batches: Batches,
    *,
    validate: Validate | None = None,
    save: Callable[[Run], None] | None = None,
    report: Callable[[Report], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    clock: Clock = time.perf_counter,
) -> None:
    """Train until the spec's length is reached.

    Raises:
        InterruptError: after saving, when ``stop`` says so in any process.
        TrainError: when the loss or the gradient stops being finite, or memory runs out; what
            was saved before stays.
    """
    how, mesh = run.how, run.mesh
    loss = torch.zeros((), device=mesh.device)
    marked, since = run.step, run.elapsed
    while run.progress < 1.0:
        started = clock()
        try:
            part, norm = run.advance(batches(run.step))
        except torch.OutOfMemoryError as error:
            raise TrainError(
                f"the device ran out of memory at step {run.step}; "
                f"set train.accumulation={2 * how.accumulation} (the result stays the same)"
            ) from error
        loss += part
        if run.step % how.log_every == 0 or run.step % how.save_every == 0:
            _check_finite(run, loss, norm)
        run.elapsed = mesh.first(run.elapsed + clock() - started)
        interrupted, done = mesh.any(stop()), run.progress >= 1.0
        if interrupted or done:
            _check_finite(run, loss, norm)

        validation: tuple[float, float] | None = None
        if validate is not None and (done or run.step % how.validate_every == 0):
            with run.average.applied():
                validation = validate(run.model.at(run.progress).eval())
        if interrupted or done or validation is not None or run.step % how.log_every == 0:
            mean = loss / (run.step - marked)
            mesh.mean([mean])
            tokens = how.batch * run.spec.context
            report(
                Report(
                    step=run.step,
                    progress=run.progress,
                    loss=float(mean),
                    rate=schedule.rate(how.schedule, run.progress),
                    gradient_norm=float(norm),
                    tokens=run.step * tokens,
                    tokens_per_second=(run.step - marked) * tokens / (run.elapsed - since + 1e-9),
                    seconds=run.elapsed,
                    validation_loss=validation[0] if validation else None,
                    validation_bpb=validation[1] if validation else None,
                )
            )
            marked, since = run.step, run.elapsed
            loss.zero_()
        if save is not None and (interrupted or done or run.step % how.save_every == 0):
            save(run)
        if interrupted and not done:
            raise InterruptError(
                f"stopped at step {run.step}, which is saved; `segpt train --resume` goes on"
            )


def _check_finite(run: Run, loss: Tensor, norm: Tensor) -> None:
    if not (math.isfinite(float(loss)) and math.isfinite(float(norm))):
        raise TrainError(
            f"loss or gradient is not finite at step {run.step} (loss {float(loss)}, gradient "
            f"norm {float(norm)}); the last saved checkpoint is good; lower the rates, "
            "e.g. --set train.optimizer.matrix.rate=0.01"
        )
