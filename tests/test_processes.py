"""A process that was forked does what one that was started anew does."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import processes
from tests.commands.conftest import RECIPE, documents

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux")
SMALL = processes.ROOT / "artifacts" / "demo256-1.segpt"
PREPARE = ("data", "prepare", "train.jsonl", "--validation", "held.jsonl", "--tokenizer", "bytes")
TRAIN = ("train", "--recipe", "tiny.yaml", "--steps", "2", "--json")
Done = subprocess.CompletedProcess[bytes]


def anew(words: list[str], **options: Any) -> Done:
    return subprocess.run([sys.executable, *words], check=False, **options)


def workplace(place: Path) -> Path:
    place.mkdir()
    (place / "tiny.yaml").write_text(RECIPE)
    (place / "train.jsonl").write_text(documents(20))
    (place / "held.jsonl").write_text(documents(4, start=1000))
    (place / "script.py").write_text("import sys\nprint(__name__, __file__, sys.argv, sys.path[0])")
    for path in place.iterdir():  # a prepared text knows the times of its files
        os.utime(path, (1e9, 1e9))
    return place


def in_both(words: list[str], place: Path, **options: Any) -> tuple[Done, Done]:
    """What becomes of the words in a new process and in a forked one, in directories alike."""
    found = []
    for start in (anew, processes.run):
        here = place / "here"  # of one name, as outputs may show it
        if not here.exists():
            workplace(here)
        found.append(start(words, cwd=here, capture_output=True, **options))
        here.rename(place / start.__name__)
    return found[0], found[1]


def files(place: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--version",),
        ("recipes", "show", "demo", "--json"),
        ("inspect", str(SMALL), "--json"),
        ("inspect", str(SMALL), "--budget", "1"),
        ("score", "nowhere"),
        ("no-such-command",),
        (),
        PREPARE,
    ],
)
def test_commands_do_the_same(words: tuple[str, ...], tmp_path: Path) -> None:
    environment = os.environ | {"CI": "1", "COLUMNS": "90", "PYTHONPATH": str(tmp_path)}
    new, forked = in_both(["-m", "segpt", *words], tmp_path, env=environment)
    assert (forked.returncode, forked.stdout, forked.stderr) == (
        new.returncode,
        new.stdout,
        new.stderr,
    )
    assert files(tmp_path / "run") == files(tmp_path / "anew")


@pytest.mark.slow
def test_training_finds_the_same_weights(tmp_path: Path) -> None:
    both = (
        "from segpt.__main__ import load_commands\n"
        f"for words in {PREPARE}, {TRAIN}:\n"
        "    load_commands().main(words, standalone_mode=False)\n"
    )
    new, forked = in_both(["-c", both], tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert new.returncode == forked.returncode == 0, new.stderr + forked.stderr
    one, other = (
        [path.read_bytes() for path in sorted((tmp_path / name).rglob("weights.safetensors"))]
        for name in ("anew", "run")
    )
    assert one == other
    assert len(one) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import sys; print(sys.argv, __name__, sys.path[0], 'sys' in globals())",
        "import sys; print(sys.stdin.read(), file=sys.stderr); sys.exit(3)",
        "import sys; sys.exit('one line')",
        "import sys; sys.exit(259)",
        "raise SystemExit",
        "import os; print(os.getcwd(), os.environ['ASKED'], os.environ.get('HOME')); os._exit(9)",
        "import atexit; atexit.register(print, 'at the end'); print('first', end=' ')",
        "import threading; threading.Timer(0.1, print, ['a thread']).start()",
        "import os; os.kill(os.getpid(), 9)",
        "import os; os.kill(os.getpid(), 15)",
        "import os, signal; print([signal.getsignal(n) for n in (1, 2, 13, 15, 17)])",
        "import os; print(os.getpgid(0) == os.getpgid(os.getppid()), sorted(os.listdir('.')))",
        "import resource as r; print([r.getrlimit(k) for k in (r.RLIMIT_FSIZE, r.RLIMIT_AS)])",
        "import os; print(os.listdir('/proc/self/fd'))",
    ],
)
def test_ends_and_surroundings_are_the_same(code: str, tmp_path: Path) -> None:
    environment = os.environ | {"ASKED": "yes"}
    new, forked = in_both(["-c", code, "a", "-b"], tmp_path, env=environment, input=b"some\ntext")
    assert (forked.returncode, forked.stdout, forked.stderr) == (
        new.returncode,
        new.stdout,
        new.stderr,
    )


@pytest.mark.parametrize("code", ["1 / 0", "raise KeyboardInterrupt"])
def test_errors_end_the_same_but_for_the_place(code: str, tmp_path: Path) -> None:
    new, forked = in_both(["-c", code], tmp_path)
    assert forked.returncode == new.returncode
    assert forked.stderr.splitlines()[-1] == new.stderr.splitlines()[-1]


def test_a_script_is_run_where_it_lies(tmp_path: Path) -> None:
    new, forked = in_both(["script.py", "a"], tmp_path)
    assert new.returncode == forked.returncode == 0
    assert forked.stdout == new.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_what_cannot_be_written_at_the_end_is_an_error() -> None:
    with Path("/dev/full").open("wb") as full:
        codes = [
            start(["-c", "print(1)"], stdout=full, stderr=subprocess.DEVNULL).returncode
            for start in (anew, processes.run)
        ]
    assert codes[0] == codes[1] != 0  # 120, or 1 where streams have no buffer


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_it(number: signal.Signals) -> None:
    code = "import time; print('begun', flush=True); time.sleep(60)"
    process = processes.Popen(
        ["-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    assert os.getpgid(process.pid) == process.pid
    assert process.poll() is None
    os.killpg(process.pid, number)
    process.communicate(timeout=10)
    assert process.returncode == -number


def test_it_is_a_child_that_is_waited_for_and_leaves_nothing() -> None:
    process = processes.Popen(["-c", "import os; os._exit(5)"])
    assert os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1]) == 5
    assert process.wait() == 0  # as of a process that somebody else has waited for
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


@pytest.mark.slow
def test_an_environment_that_is_read_when_libraries_are_loaded_is_obeyed() -> None:
    code = "import torch; print(torch.get_num_threads())"
    for number in ("1", "2"):
        done = processes.run(
            ["-c", code], env=os.environ | {"OMP_NUM_THREADS": number}, capture_output=True
        )
        assert done.stdout.decode().strip() == number


@pytest.mark.parametrize(
    "options", [{"preexec_fn": os.getpid}, {"shell": True}, {"pass_fds": (2,)}], ids=str
)
def test_what_a_fork_cannot_do_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="started anew"):
        processes.run(["-c", ""], **options)
