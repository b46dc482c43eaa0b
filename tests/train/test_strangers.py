"""Processes that were not started alike, fail or are lost: all of them end, and say why."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from segpt.config.base import encode
from segpt.config.model import ModelSpec
from segpt.config.train import TrainSpec
from tests.processes import ROOT, Popen

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("two_strangers.py")


def both(*tasks: dict[str, Any]) -> tuple[list[Any], list[int]]:
    """What two processes said, and their exit codes; neither may take a minute."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    begun = time.monotonic()
    processes = [
        Popen(
            [str(SCRIPT), json.dumps(tasks)],
            env=os.environ | world | {"PYTHONPATH": str(ROOT), "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [json.loads(process.communicate(timeout=150)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert time.monotonic() - begun < 150
    return said, [process.returncode for process in processes]


def test_those_that_were_told_the_same_go_on() -> None:
    facts = {"recipe": {"train": {"seed": 1}}, "data": None}
    said, codes = both({"facts": facts}, {"facts": facts})
    assert said == ["", ""]
    assert codes == [0, 0]


@pytest.mark.parametrize(
    ("one", "two", "words"),
    [
        (
            {"recipe": {"train": {"seed": 1, "rates": [1, 2]}}},
            {"recipe": {"train": {"seed": 2, "rates": [1, 2]}}},
            ("recipe.train.seed is 1 in process 0 and 2 in process 1",),
        ),
        (
            {"data": {"tokens": 100, "digest": "aa"}},
            {"data": {"tokens": 99, "digest": "bb"}},
            ("data.tokens is 100 in", "data.digest is aa in process 0 and bb in process 1"),
        ),
        ({"--resume": True}, {"--resume": False}, ("--resume is true in process 0 and false",)),
        ({"a": 1}, {"a": 1, "b": "x" * 5000}, ("b is nothing in process 0",)),
    ],
)
def test_what_differs_is_named(one: Any, two: Any, words: tuple[str, ...]) -> None:
    said, codes = both({"facts": one}, {"facts": two})
    for word in ("the processes were not started alike", *words):
        assert word in said[0]
    assert "process 1 stops" in said[1]
    assert codes == [0, 0]


def test_a_failure_of_one_is_told_by_it_and_known_to_the_other() -> None:
    said, _ = both({"facts": {}}, {"facts": {}, "fails": "no such text"})
    assert said == ["another process could not go on; see its message", "no such text"]


def test_a_lost_process_does_not_keep_the_other_waiting() -> None:
    said, codes = both({"facts": {}}, {"facts": {}, "vanishes": True})
    assert "another process of this run has ended" in said[0]
    assert codes == [0, -signal.SIGKILL]


def test_a_process_that_is_lost_in_backward_ends_the_other(spec: ModelSpec, how: TrainSpec) -> None:
    task = {"facts": {}, "trains": True, "spec": encode(spec), "how": encode(how)}
    said, codes = both(task, task | {"lost": 2})
    assert "another process of this run has ended" in said[0]
    assert codes == [0, -signal.SIGKILL]
