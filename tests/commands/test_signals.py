"""Signals end any command within seconds, and closed streams are no errors of ours."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import processes

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and streams of POSIX")
SEGPT = [sys.executable, "-m", "segpt"]
PREPARE = ("data", "prepare", "train.jsonl", "--validation", "held.jsonl", "--tokenizer", "bytes")


NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

# Processes under `nohup` do not hear of a closed terminal.
HEARS = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"

# The command line with a computation in C that lasts for minutes where weights are drawn.
HANGS = """
import hashlib, sys
import segpt.train.trainer as trainer
import segpt.commands._signals as signals
from segpt.__main__ import main
def hang(*_):
    print("begun", file=sys.stderr, flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
signals.PATIENCE, trainer.initialise = 1.0, hang
main()
"""
# The command line with a text that never ends.
ENDLESS = """
import itertools, sys
import segpt.data.text as text
from segpt.values import Text
from segpt.__main__ import main
def forever():
    for number in itertools.count():
        if number == 50:
            print("begun", file=sys.stderr, flush=True)
        yield b"%d " % number * 20
text.read_text = lambda paths, **_: Text("endless", forever)
main()
"""


def ended(place: Path, code: str, args: tuple[str, ...], number: signal.Signals) -> Any:
    """Exit code, errors and seconds of a command that gets a signal once it has begun."""
    with processes.Popen(
        ["-c", HEARS + code, *args],
        cwd=place,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            while (line := process.stderr.readline()).strip() != "begun":
                assert line, process.wait()
            time.sleep(0.5)  # until what was announced is under way
            sent = time.monotonic()
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
            return process.returncode, errors, time.monotonic() - sent
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_ends_a_run_that_hangs_before_its_first_step(
    fresh: Path, run: Callable[..., Any], number: signal.Signals
) -> None:
    assert run(fresh, *PREPARE).code == 0
    code, errors, seconds = ended(fresh, HANGS, ("train", "--recipe", "tiny.yaml"), number)
    assert code == 128 + number
    assert seconds < 8  # of which one is the patience that it has here
    assert importlib.import_module("segpt.commands._signals").PATIENCE < 15
    assert f"ended by {number.name}" in errors
    assert "Traceback" not in errors
    assert run(fresh, "train", "--recipe", "tiny.yaml").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_ends_a_preparation_and_names_the_command(
    fresh: Path, number: signal.Signals
) -> None:
    (fresh / "my text.txt").write_text("a text")
    args = ("data", "prepare", "my text.txt", "--tokenizer", "bytes", "--out", "data")
    code, errors, seconds = ended(fresh, ENDLESS, args, number)
    assert code == 128 + number
    assert seconds < 15
    assert "segpt data prepare 'my text.txt' --tokenizer bytes --out data" in errors
    assert "Traceback" not in errors
    assert not (fresh / "data").exists()
    assert not (fresh / "runs").exists()


def test_a_closed_terminal_is_ignored_where_the_caller_says_so(fresh: Path) -> None:
    command = ["sh", "-c", 'trap "" HUP; kill -HUP $$; exec "$@"', "sh", *SEGPT, "--version"]
    done = subprocess.run(command, cwd=fresh, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["--help"], ["leaderboard", "show", "--json"], ["inspect", "x"]])
@pytest.mark.parametrize("to", ["> /dev/full", ">&-", "2>&-", ">&- 2>&- <&-", "| true"])
def test_streams_that_cannot_be_written_to_are_no_traceback(
    fresh: Path, words: list[str], to: str
) -> None:
    board = fresh / "leaderboard"
    board.mkdir()
    (board / "tracks.toml").write_text("tracks = []\n")
    command = ["sh", "-c", f'"$@" {to}', "sh", *SEGPT, *words]
    done = subprocess.run(command, cwd=fresh, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1, 2)
    assert len(done.stderr.splitlines()) <= 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.slow
def test_a_result_is_not_written_into_a_file_in_the_place_of_a_closed_stream(fresh: Path) -> None:
    """The first file to be opened gets the number of the stream that is missing."""
    command = ["sh", "-c", '"$@" >&- 2>&-', "sh", *SEGPT, *PREPARE, "--out", "data"]
    assert subprocess.run(command, cwd=fresh, check=False).returncode in (0, 2)
    check = [*SEGPT, "data", "check", "data/train", "data/validation"]
    assert subprocess.run(check, cwd=fresh, check=False).returncode == 0


DYNAMIC = """
import ctypes, pathlib, sys
from segpt.__main__ import main
sys.argv = ["segpt", "--version"]
try:
    main()
except SystemExit:
    pass
import torch
found = [*pathlib.Path(torch.__file__).parent.glob("lib/libgomp*")]
print(ctypes.CDLL(str(found[0])).omp_get_dynamic() if found else "none")
"""


@pytest.mark.slow
def test_openmp_starts_all_threads_that_are_waited_for(fresh: Path) -> None:
    """Where it does not, drawing weights hangs on a busy machine."""
    environment = os.environ | {"OMP_DYNAMIC": "true", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", DYNAMIC],
        cwd=fresh,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    answer = done.stdout.splitlines()[-1]
    if answer == "none":
        pytest.skip("torch comes without GNU's OpenMP")
    assert answer == "0"
