"""Run by test_strangers.py in two processes that may differ, fail or vanish."""

import json
import os
import signal
import sys

import torch

from segpt.errors import SegptError
from segpt.train.mesh import joined


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
                sys.stdout.write("null\n")
                sys.stdout.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            mesh.agree(task["facts"])
            mesh.mean_value(1.0)
    except SegptError as error:
        said = str(error)
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
