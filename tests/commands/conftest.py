"""A tiny recipe and text, and the whole line run once through the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import processes

RECIPE = """
name: tiny
about: a model for tests
tokenizer: {kind: bytes}
model:
  vocab: 257
  width: 32
  context: 32
  depth: 2
  route: "0 (1)*2@0.5"
  layer:
    wiring: parallel
    join: [mix_input]
    mixer: {heads: 2, kv_heads: 1, head_dim: 16, query_key: [norm, {kind: rope, dims: 8}, gain]}
    feed: {hidden: 64}
train:
  length: {kind: steps, count: 30}
  batch: 8
  average: {decay: 0.9}
  save_every: 10
  log_every: 5
  validate_every: 30
  validate_tokens: 1024
quantize: {calibration_tokens: 2048, report_tokens: 1024}
pack: {budget: 100000}
score: {stride: 16}
adapt: {kind: sgd, chunk: 256, rate: 0.01}
"""


class Done(NamedTuple):
    """What a command printed and how it ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.stderr
        return json.loads(self.stdout)


Segpt = Callable[..., Done]


def _run(
    place: Path,
    *args: object,
    timeout: float = 300,
    start: Callable[..., "subprocess.CompletedProcess[str]"] = processes.run,
    **environment: str,
) -> Done:
    """Run ``segpt`` in its own process, in the directory ``place``."""
    done = start(
        ["-m", "segpt", *map(str, args)],
        cwd=place,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CI": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def run() -> Segpt:
    """``run(place, *args)`` runs ``segpt`` in its own process, in the directory ``place``."""
    return _run


def _started_anew(words: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *words], check=False, **options)


@pytest.fixture(scope="session")
def anew() -> Segpt:
    """Like ``run``, with a new Python: for what libraries read when they are loaded."""
    return partial(_run, start=_started_anew)


def documents(count: int, start: int = 0) -> str:
    """Documents about nothing much, no two alike, as JSON lines."""
    rows = []
    for i in range(start, start + count):
        body = " ".join(f"the {w} of {i} is {i * k % 97}." for k, w in enumerate(("sum", "cube")))
        rows.append(json.dumps({"text": f"Document {i}. {body} " * 6}))
    return "\n".join(rows) + "\n"


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a recipe and text."""
    place = tmp_path_factory.mktemp("work")
    (place / "tiny.yaml").write_text(RECIPE)
    (place / "train.jsonl").write_text(documents(80))
    (place / "held.jsonl").write_text(documents(5, start=1000))
    return place


@pytest.fixture(scope="session")
def line(workplace: Path) -> dict[str, Any]:
    """The JSON that each stage of the line printed, run bare one after the other."""
    stages = {
        "data": (
            "data",
            "prepare",
            "train.jsonl",
            "--validation",
            "held.jsonl",
            "--tokenizer",
            "bytes",
        ),
        "train": ("train", "--recipe", "tiny.yaml"),
        "quantize": ("quantize", "--bits", "6"),
        "pack": ("pack",),
        "inspect": ("inspect", "runs/tiny.segpt"),
        "score": ("score",),
        "ttt": ("score", "--ttt", "--out", "ttt.json"),
    }
    return {name: _run(workplace, *args, "--json").json for name, args in stages.items()}


@pytest.fixture
def fresh(workplace: Path, tmp_path: Path) -> Path:
    """An empty directory with the recipe and text, for commands that change things."""
    for name in ("tiny.yaml", "train.jsonl", "held.jsonl"):
        (tmp_path / name).write_text((workplace / name).read_text())
    return tmp_path
