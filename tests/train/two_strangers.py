"""Run by test_strangers.py in two processes that may differ, fail or vanish."""

import json
import os
import signal
import sys
from typing import Any

import torch

from segpt.config.base import decode
from segpt.config.model import ModelSpec
from segpt.config.train import TrainSpec
from segpt.errors import SegptError
from segpt.train import reducer
from segpt.train.mesh import Mesh, joined
from segpt.train.trainer import Trainer
from tests.train.running import stream


def vanish(*_: object) -> None:
    """End without a word to the others."""
    sys.stdout.write("null\n")
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def trained(task: dict[str, Any], mesh: Mesh) -> None:
    """Train a few steps; whoever is to be lost in one is so between two of its gradients."""
    reducer.BYTES = 8000
    spec, how = decode(ModelSpec, task["spec"]), decode(TrainSpec, task["how"])
    trainer = Trainer(spec, how, mesh)
    batches = stream(spec.vocab, how.batch, spec.context)
    for step in range(4):
        if step == task.get("lost"):
            first = next(trainer.model.layers.parameters())
            first.register_post_accumulate_grad_hook(vanish)  # type: ignore[no-untyped-call]
        trainer.train_step(batches(step))


def main() -> None:
    """Join, and do what the JSON on the command line says for each process."""
    torch.set_num_threads(1)
    task = json.loads(sys.argv[1])[int(os.environ["RANK"])]
    said = ""
    try:
        with joined("cpu") as mesh:
            with mesh.all_well():
                if task.get("fails"):
                    raise SegptError(task["fails"])
            if task.get("vanishes"):
                vanish()
            mesh.agree(task["facts"])
            mesh.mean_value(1.0)
            if task.get("trains"):
                trained(task, mesh)
    except SegptError as error:
        said = str(error)
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
