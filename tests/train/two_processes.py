"""Run by test_distributed.py in two processes: trains, and prints digests as JSON."""

import json
import sys
import time
from typing import Any

import numpy as np
import torch

from segpt.config.base import decode
from segpt.config.model import ModelSpec
from segpt.config.train import TrainSpec
from segpt.errors import InterruptError
from segpt.train.mesh import join, leave
from segpt.train.trainer import Trainer
from segpt.values import arrays_digest
from tests.train.running import stream, train


def main() -> None:
    """Train what the JSON on the command line says."""
    torch.set_num_threads(1)
    task = json.loads(sys.argv[1])
    spec, how = decode(ModelSpec, task["spec"]), decode(TrainSpec, task["how"])
    mesh = join("cpu")
    states: dict[int, Any] = {}

    def batches(step: int) -> Any:
        if task["skew"]:
            time.sleep(task["skew"] * (mesh.rank + 1))  # ranks whose clocks disagree
        return stream(spec.vocab, how.batch, spec.context)(step)

    def digest(run: Trainer) -> str:
        state = {n: v for n, v in run.state().items() if n != "elapsed"}
        return arrays_digest(state) + arrays_digest(run.averaged_weights())

    def save(run: Trainer) -> None:
        states[run.step] = (run.averaged_weights(), run.state())

    whole = Trainer(spec, how, mesh)
    interrupted = False
    try:
        # only one rank is asked to stop; both must
        train(whole, batches, save=save, stop=lambda: mesh.rank == 1 and whole.step == task["stop"])
    except InterruptError:
        interrupted = True
    result: dict[str, Any] = {
        "step": whole.step,
        "digest": digest(whole),
        "interrupted": interrupted,
    }
    result["resumed"] = []
    for step in task["resume"]:
        run = Trainer(spec, how, mesh)
        run.restore(step, *states[step])
        train(run, batches)
        result["resumed"].append(digest(run))
    if mesh.leads:
        np.savez(task["out"], **whole.averaged_weights())  # type: ignore[arg-type]
    sys.stdout.write(json.dumps(result) + "\n")
    leave()


if __name__ == "__main__":
    main()
