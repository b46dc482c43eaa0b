"""kill -9, SIGTERM and --resume on the real command line."""

import hashlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import processes

pytestmark = pytest.mark.slow
STEPS, FEWER = 160, 100  # of a run that is killed several times, and once
ARGS = ("--recipe", "tiny.yaml", "--out", "run", "--set", "train.save_every=7")


def start(place: Path, *args: str, steps: int = STEPS) -> "subprocess.Popen[str]":
    return processes.Popen(
        ["-m", "segpt", "train", *ARGS, "--steps", str(steps), *args],
        cwd=place,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(place: Path, *args: str, steps: int = STEPS) -> str:
    process = start(place, *args, steps=steps)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return parameters(place, steps)


def parameters(place: Path, steps: int) -> str:
    last = max((place / "run").glob("step-*"))
    assert last.name == f"step-{steps:08d}"
    return hashlib.sha256((last / "weights.safetensors").read_bytes()).hexdigest()


def prepared(place: Path, run: Callable[..., Any]) -> None:
    done = run(
        place,
        "data",
        "prepare",
        "train.jsonl",
        "--validation",
        "held.jsonl",
        "--tokenizer",
        "bytes",
    )
    assert done.code == 0, done.stderr


def newest(place: Path) -> str:
    return max((p.name for p in (place / "run").glob("step-*")), default="")


def test_kills_change_nothing(fresh: Path, run: Callable[..., Any]) -> None:
    # a crash at 599 s loses everything
    prepared(fresh, run)
    expected = finish(fresh)
    (fresh / "run").rename(fresh / "uninterrupted")
    draw = random.Random(5)
    for _ in range(3):
        before = newest(fresh)
        process = start(fresh, *(["--resume"] if before else []))
        deadline = time.monotonic() + 120
        while newest(fresh) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(draw.uniform(0.0, 0.2))
        assert process.poll() is None, process.communicate()[1]
        process.kill()
        process.communicate()
    assert newest(fresh) != f"step-{STEPS:08d}"
    assert finish(fresh, "--resume") == expected
    lines = (fresh / "run" / "metrics.jsonl").read_text().splitlines()
    logged = [int(line.split('"step": ')[1].split(",")[0]) for line in lines]
    assert logged == sorted(set(logged))
    assert not list((fresh / "run").glob(".*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_exits_as_shells_have_it(
    fresh: Path, run: Callable[..., Any], number: signal.Signals
) -> None:
    prepared(fresh, run)
    process = start(fresh, steps=FEWER)
    deadline = time.monotonic() + 120
    while not newest(fresh) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    began = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == 128 + number, stderr
    assert "is saved" in stderr
    assert "Traceback" not in stderr
    finish(fresh, "--resume", steps=FEWER)


SCORE = ("score", "run", "text.jsonl", "--ttt", "sgd", "--set", "adapt.chunk=16", "--stride", "8")


def interrupted_score(place: Path, number: signal.Signals) -> str:
    """Interrupt a score after its first step, however slow the machine is; what it said."""
    for delay in (0.3, 0.6, 1.2, 2.4, 4.8):
        process = processes.Popen(
            ["-m", "segpt", *SCORE, "--json"],
            cwd=place,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        scoring, deadline = place / "runs" / "scoring", time.monotonic() + 120
        while not scoring.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 128 + number, stderr
        assert not stdout
        if "go on with --resume" in stderr:
            return stderr
        assert "to start again" in stderr
    raise AssertionError("each signal came before the first step")


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.campaign)]
)
def test_a_score_goes_on_where_a_signal_stopped_it(
    fresh: Path, run: Callable[..., Any], number: signal.Signals
) -> None:
    prepared(fresh, run)
    assert run(fresh, "train", *ARGS).code == 0
    rows = (fresh / "held.jsonl").read_text().splitlines()
    text = [row.replace("Document", f"Record {i},") for i in range(2) for row in rows[:4]]
    (fresh / "text.jsonl").write_text("\n".join(text) + "\n")
    stderr = interrupted_score(fresh, number)
    assert "Traceback" not in stderr
    (saved,) = (fresh / "runs" / "scoring").iterdir()
    other = run(fresh, *SCORE, "--resume", "--set", "adapt.rate=0.1")
    assert other.code == 2
    assert "nothing to resume" in other.stderr
    resumed = run(fresh, *SCORE, "--resume", "--json").json
    assert "updates from chunks that had been scored" in resumed["conditions"]["order"]
    for words in (SCORE, ("score", "run"), ("score",)):
        again = run(fresh, *words, "--resume", "--json")
        assert "this score is finished: nothing is left to do" in again.stderr
        assert again.json == resumed
    assert resumed["nats"] == run(fresh, *SCORE, "--json").json["nats"]
    assert not saved.exists()
    again = run(fresh, *SCORE, "--resume")
    assert again.code == 2
    assert "leave out --resume" in again.stderr
