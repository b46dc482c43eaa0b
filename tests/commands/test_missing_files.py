"""What is missing is said at once: no command loads torch first, which takes seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from segpt.__main__ import load_commands

PROGRAM = """
import sys
from segpt.__main__ import main
try:
    main()
finally:
    loaded = {"torch", "numba"} & sys.modules.keys()
    assert not loaded, f"{loaded} loaded"
"""
LINES = [
    "average nowhere",
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


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
def test_a_missing_file_is_refused_before_torch_is_loaded(tmp_path: Path, line: str) -> None:
    for name in ("text.txt", "text.segz"):
        (tmp_path / name).write_text("neither a model nor a message\n" * 9)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *line.split()],
        cwd=tmp_path,
        env=os.environ | {"CI": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, (done.stdout, done.stderr)
    (said,) = [row for row in done.stderr.splitlines() if row.startswith("segpt: ")]
    assert ("nowhere" if "nowhere" in line else "text.txt") in said
    assert "Traceback" not in done.stderr
