"""The command line under torchrun: two processes, one result."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow


def torchrun(place: Path, *args: str) -> Any:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "segpt", *args, "--json"),
        ],
        cwd=place,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 1, done.stdout  # only the leading process speaks
    return json.loads(lines[0])


def test_two_processes_train_and_score_like_one(fresh: Path, run: Callable[..., Any]) -> None:
    # evaluating inside `if master` hangs, or reports an eighth of the data
    done = run(
        fresh,
        "data",
        "prepare",
        "train.jsonl",
        "--validation",
        "held.jsonl",
        "--tokenizer",
        "bytes",
    )
    assert done.code == 0, done.stderr
    alone = run(fresh, "train", "--recipe", "tiny.yaml", "--out", "one", "--json").json
    both = torchrun(fresh, "train", "--recipe", "tiny.yaml", "--out", "two")
    assert both["steps"] == alone["steps"]
    assert both["loss"] == pytest.approx(alone["loss"], abs=1e-3)
    one, two = (
        load_file(Path(fresh / result["checkpoint"]) / "weights.safetensors")
        for result in (alone, both)
    )
    for name, value in one.items():
        assert np.allclose(value, two[name], atol=2e-3), name
    for policy in ((), ("--ttt",)):
        single = run(fresh, "score", "two", "held.jsonl", *policy, "--json").json
        double = torchrun(fresh, "score", "two", "held.jsonl", *policy)
        assert double["bpb"] == pytest.approx(single["bpb"], abs=1e-6)
        assert double["tokens"] == single["tokens"]


def test_two_processes_read_what_one_reads(fresh: Path, run: Callable[..., Any]) -> None:
    settings = (
        *("--set", "train.schedule.ramp={milestones: [0.4, 0.8]}"),
        *("--set", "train.accumulation=2", "--set", "train.order=sequential", "--steps", "12"),
    )
    texts = ("train.jsonl", "--validation", "held.jsonl", "--tokenizer", "bytes")
    assert run(fresh, "data", "prepare", *texts).code == 0
    args = ("train", "--recipe", "tiny.yaml", *settings)
    alone = run(fresh, *args, "--out", "one", "--json").json
    both = torchrun(fresh, *args, "--out", "two")
    assert both["read"] == alone["read"]
    assert both["tokens"] == alone["tokens"] == 32 * alone["read"]["blocks"]
    assert both["read"]["blocks"] > 12 * 8
    assert both["loss"] == pytest.approx(alone["loss"], abs=2e-3)
