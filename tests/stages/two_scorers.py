"""Run by test_score.py in two processes: scores an artifact, and prints what came of it as JSON."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from segpt.config.base import decode
from segpt.config.score import ScoreSpec
from segpt.errors import ScoreError
from segpt.stages.score import score
from segpt.values import Artifact, Text


def main() -> None:
    """Score by each spec of the JSON on the command line, with its limits for the two ranks."""
    torch.set_num_threads(1)
    task = json.loads(sys.argv[1])
    artifact = Artifact(Path(task["artifact"]).read_bytes())
    documents = [bytes.fromhex(document) for document in task["documents"]]
    dist.init_process_group("gloo")
    results: list[Any] = []
    for spec, limits in task["runs"]:
        try:
            found = score(
                artifact,
                Text("documents", lambda: iter(documents)),
                decode(ScoreSpec, spec),
                limit_seconds=limits[dist.get_rank()],
            )
            results.append([found.nats.hex(), found.tokens, found.conditions.environment.processes])
        except ScoreError as error:
            results.append(str(error))
    sys.stdout.write(json.dumps(results) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
