"""Run by test_core.py in two processes: asks CORE tasks, and prints the result as JSON."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from segpt.data.tokenizer import BYTES, load
from segpt.errors import SegptError
from segpt.stages.open_model import from_checkpoint
from segpt.tasks.core_bundle import read_bundle
from segpt.tasks.evaluate_core import choose, evaluate
from segpt.tasks.subject import of_model
from tests.stages.random_models import checkpoint


def main() -> None:
    """Ask the tasks of the command line from one bundle or, by rank, another."""
    torch.set_num_threads(1)
    tasks, *places = sys.argv[1:]
    subject = of_model(from_checkpoint(checkpoint(vocab=BYTES.vocab)), load(BYTES), 1024)
    dist.init_process_group("gloo")
    for place in (places[0], places[dist.get_rank()]):
        try:
            result = evaluate(subject, read_bundle(Path(place)), choose(tasks), max_per_task=11)
            found = [[t.task.label, t.right, t.items, t.cropped, t.moved] for t in result.tasks]
            sys.stdout.write(json.dumps([result.mean, result.processes, found]) + "\n")
        except SegptError as error:
            sys.stdout.write(json.dumps(str(error)) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
