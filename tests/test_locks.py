"""Directories that only one process gets, and locks that end with their process."""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from segpt.errors import SegptError
from segpt.locks import claim, is_locked, locked

HOLD = "import sys, time; from segpt.locks import locked; from pathlib import Path\n"
HOLD += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"


@contextlib.contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of ``path`` until it is killed."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_two_that_claim_at_once_get_two_directories(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        claimed = list(pool.map(lambda _: claim(tmp_path / "runs" / "demo"), range(64)))
    assert len(set(claimed)) == 64
    assert all(path.is_dir() for path in claimed)
    assert min(claimed).name == "demo"


def test_a_second_process_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as process:
        named = rf"another segpt \(process {process.pid}\)"
        with pytest.raises(SegptError, match=named), locked(tmp_path / "run"):
            pass
    with locked(tmp_path / "run"):
        pass


@pytest.mark.slow
def test_a_process_that_waits_goes_on_when_the_other_is_killed(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as process:
        started = time.monotonic()
        threading.Timer(0.5, process.kill).start()
        with locked(tmp_path / "run", wait=30):
            assert time.monotonic() - started >= 0.4


def test_nothing_is_left_beside_what_was_locked(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        assert [p.name for p in tmp_path.iterdir()] == [".run.lock"]
    assert not list(tmp_path.iterdir())


def test_many_writers_take_turns(tmp_path: Path) -> None:
    count = tmp_path / "count"
    count.write_text("0")

    def add(_: int) -> None:
        with locked(count, wait=30):
            count.write_text(str(int(count.read_text()) + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(50)))
    assert count.read_text() == "50"


def test_whether_a_lock_is_held_can_be_asked(tmp_path: Path) -> None:
    place = tmp_path / "run"
    assert not is_locked(place)
    with holder(place) as process:
        assert is_locked(place)
        process.kill()
        process.wait()
        assert not is_locked(place)
    with locked(place):
        assert is_locked(place)
    assert not is_locked(place)
