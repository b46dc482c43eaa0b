"""How a process of segpt starts and ends."""

import subprocess
import sys

import pytest

_COUNT = """
import atexit, gc
rounds = []
gc.callbacks.append(lambda phase, _: rounds.append(phase) if phase == "stop" else None)
atexit.register(lambda: print(len(rounds), gc.get_freeze_count() > 100_000))
from segpt.__main__ import collect_rarely
collect_rarely()
import torch
"""


@pytest.mark.slow
def test_the_garbage_collector_leaves_an_import_of_torch_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _COUNT], capture_output=True, text=True, check=True
    )
    rounds, frozen = done.stdout.split()
    assert int(rounds) < 30  # about 370 with Python's own thresholds
    assert frozen == "True"
