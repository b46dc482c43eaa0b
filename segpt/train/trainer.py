"""A model in training: one optimizer step, and the state that resuming needs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt.config.model import ModelSpec
from segpt.config.precision import of_training
from segpt.config.schedule import Seconds, Steps
from segpt.config.train import TrainSpec
from segpt.errors import CheckpointError, TrainError
from segpt.kernels import onednn
from segpt.kernels.registry import load_backends
from segpt.model.build import build, load_weights
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.model.scaling import initialise, multipliers
from segpt.model.state import Hidden
from segpt.restoring import same_kind, taking_over

from . import schedule
from .average import Averaged
from .loss import token_loss
from .mesh import Mesh
from .optim import Optimizers
from .reducer import GradientReducer
from .threads import Threads
from .transfer import Transfer
from .validations import Validations


class StepResult(NamedTuple):
    """What one step was like in this process's share, still on the device.

    Attributes:
        loss: mean nats per token, a scalar.
        gradient_norm: over all weights, before clipping, a scalar.
        z_loss: the mean over tokens, a scalar.
        kurtosis: of what entered each visit that ran, (visits,), if it was watched.
    """

    loss: Tensor
    gradient_norm: Tensor
    z_loss: Tensor
    kurtosis: Tensor | None


class Trainer:
    """A model in training: everything that changes from step to step."""

    def __init__(self, spec: ModelSpec, cfg: TrainSpec, mesh: Mesh) -> None:
        self.spec, self.cfg, self.mesh = spec, cfg, mesh
        self.rows = mesh.rows(cfg.batch, cfg.accumulation)
        torch.manual_seed(cfg.seed)  # whatever draws during training draws the same everywhere
        self.model = build(spec)
        initialise(self.model, cfg.scaling, cfg.seed)
        self.model.to(mesh.device)
        if cfg.loops is not None:
            spec.passes(cfg.loops.most)  # raises if there is no loop
        self.model.recompute = cfg.recompute
        self.hidden: Callable[[Tensor], Hidden] = self.model.hidden
        rates = multipliers(spec, cfg.scaling, cfg.optimizer)
        self.optimizers = Optimizers(self.model, cfg.optimizer, rates, mesh)
        self.gradients = GradientReducer(self.model, mesh)
        self.average = Averaged(self.model, cfg.average)
        self.validations = Validations(cfg.best_after)
        self.transfer = Transfer(mesh.device)
        self.threads = Threads(mesh.device.type if mesh.size == 1 else "shared")
        self.step, self.blocks, self.elapsed = 0, 0, 0.0

    @property
    def fraction(self) -> float:
        """The fraction of the run that is done."""
        match self.cfg.length:
            case Steps(count=steps):
                return min(1.0, self.step / steps)
            case Seconds(count=seconds):
                return min(1.0, self.elapsed / seconds)

    @property
    def progress(self) -> float:
        """How far schedules are: the fraction of their horizon, or of the run if they have none."""
        if self.cfg.horizon is None:
            return self.fraction
        return min(1.0, self.step / self.cfg.horizon)

    @property
    def schedule_progress(self) -> float:
        """Progress at the middle of the coming step, so that neither end of a ramp is lost."""
        match self.cfg.length:
            case Steps(count=steps):
                return (self.step + 0.5) / (self.cfg.horizon or steps)
            case Seconds():
                return self.progress

    @property
    def size(self) -> int:
        """How many sequences the coming step takes; micro-batches stay as large as they are."""
        return self.cfg.batch * schedule.batch(self.cfg.schedule, self.schedule_progress)

    @property
    def left(self) -> int | None:
        """How many sequences the run still takes; None if its length is in seconds."""
        return sequences(self.cfg, self.step)

    def parts(self, rows: int) -> list[slice]:
        """The micro-batches that this process takes of a step's sequences.

        Raises:
            TrainError: if they are no multiple of the batch of the spec.
        """
        factor, rest = divmod(rows, self.cfg.batch)
        if rest or not factor:
            raise TrainError(f"{rows} sequences are no multiple of the batch of {self.cfg.batch}")
        return self.mesh.rows(rows, self.cfg.accumulation * factor)

    def coming(self) -> Model:
        """The model in training mode, with the visits that run in the coming step."""
        loops, loop, progress = self.cfg.loops, self.spec.loop, self.progress
        if loops is None or loop is None:
            return self.model.set_progress(progress).train()
        if not {*range(loop.start, loop.end)} <= {*self.spec.active(progress)}:
            return self.model.set_progress(progress).train()
        drawn = schedule.loops(loops, self.cfg.seed, self.step)
        return self.model.set_progress(progress, drawn, loops.back).train()

    @onednn.wanted()
    def train_step(self, batch: NDArray[np.int64], *, watch: bool = False) -> StepResult:
        """Take one optimizer step on a global batch of (sequences, context + 1) tokens.

        ``watch`` asks for the kurtosis of what enters each visit.
        """
        self.coming()
        for weight in weights(self.model):
            weight.tensor.grad = None
        if self.cfg.compile == "graphs":  # gradients of micro-batches are kept until here
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        loss, z, kurtosis = self.forward_backward(batch, watch=watch)
        norm = self.reduce()
        self.update()
        self.step += 1
        self.blocks += len(batch)
        return StepResult(loss, norm, z, kurtosis)

    def forward_backward(
        self, batch: NDArray[np.int64], *, watch: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Leave the gradients of this process's share of a batch in the weights.

        Returns:
            The mean loss and z-loss over that share, and the kurtosis (visits,) if it is watched.
        """
        device, cfg = self.mesh.device, self.cfg
        bfloat16 = of_training(cfg.precision, device.type) == "bfloat16"
        loss, z = (torch.zeros((), device=device) for _ in range(2))
        kurtosis: list[Tensor] = []
        parts = self.parts(len(batch))
        for i, rows in enumerate(parts):
            tokens = self.transfer.take(batch, rows)
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                if watch:
                    hidden = self.model.hidden(tokens[:, :-1], statistics=True)
                    kurtosis.append(hidden.outputs.statistics["kurtosis"])
                else:
                    hidden = self.hidden(tokens[:, :-1])
                part = token_loss(
                    self.model, hidden.x, tokens[:, 1:], cfg.z_loss, smoothing=cfg.label_smoothing
                )
            total = part.total
            for extra in hidden.outputs.losses.values():
                total = total + extra
            if i == len(parts) - 1:
                self.gradients.start()
            torch.autograd.backward(total / len(parts))
            loss += part.nats / len(parts)
            z += part.z / len(parts)
        return loss, z, torch.stack(kurtosis).mean(0) if kurtosis else None

    def reduce(self) -> Tensor:
        """Wait for the mean gradients and clip them; their norm before, a scalar."""
        self.gradients.finish()
        # Visits that have not joined yet leave no gradient, and no rule touches their weights.
        learning = [w.tensor for w in weights(self.model) if w.tensor.grad is not None]
        grads = [t.grad for t in learning if t.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if self.cfg.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(learning, self.cfg.clip, norm)
        return norm

    def update(self) -> None:
        """Move the weights by their rules, and the average after them."""
        at, steps = self.schedule_progress, self.step + 0.5
        self.optimizers.step(schedule.rate(self.cfg.schedule, at, steps), at, steps)
        self.average.update(self.fraction)

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

    def averaged_weights(self) -> dict[str, NDArray[np.float32]]:
        """The weights to use, as named arrays of float32."""
        return {n: t.cpu().numpy().copy() for n, t in self.average.weights().items()}

    def restore(
        self, step: int, used: Mapping[str, NDArray[Any]], state: Mapping[str, NDArray[Any]]
    ) -> None:
        """Go back to where the named arrays of the weights ``used`` and of ``state`` were taken.

        Raises:
            CheckpointError: if something is missing, or of another shape or type.
        """
        what = "the state of the run"
        own = self.averaged_weights()
        same_kind("the checkpoint", used, own)
        same_kind(what, state, {f"raw|{name}": array for name, array in own.items()})
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
        self.blocks = int(state["blocks"]) if "blocks" in state else step * self.cfg.batch
        if "validations" in state:
            self.validations.restore(state["validations"])

    def keep_optimizer(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over what the optimizer of another run had come to, named arrays of its state.

        Raises:
            CheckpointError: if there is none, or it is of other rules or weights.
        """
        others = ("raw|", "ledger|", "source ")
        kept = {n: a for n, a in state.items() if "|" in n and not n.startswith(others)}
        if not kept:
            raise CheckpointError(
                "the checkpoint to begin with holds no optimizer state; begin with a fresh one"
            )
        self.optimizers.restore({n: torch.from_numpy(np.array(a)) for n, a in kept.items()})
        if odd := sorted(kept.keys() ^ self.optimizers.state().keys()):
            raise CheckpointError(
                f"the optimizer of the checkpoint to begin with is of other rules or weights: "
                f"{len(odd)} arrays differ, the first is {odd[0]!r}; begin with a fresh optimizer, "
                "or take the rules of that run"
            )

    def start_from(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Begin with the weights in these named arrays; nothing else is taken over.

        Raises:
            CheckpointError: if names or shapes are not the model's.
        """
        load_weights(self.model, arrays)
        self.average = Averaged(self.model, self.cfg.average)


def sequences(cfg: TrainSpec, first: int = 0) -> int | None:
    """How many sequences a run takes from step ``first`` on; None if its length is in seconds."""
    if not isinstance(cfg.length, Steps):
        return None
    horizon = cfg.horizon or cfg.length.count
    at = ((step + 0.5) / horizon for step in range(first, cfg.length.count))
    return cfg.batch * sum(schedule.batch(cfg.schedule, progress) for progress in at)


def compile_model(
    trainer: Trainer, batch: NDArray[np.int64], notice: Callable[[str], None]
) -> None:
    """Compile the forward pass where the spec asks for it, or say why it stays eager.

    The probe is a forward and backward pass over ``batch`` (sequences, context + 1), because
    compilers fail at the first call.
    """
    choice, cuda = trainer.cfg.compile, trainer.mesh.device.type == "cuda"
    if choice == "graphs" and not cuda:
        raise TrainError(
            "train.compile=graphs records CUDA graphs, and this run is not on CUDA; set "
            "train.compile=auto"
        )
    if choice == "off" or (choice == "auto" and not cuda):
        return
    if trainer.cfg.loops is not None:  # every number of loops is one more graph
        numbers = trainer.cfg.loops.most - trainer.cfg.loops.least + 1
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 8 + numbers)
    if trainer.spec.growth is not None:  # and so is every width of windows
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 8 + trainer.spec.growth.widths)
    load_backends(trainer.mesh.device.type)
    mode = "reduce-overhead" if choice == "graphs" else None
    compiled = torch.compile(trainer.model.hidden, mode=mode)
    tokens = torch.from_numpy(batch[trainer.rows[0]]).to(trainer.mesh.device)
    try:
        torch.autograd.backward(compiled(tokens[:, :-1]).x.sum())
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        if choice != "auto":
            reason = str(error).strip().splitlines()[0]
            raise TrainError(
                f"torch.compile does not work here: {reason}; set train.compile=off"
            ) from error
        notice("torch.compile does not work here (is there a C++ compiler?); running eagerly")
        return
    trainer.hidden = compiled
