"""What is missing is said at once: no command loads torch first, which takes seconds."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from segpt.__main__ import load_commands

# Runs each line in a fork of a process that has loaded nothing yet.
PROGRAM = """
import contextlib, io, json, os, sys, traceback
from segpt.__main__ import main

def end(line):
    sys.argv = ["segpt", *line.split()]
    try:
        return main()
    except SystemExit as error:
        return error.code
    except BaseException:
        traceback.print_exc()
        return 1

for line in json.load(sys.stdin):
    sys.stdout.flush()
    if os.fork() == 0:
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            code = end(line)
        loaded = sorted({"torch", "numba"} & sys.modules.keys())
        print(json.dumps([line, code, errors.getvalue(), loaded]), flush=True)
        os._exit(0)
    os.wait()
"""
LINES = [
    "average nowhere",
    "chat nowhere",
    "compare nowhere nothing",
    "compress nowhere",
    "compress text.txt --artifact nowhere",
    "compress text.txt --artifact text.txt",
    "data check nowhere nothing",
    "data prepare nowhere",
    "decompress nowhere.segz",
    "decompress text.segz --artifact nowhere",
    "decompress text.segz --artifact text.txt",
    "demo --resume nowhere",
    "eval nowhere --tasks arc",
    "eval text.txt --tasks arc",
    "export gguf nowhere --out x.gguf",
    "export hf nowhere --out x",
    "import gguf nowhere",
    "import hf nowhere",
    "inspect nowhere",
    "inspect text.txt",
    "leaderboard check --dir nowhere",
    "leaderboard render --dir nowhere",
    "leaderboard show --dir nowhere",
    "leaderboard verify --dir nowhere",
    "pack nowhere",
    "quantize nowhere",
    "quantize . --data nowhere",
    "report nowhere",
    "runs nowhere",
    "sample ./nowhere",
    "sample ./text.txt",
    "score nowhere",
    "score text.txt",
    "score text.txt nowhere",
    "serve nowhere",
    "tokenizer compare nowhere nothing",
    "tokenizer convert nowhere --out x.json",
    "tokenizer export nowhere --out x",
    "tokenizer show nowhere",
    "tokenizer train nowhere",
    "train --data nowhere",
    "train --init nowhere",
    "train --recipe nowhere.yaml",
    "train --resume nowhere",
]
WITHOUT_FILES = {"doctor", "recipes"}


def test_every_command_is_tried() -> None:
    commands = {*load_commands().COMMANDS}
    assert {line.split()[0] for line in LINES} | WITHOUT_FILES == commands


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, str, list[str]]]:
    """How each line ended, what it said of errors, and what it had loaded."""
    place = tmp_path_factory.mktemp("place")
    for name in ("text.txt", "text.segz"):
        (place / name).write_text("neither a model nor a message\n" * 9)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=place,
        env=os.environ | {"CI": "1"},
        input=json.dumps(LINES),
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    results = [json.loads(row) for row in done.stdout.splitlines() if row.startswith('["')]
    return {line: (code, errors, loaded) for line, code, errors, loaded in results}


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
def test_a_missing_file_is_refused_before_torch_is_loaded(
    ends: dict[str, tuple[Any, str, list[str]]], line: str
) -> None:
    code, errors, loaded = ends[line]
    assert code == 2, errors
    assert not loaded
    (said,) = [row for row in errors.splitlines() if row.startswith("segpt: ")]
    assert ("nowhere" if "nowhere" in line else "text.txt") in said
    assert "Traceback" not in errors
