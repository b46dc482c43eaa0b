"""The training loop as a sequence of events: when to log, validate, save and stop."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from segpt.errors import InterruptError, TrainError
from segpt.model.model import Model

from . import schedule
from .trainer import StepResult, Trainer

Batches = Callable[[int], NDArray[np.int64]]  # step -> (batch, context + 1)
Validate = Callable[[Model], tuple[float, float]]  # -> nats per token, bits per byte
Finish = Callable[[Trainer, float | None], bool]  # trainer, nats if just validated -> end
Clock = Callable[[], float]


@dataclass(frozen=True)
class StepMetrics:
    """What one logged step looked like; losses are nats per token.

    ``loss`` is without ``z_loss``, and ``bpb`` says the same of the bytes that were trained on;
    like these it is a mean since the metrics before.
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


@dataclass(frozen=True)
class CheckpointDue:
    """The state after this step is to be saved before the next one is taken."""

    step: int


Event = StepMetrics | CheckpointDue


def training(
    trainer: Trainer,
    batches: Batches,
    *,
    validate: Validate | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    finish: Finish = lambda _trainer, _nats: False,
    sizes: NDArray[np.int64] | None = None,
    clock: Clock = time.perf_counter,
    prepare: Callable[[], None] = lambda: None,
) -> Iterator[Event]:
    """Train until the spec's length is reached, or ``finish`` ends the run.

    Args:
        trainer: what is trained.
        batches: gives the batch of a step.
        validate: measures a model on held-out text, every so many steps and at the end.
        should_stop: asked after every step; true in any process means save and stop.
        finish: asked after every step, and after a validation again with its loss. What it may
            depend on, the trainer and that loss, is the same in every process.
        sizes: (vocab,) bytes that each token spells, for the bits per byte of what is trained on.
        clock: seconds.
        prepare: gets the next batch ready, while the device still works on a step.

    Yields:
        Metrics where they are due, and then where a checkpoint is due that it is.

    Raises:
        InterruptError: after the last event, when ``should_stop`` says so in any process.
        TrainError: when loss or gradient is not finite, or memory runs out; what was saved stays.
    """
    cfg, mesh = trainer.cfg, trainer.mesh
    meter = _Meter(trainer, sizes)
    done = trainer.fraction >= 1.0
    while not done:
        started = clock()
        batch = batches(trainer.step)
        result = _step(trainer, batch, prepare)
        meter.add(batch, result)
        if trainer.step % cfg.log_every == 0 or trainer.step % cfg.save_every == 0:
            meter.check_finite()
        trainer.elapsed = mesh.first(trainer.elapsed + clock() - started)
        interrupted = mesh.any(should_stop())
        done = trainer.fraction >= 1.0 or finish(trainer, None)
        if interrupted or done:
            meter.check_finite()
        validation, best = None, False
        if validate is not None and (done or trainer.step % cfg.validate_every == 0):
            validation, best = _validated(trainer, validate)
            done = done or finish(trainer, validation[0])
        logged = validation is not None or trainer.step % cfg.log_every == 0
        if interrupted or done or logged:
            yield meter.metrics(validation)
        kept = (best and cfg.keep_best) or trainer.step % cfg.save_every == 0
        if interrupted or done or kept:
            yield CheckpointDue(trainer.step)
        if validation is not None or kept:
            trainer.threads.restart()  # validating and saving are no steps
        if interrupted and not done:
            raise InterruptError(f"stopped at step {trainer.step}, which is saved")


def _step(trainer: Trainer, batch: NDArray[np.int64], prepare: Callable[[], None]) -> StepResult:
    cfg = trainer.cfg
    watch = cfg.kurtosis and (trainer.step + 1) % cfg.log_every == 0
    try:
        result = trainer.train_step(batch, watch=watch)
        prepare()
        trainer.threads.step()
    except torch.OutOfMemoryError as error:
        raise TrainError(
            f"the device ran out of memory at step {trainer.step}; "
            f"set train.accumulation={2 * cfg.accumulation} (the result stays the same)"
        ) from error
    return result


def _validated(trainer: Trainer, validate: Validate) -> tuple[tuple[float, float], bool]:
    """Loss and bits per byte of the averaged weights, and whether they are the best so far."""
    with trainer.average.applied():
        measured = validate(trainer.model.set_progress(trainer.progress).eval())
    nats, bpb = map(trainer.mesh.mean_value, measured)
    tokens = trainer.blocks * trainer.spec.context
    return (nats, bpb), trainer.validations.add(trainer.step, tokens, nats, bpb)


class _Meter:
    """Sums over sequences since the last metrics."""

    def __init__(self, trainer: Trainer, sizes: NDArray[np.int64] | None) -> None:
        self.trainer, self.sizes = trainer, sizes
        self.loss, self.z = (torch.zeros((), device=trainer.mesh.device) for _ in range(2))
        self.result: StepResult | None = None
        self._begin()

    def _begin(self) -> None:
        self.blocks, self.elapsed, self.bytes = self.trainer.blocks, self.trainer.elapsed, 0
        self.loss.zero_()
        self.z.zero_()

    def add(self, batch: NDArray[np.int64], result: StepResult) -> None:
        """Take in a step."""
        self.loss += result.loss * len(batch)
        self.z += result.z_loss * len(batch)
        self.bytes += 0 if self.sizes is None else int(self.sizes[batch[:, 1:]].sum())
        self.result = result

    def check_finite(self) -> None:
        """Refuse to go on, or to save, after a loss or gradient that is not finite."""
        assert self.result is not None
        loss, norm = torch.stack([self.loss, self.result.gradient_norm]).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainError(
                f"loss or gradient is not finite at step {self.trainer.step} (loss {loss}, "
                f"gradient norm {norm}); the last saved checkpoint is good; lower the rates, "
                "e.g. --set train.optimizer.matrix.rate=0.01"
            )

    def metrics(self, validation: tuple[float, float] | None) -> StepMetrics:
        """Means over all processes since the last time, with the last step's own numbers."""
        assert self.result is not None
        trainer, cfg, kurtosis = self.trainer, self.trainer.cfg, self.result.kurtosis
        sequences = trainer.blocks - self.blocks
        means = [total / sequences for total in (self.loss, self.z)]
        trainer.mesh.mean([*means, *([] if kurtosis is None else [kurtosis])])
        # All at once, as a GPU is waited for once only.
        figures = torch.stack([*means, self.result.gradient_norm])
        watched = figures.new_zeros(0) if kurtosis is None else kurtosis
        loss, z, norm, *tails = torch.cat([figures, watched]).tolist()
        tokens = sequences * trainer.spec.context
        metrics = StepMetrics(
            step=trainer.step,
            progress=trainer.fraction,
            loss=loss,
            rate=schedule.rate(cfg.schedule, trainer.progress, trainer.step),
            gradient_norm=norm,
            tokens=trainer.blocks * trainer.spec.context,
            tokens_per_second=tokens / (trainer.elapsed - self.elapsed + 1e-9),
            seconds=trainer.elapsed,
            validation_loss=validation[0] if validation else None,
            validation_bpb=validation[1] if validation else None,
            validation_slope=trainer.validations.slope if validation else None,
            bpb=loss * tokens / (math.log(2) * self.bytes) if self.bytes else None,
            z_loss=z if cfg.z_loss else None,
            kurtosis=None if kurtosis is None else tails,
        )
        self._begin()
        return metrics
