"""Run by test_tally.py in a process of its own: digests of the nats of every way to score."""

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch


def _fixtures() -> ModuleType:
    place = Path(__file__).with_name("conftest.py")
    spec = importlib.util.spec_from_file_location("tally_fixtures", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines() -> list[str]:
    """Score the same stream in every way, and make a line of each."""
    torch.set_num_threads(1)
    fixtures = _fixtures()
    ledger = fixtures.make_ledger(110, (0, 14, 15, 50, 91, 95))
    made = []
    for name, spec in fixtures.COMBINATIONS.items():
        score = fixtures.score_stream(fixtures.make_able(spec), ledger, spec, fixtures.CONTEXT)
        made.append(f"{name} {hashlib.sha256(score.nats.tobytes()).hexdigest()}")
    return made


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines()))
