"""A Python that has loaded torch and segpt, and forks a process for every command it is sent.

``tests/processes.py`` starts it and speaks to it. A request is a connection: three streams, then
JSON that says what Python is to run, where, and in which environment; the answer is the number of
the process. That process belongs to whoever asked: its parent here ends at once, and the kernel
hands orphans to the nearest process that wants them (``PR_SET_CHILD_SUBREAPER``). So it can be
waited for and killed like any other. The server itself never computes anything: there is one
thread, and nothing that a fork would leave in the middle of its work.
"""

import atexit
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
STARTS_THREADS = {"segpt.tasks.harness"}  # as soon as it is imported, and a fork has but one
ALSO = ("torch._dynamo", "numpy.ma", "brotli", "rich.table", "rich.progress", "rich.console")
HEADER = 4  # bytes, the length of what follows


def load() -> None:
    """Import everything that a command may need, and compute nothing."""
    import numpy as np  # noqa: F401 - its threads, if it has any, end before a fork

    threads = _threads()
    from segpt import __path__ as inside
    from segpt.__main__ import load_commands

    commands = load_commands()
    for name in commands.COMMANDS:
        importlib.import_module(f"segpt.commands.{commands.MODULES.get(name, name)}")
    for module in pkgutil.walk_packages(inside, "segpt."):
        if module.name not in STARTS_THREADS and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ALSO:
        importlib.import_module(name)
    assert _threads() == threads, "importing has started a thread"
    gc.collect()
    gc.freeze()  # or the first collection of every process would copy all pages


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def receive(caller: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What is asked, and the streams that came with it."""
    size, streams, _, _ = socket.recv_fds(caller, HEADER, 3)
    with caller.makefile("rb") as stream:
        asked = json.loads(stream.read(int.from_bytes(size, "little")))
    return asked, list(streams)


def serve(server: socket.socket) -> Callable[[], None]:
    """Answer until whoever started this is gone; in a new process, return what it is to run."""
    while True:
        ready, _, _ = select.select([server, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        caller, _ = server.accept()
        with caller:
            asked, streams = receive(caller)
            reading, writing = os.pipe()
            if (child := os.fork()) == 0:
                if orphan := os.fork():
                    os.write(writing, str(orphan).encode())
                    os._exit(0)
                for number in (reading, writing, caller.detach(), server.detach()):
                    os.close(number)
                become(asked, streams)
                return lambda: run(asked["words"])
            os.waitpid(child, 0)  # from here on the other has a new parent
            os.close(writing)
            caller.sendall(os.read(reading, 20))
            for number in (reading, *streams):
                os.close(number)


def become(asked: dict[str, Any], streams: list[int]) -> None:
    """Take the streams, directory, environment and signals of a process that was started anew."""
    if asked["session"]:
        os.setsid()
    if asked["interrupted"]:  # or SIGINT stays ignored, as whoever asks has it from its own parent
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        old = getattr(sys, f"__{name}__")
        lines = name == "stderr" or (number > 0 and os.isatty(number))
        through = number > 0 and bool(os.environ.get("PYTHONUNBUFFERED"))
        raw = open(  # noqa: SIM115 - to the end
            number, "wb" if number else "rb", 0 if through else -1, closefd=False
        )
        new = io.TextIOWrapper(
            raw, old.encoding, old.errors, line_buffering=lines, write_through=through
        )
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
    os.chdir(asked["place"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    added = [path for path in asked["environment"].get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*added, *(path for path in sys.path if path != str(ROOT))]
    sys.modules["numpy"].random.seed()
    importlib.invalidate_caches()


def run(words: list[str]) -> None:
    """What ``python`` does with these words: ``-m MODULE``, ``-c CODE`` or a script."""
    sys.modules["__main__"] = main = ModuleType("__main__")
    match words:
        case ["-m", module, *arguments]:
            sys.argv = [module, *arguments]
            sys.path.insert(0, str(Path.cwd()))
            for name in (module, f"{module}.__main__"):  # imported, and now to be run
                if not hasattr(sys.modules.get(name), "__path__"):
                    sys.modules.pop(name, None)
            runpy._run_module_as_main(module)  # type: ignore[attr-defined]
        case ["-c", code, *arguments]:
            sys.argv = ["-c", *arguments]
            sys.path.insert(0, "")
            exec(compile(code, "<string>", "exec"), main.__dict__)
        case [script, *arguments] if not script.startswith("-"):
            sys.argv = [script, *arguments]
            sys.path.insert(0, str(Path(script).resolve().parent))
            main.__dict__["__file__"] = str(Path.cwd() / script)
            exec(compile(Path(script).read_bytes(), script, "exec"), main.__dict__)
        case _:
            raise NotImplementedError(f"start a Python of its own for {words}")


def end(command: Callable[[], None]) -> NoReturn:
    """Run it and exit as Python does, but for taking all modules down, which takes a second."""
    code, interrupted = 0, False
    try:
        command()
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
        if isinstance(done.code, str):
            print(done.code, file=sys.stderr)  # noqa: T201 - what Python does
    except BaseException as error:  # noqa: BLE001 - likewise
        sys.excepthook(type(error), error, error.__traceback__)
        code, interrupted = 1, isinstance(error, KeyboardInterrupt)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except OSError as error:
            code = 120
            if stream is sys.stdout:
                name = f"Exception ignored in: {stream!r}\n{type(error).__name__}: {error}"
                print(name, file=sys.stderr)  # noqa: T201
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


if __name__ == "__main__":
    sys.path[:] = [path for path in sys.path if path != str(Path(__file__).parent)]
    sys.path.append(str(ROOT))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with whoever started it
    os.environ["OMP_DYNAMIC"] = "false"  # as the command line has it, before torch is loaded
    load()
    with socket.socket(fileno=int(sys.argv[1])) as listening:
        command = serve(listening)
    end(command)
