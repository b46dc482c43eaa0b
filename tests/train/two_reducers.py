"""Run by test_reducer.py in two processes: trains models, and prints what went on as JSON."""

import json
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from segpt.config.base import decode
from segpt.config.model import ModelSpec
from segpt.config.train import TrainSpec
from segpt.model.build import build
from segpt.model.params import weights
from segpt.train import reducer
from segpt.train.mesh import Mesh, join, leave
from segpt.train.optim import muon
from segpt.train.reducer import GradientReducer, backward_order
from segpt.train.trainer import Trainer
from segpt.values import arrays_digest
from tests.train.running import stream, train


class Watched:
    """What happens in a step.

    Attributes:
        events: ``(`` and ``)`` of backward passes, ``s`` and ``g`` of sums and gathers that begin.
        matrices: for each step, the squared norms of the matrices that are orthogonalised.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.events = ""
        self.matrices: list[list[float]] = []
        backward, orthogonalise = torch.autograd.backward, muon.orthogonalise
        begin_sum, begin_gather = Mesh.begin_sum, Mesh.begin_gather

        def watched_backward(*args: Any, **options: Any) -> None:
            self.events += "("
            backward(*args, **options)
            self.events += ")"

        def watched_sum(mesh: Mesh, flat: Tensor) -> Any:
            self.events += "s"
            return begin_sum(mesh, flat)

        def watched_gather(mesh: Mesh, own: Tensor) -> Any:
            self.events += "g"
            return begin_gather(mesh, own)

        def watched_orthogonalise(rule: Any, update: Tensor, **options: Any) -> Tensor:
            self.matrices[-1] += update.square().sum((1, 2)).tolist()
            return orthogonalise(rule, update, **options)

        patch.setattr(torch.autograd, "backward", watched_backward)
        patch.setattr(Mesh, "begin_sum", watched_sum)
        patch.setattr(Mesh, "begin_gather", watched_gather)
        patch.setattr(muon, "orthogonalise", watched_orthogonalise)


def run(task: dict[str, Any], mesh: Mesh, watched: Watched) -> dict[str, Any]:
    """Train a model, and say how it went."""
    spec, how = decode(ModelSpec, task["spec"]), decode(TrainSpec, task["how"])
    trainer = Trainer(spec, how, mesh)
    watched.matrices.clear()
    steps: list[str] = []
    losses: list[float] = []

    def batches(step: int) -> Any:
        watched.matrices.append([])
        watched.events = ""
        return stream(spec.vocab, how.batch, spec.context)(step)

    def report(metrics: Any) -> None:
        losses.append(metrics.loss)
        steps.append(watched.events)

    train(trainer, batches, report=report)
    state = {n: v for n, v in trainer.state().items() if n != "elapsed"}
    return {
        "losses": losses,
        "steps": steps,
        "matrices": list(watched.matrices),
        "digest": arrays_digest(state),
        "names": sorted(state),
        "hooks": sum(
            len(w.tensor._post_accumulate_grad_hooks or ()) for w in weights(trainer.model)
        ),
    }


def unequal(task: dict[str, Any], mesh: Mesh) -> list[float | None]:
    """The gradients of four weights after a step in which the processes have not the same ones."""
    model = build(decode(ModelSpec, task["spec"]))
    gradients = GradientReducer(model, mesh)
    four = backward_order(model)[::5][:4]
    gradients.start()
    for ranks, weight in zip(({0, 1}, {0}, {1}, set()), four, strict=True):
        if mesh.rank in ranks:
            weight.grad = torch.full_like(weight, 1.0 + mesh.rank)
    gradients.finish()
    return [None if weight.grad is None else float(weight.grad.mean()) for weight in four]


def main() -> None:
    """Train what the JSON on the command line says, with buckets of so many bytes."""
    torch.set_num_threads(1)
    tasks = json.loads(sys.argv[1])
    mesh = join("cpu")
    with pytest.MonkeyPatch.context() as patch:
        watched = Watched(patch)
        patch.setattr(reducer, "BYTES", tasks["bytes"])
        results = [run(task, mesh, watched) for task in tasks["runs"]]
        absent = unequal(tasks["runs"][0], mesh)
    sys.stdout.write(json.dumps(absent) + "\n" + json.dumps(results) + "\n")
    leave()


if __name__ == "__main__":
    main()
