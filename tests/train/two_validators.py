"""Run by test_validations.py in two processes whose clocks and validations disagree."""

import json
import sys
import time
from typing import Any

import numpy as np
import torch

from segpt.config.base import decode
from segpt.config.model import ModelSpec
from segpt.config.train import TrainSpec
from segpt.train.loop import StepMetrics
from segpt.train.mesh import join, leave
from segpt.train.trainer import Trainer
from tests.train.running import train


def main() -> None:
    """Train what the JSON on the command line says, and print what was reported."""
    torch.set_num_threads(1)
    task = json.loads(sys.argv[1])
    spec, how = decode(ModelSpec, task["spec"]), decode(TrainSpec, task["how"])
    mesh = join("cpu")
    run = Trainer(spec, how, mesh)
    reports: list[StepMetrics] = []

    def batches(step: int) -> Any:
        time.sleep(task["skew"] * (mesh.rank + 1))
        rows = np.random.default_rng(step).integers(spec.vocab, size=(run.size, spec.context + 1))
        return rows.astype(np.int64)

    def validate(_: object) -> tuple[float, float]:
        share = 3.0 - 0.1 * run.step
        return (share, 2.0) if mesh.rank else (share - 0.2, 1.0)

    train(
        run,
        batches,
        validate=validate,
        report=reports.append,
        # what only one process knows may not decide: this is the mean of both
        finish=lambda _, nats: nats is not None and nats <= task["target"],
    )
    result = {
        "step": run.step,
        "blocks": run.blocks,
        "rates": [report.rate for report in reports],
        "tokens": [report.tokens for report in reports],
        "slopes": [report.validation_slope for report in reports],
        "losses": [report.validation_loss for report in reports],
        "best": [run.validations.best_step, run.validations.best_bpb],
    }
    sys.stdout.write(json.dumps(result) + "\n")
    leave()


if __name__ == "__main__":
    main()
