"""Other processes: commands that need one of their own, and two that share work.

``python -m segpt`` takes seconds until torch is loaded. :class:`Popen` and :func:`run` are those of
:mod:`subprocess`, but that their words are what stands behind ``python`` on a command line: the
process comes from one that has loaded everything and forks (``warm_server.py``). Its number,
streams, signals and exit code are its own, as those of any other process. Where a test is about how
a process starts (what is imported, what a library reads of the environment when it is loaded), or
needs memory of its own, :mod:`subprocess` itself is right.
"""

import atexit
import ctypes
import functools
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SERVER = Path(__file__).with_name("warm_server.py")
PR_SET_CHILD_SUBREAPER = 36
# What libraries read when they are loaded; each such environment has a server of its own.
READ_WHEN_LOADED = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "TORCH", "PYTHON", "LC_", "LANG")


_ASKING = threading.Lock()


@functools.cache
def _server(loaded: tuple[tuple[str, str], ...]) -> str:
    """The address of a server that was started with these variables of the environment."""
    place = tempfile.TemporaryDirectory(prefix="segpt-")
    address = f"{place.name}/socket"
    others = {k: v for k, v in os.environ.items() if not k.startswith(READ_WHEN_LOADED)}
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        server = subprocess.Popen(
            [sys.executable, str(SERVER), str(listening.fileno())],
            stdin=subprocess.PIPE,
            env=others | dict(loaded),
            pass_fds=[listening.fileno()],
        )

    def end() -> None:
        server.kill()
        server.communicate()
        place.cleanup()

    atexit.register(end)
    return address


def ask(
    words: Sequence[str],
    streams: Sequence[int],
    *,
    place: str,
    environment: Mapping[str, str],
    session: bool = False,
) -> int:
    """Start ``python`` with these words; the number of the process, a child of this one."""
    loaded = (item for item in environment.items() if item[0].startswith(READ_WHEN_LOADED))
    with _ASKING:
        address = _server(tuple(sorted(item for item in loaded if item[0] != "PYTHONPATH")))
    asked = {"words": words, "place": place, "environment": dict(environment), "session": session}
    asked["interrupted"] = signal.getsignal(signal.SIGINT) != signal.SIG_IGN
    data = json.dumps(asked).encode()
    kernel = ctypes.CDLL(None)
    with _ASKING, socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        kernel.prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            socket.send_fds(server, [len(data).to_bytes(4, "little")], streams)
            server.sendall(data)
            answer = server.recv(20)
        finally:
            kernel.prctl(PR_SET_CHILD_SUBREAPER, 0)
    assert answer, "the server that forks has ended; it has said why"
    return int(answer)


class Popen(subprocess.Popen[Any]):
    """``subprocess.Popen([sys.executable, *words])`` without the seconds that loading takes."""

    def __init__(self, words: Sequence[str], **options: Any) -> None:
        super().__init__([sys.executable, *words], **options)

    def _execute_child(self, *values: Any) -> None:
        """Fork instead of executing ``args``; called once, by the constructor."""
        names = list(inspect.signature(_EXECUTE).parameters)[1:]
        asked = dict(zip(names, values, strict=True))
        for name in ("preexec_fn", "pass_fds", "shell", "executable"):
            assert not asked[name], f"{name} is for a process that is started anew"
        pipes = [asked[name] for name in PIPES]
        reading, _, _, out, _, errors = pipes
        environment = os.environ if asked["env"] is None else asked["env"]
        self.pid = ask(
            list(map(str, values[0][1:])),
            [
                inherited if own == -1 else own
                for inherited, own in enumerate((reading, out, errors))
            ],
            place=str(asked["cwd"] or Path.cwd()),
            environment=environment,
            session=asked["start_new_session"],
        )
        self._child_created = True
        _CLOSE(self, *pipes)


_EXECUTE: Any = subprocess.Popen._execute_child  # type: ignore[attr-defined]
_CLOSE: Any = subprocess.Popen._close_pipe_fds  # type: ignore[attr-defined]
PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")


def run(
    words: Sequence[str],
    *,
    input: bytes | str | None = None,
    timeout: float | None = None,
    check: bool = False,
    capture_output: bool = False,
    **options: Any,
) -> "subprocess.CompletedProcess[Any]":
    """``subprocess.run([sys.executable, *words])`` without the seconds that loading takes."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with Popen(words, **options) as process:
        try:
            stdout, stderr = process.communicate(input, timeout=timeout)
        finally:
            process.kill()  # where it has not ended yet
    done = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
    if check:
        done.check_returncode()
    return done


def in_two(script: Path, *arguments: str, last: int = 1) -> list[list[Any]]:
    """The ``last`` lines that each of two processes printed, read as JSON; both must succeed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world |= {"PYTHONPATH": str(ROOT)}
    processes = [
        Popen(
            [str(script), *arguments],
            env=os.environ | world | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        results = []
        for process in processes:
            stdout, stderr = process.communicate(timeout=180)
            assert process.returncode == 0, stderr
            results.append([json.loads(line) for line in stdout.splitlines()[-last:]])
        return results
    finally:
        for process in processes:
            process.kill()
            process.wait()
