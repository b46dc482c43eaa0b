"""The command line under torchrun: two processes, one result."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import load_file

from tests import processes

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


def ended(
    place: Path, *commands: tuple[str, ...], **environment: str
) -> list[tuple[int, str, str]]:
    """The exit code, output and errors of a run's processes, each with a command of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": f"{len(commands)}", "MASTER_ADDR": "127.0.0.1"}
    world |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"} | environment
    started = [
        processes.Popen(
            ["-m", "segpt", *command],
            cwd=place,
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, command in enumerate(commands)
    ]
    try:
        told = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [(each.returncode, *said) for each, said in zip(started, told, strict=True)]


def together(place: Path, *args: str) -> Any:
    """What :func:`torchrun` finds, of two processes that are started as it starts them."""
    command = (*args, "--json")
    leading, other = ended(place, command, command, TORCHELASTIC_RUN_ID="none")
    assert leading[0] == other[0] == 0, (leading, other)
    assert other[1] == ""  # only the leading process speaks
    return json.loads(leading[1])


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
        double = together(fresh, "score", "two", "held.jsonl", *policy)
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
    both = together(fresh, *args, "--out", "two")
    assert both["read"] == alone["read"]
    assert both["tokens"] == alone["tokens"] == 32 * alone["read"]["blocks"]
    assert both["read"]["blocks"] > 12 * 8
    assert both["loss"] == pytest.approx(alone["loss"], abs=2e-3)


@pytest.mark.parametrize("line", ["quantize run", "demo", "score run --core arc_easy", "runs"])
def test_work_that_cannot_be_shared_is_refused_once(
    monkeypatch: pytest.MonkeyPatch, segpt: Callable[..., Result], line: str
) -> None:
    # each process quantized, and the last one to finish was what stayed
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in (("0", f"segpt {line.split()[0]}"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        result = segpt(*line.split())
        assert result.exit_code == 2
        assert said in result.stderr
        assert ("start it without torchrun" in result.stderr) == (rank == "0")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")  # a scheduler sets the rest for all of a job
    assert "torchrun" not in segpt("runs").stderr


def strangers(place: Path, *commands: tuple[str, ...]) -> list[Any]:
    """Processes of one run that are started with commands of their own, all of which must end."""
    told = ended(place, *commands)
    lines = [[row for row in err.splitlines() if row.startswith("segpt: ")] for *_, err in told]
    assert [len(each) for each in lines] == [1] * len(commands), told
    assert [code for code, *_ in told] == [2] * len(commands)
    assert not any("Traceback" in err for *_, err in told)
    return [each[0] for each in lines]


def test_processes_that_were_started_unlike_stop_at_once(
    fresh: Path, run: Callable[..., Any]
) -> None:
    texts = ("train.jsonl", "--validation", "held.jsonl", "--tokenizer", "bytes")
    assert run(fresh, "data", "prepare", *texts, "--out", "data").code == 0
    lines = (fresh / "train.jsonl").read_text().splitlines(keepends=True)
    (fresh / "fewer.jsonl").write_text("".join(lines[:-1]))
    texts = ("fewer.jsonl", "--validation", "held.jsonl", "--tokenizer", "bytes")
    assert run(fresh, "data", "prepare", *texts, "--out", "fewer").code == 0
    train = ("train", "--recipe", "tiny.yaml", "--device", "cpu", "--out", "run")
    on = ("--data", "data")
    seeds = strangers(fresh, (*train, *on, "--seed", "1"), (*train, *on, "--seed", "2"))
    assert "recipe.train.seed is 1 in process 0 and 2 in process 1" in seeds[0]
    data = strangers(fresh, (*train, *on), (*train, "--data", "fewer"))
    assert "data.tokens is " in data[0]
    resumed = strangers(fresh, (*train, *on), (*train, *on, "--resume"))
    assert "--resume is false in process 0 and true in process 1" in resumed[0]
    assert not (fresh / "run").exists()
