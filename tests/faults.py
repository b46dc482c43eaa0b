"""A fault at every system call of one write; ``test_atomic.py`` runs this as a script.

    python faults.py {file,directory,renames} {crash,twice,errors,limits} PLACE

A script of its own, because it forks, and a test process that has loaded torch should not.
Prints how often each outcome was seen, as JSON.
"""

import errno
import itertools
import json
import os
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from segpt import atomic
from segpt.atomic import new_directory, standing, write_file
from segpt.errors import SegptError

FILES = {"open", "write", "flush", "close", "fsync", "rename", "replace", "unlink"}
CALLS = FILES | {"mkdir", "rmdir", "scandir", "listdir", "_exchange"}
Content = dict[str, bytes]
SIZE = 90_000
OLD, NEW, NEXT = ({"a": bytes([i]) * SIZE, "b/c": bytes([i]) * 17} for i in (1, 2, 3))


class File:
    """One file in a directory of its own; its content is the first of the two."""

    def __init__(self, place: Path) -> None:
        self.path = place / "file.bin"

    def write(self, content: Content) -> None:
        write_file(self.path, content["a"])

    def abandon(self) -> None:
        """Writing a file leaves no way to give up half-way."""

    def holds(self, content: Content) -> bool:
        return self.path.read_bytes() == content["a"]


class Directory:
    """One directory in a directory of its own."""

    def __init__(self, place: Path) -> None:
        self.path = place / "run"

    def write(self, content: Content) -> None:
        with new_directory(self.path, replaces=self.made) as fresh:
            for name, data in content.items():
                (fresh / name).parent.mkdir(exist_ok=True)
                (fresh / name).write_bytes(data)

    def abandon(self) -> None:
        try:
            with new_directory(self.path, replaces=self.made):
                raise LookupError
        except LookupError:
            pass

    def made(self, path: Path) -> bool:
        return {entry.name for entry in path.iterdir()} <= {"a", "b"}

    def holds(self, content: Content) -> bool:
        place = standing(self.path)
        files = [f for f in place.rglob("*") if f.is_file()]
        return content == {f.relative_to(place).as_posix(): f.read_bytes() for f in files}


class Renames(Directory):
    """A directory where the system cannot exchange two names at once."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        atomic._exchange = self._exchange

    def _exchange(self, first: Path, other: Path) -> bool:
        return False


Target = File | Directory
TARGETS: dict[str, Callable[[Path], Target]] = {
    "file": File,
    "directory": Directory,
    "renames": Renames,
}


def name_of(frame: FrameType, event: str, function: object) -> str:
    """What is called, if anything: a system call, or what exchanges two names."""
    if event == "call":
        return "_exchange" if frame.f_code.co_name == "_exchange" else ""
    return getattr(function, "__name__", "") if event == "c_call" else ""


def on_call(k: int, fault: Callable[[], None]) -> Callable[[], None]:
    """Arrange for ``fault`` to happen instead of the k-th system call from now on."""
    numbers = itertools.count(1)

    def profile(frame: FrameType, event: str, function: object) -> None:
        if name_of(frame, event, function) in CALLS and next(numbers) == k:
            fault()

    return lambda: sys.setprofile(profile)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(code: int) -> Callable[[], None]:
    def fault() -> None:
        raise OSError(code, os.strerror(code))

    return fault


def limit(size: int) -> Callable[[], None]:
    """Let the kernel refuse files longer than ``size``, as a full disk does."""

    def arrange() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return arrange


def outcome(target: Target, content: Content, arrange: Callable[[], None]) -> str:
    """What became of a write in a forked process."""
    if (child := os.fork()) == 0:
        code = 70
        try:
            arrange()
            target.write(content)
            code = 0
        except SegptError as error:
            code = 1 if "nothing there was changed" in str(error) else 2
        finally:
            sys.setprofile(None)
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {0: "written", 1: "refused", 2: "unsafe", -signal.SIGKILL: "killed"}[code]


def calls(target: Target) -> int:
    """How many system calls a write over old contents makes."""
    count = 0

    def tick(frame: FrameType, event: str, function: object) -> None:
        nonlocal count
        count += name_of(frame, event, function) in CALLS

    prepare(target)
    sys.setprofile(tick)
    try:
        target.write(NEW)
    finally:
        sys.setprofile(None)
    return count


def prepare(target: Target) -> None:
    shutil.rmtree(target.path.parent, ignore_errors=True)
    target.write(OLD)


def state(target: Target) -> str:
    """Old or new, whole; or set aside, where readers look and the next write puts it back."""
    aside = not target.path.exists()
    assert target.holds(OLD) or target.holds(NEW), "torn"
    if aside:
        target.abandon()  # even a write that comes to nothing does that
    assert target.holds(OLD) or target.holds(NEW), "torn"
    return "set aside" if aside else "old" if target.holds(OLD) else "new"


def check_repair(target: Target) -> None:
    target.write(NEXT)
    assert target.holds(NEXT)
    strays = [f.name for f in target.path.parent.iterdir() if f != target.path]
    assert not strays, f"strays {strays}"


def crash(target: Target, seen: Counter[str]) -> None:
    """Kill it before every call."""
    for k in range(1, calls(target) + 1):
        prepare(target)
        assert outcome(target, NEW, on_call(k, die)) == "killed"
        seen[state(target)] += 1
        check_repair(target)


def twice(target: Target, seen: Counter[str]) -> None:
    """Kill it before every call, and the write after it before every call."""
    for k in range(1, calls(target) + 1):
        for j in itertools.count(1):
            prepare(target)
            outcome(target, NEW, on_call(k, die))
            if outcome(target, NEW, on_call(j, die)) == "written":
                break
            seen[state(target)] += 1
            check_repair(target)


def errors(target: Target, seen: Counter[str]) -> None:
    """Let every call fail: refused means old, written means new."""
    for code in (errno.ENOSPC, errno.EIO, errno.EACCES):
        for k in range(1, calls(target) + 1):
            prepare(target)
            what = outcome(target, NEW, on_call(k, fail(code)))
            assert state(target) == ("old" if what == "refused" else "new"), (what, k)
            seen[what] += 1
            check_repair(target)


def limits(target: Target, seen: Counter[str]) -> None:
    """Let the kernel cut the file off after so many bytes."""
    for size in (0, 1, 4096, 8193, SIZE - 1, SIZE):
        prepare(target)
        what = outcome(target, NEW, limit(size))
        assert what == ("refused" if size < SIZE else "written"), size
        assert state(target) == ("old" if what == "refused" else "new")
        left = {f.name for f in target.path.parent.iterdir()}
        assert left == {target.path.name}, left
        seen[what] += 1


if __name__ == "__main__":
    campaign = {"crash": crash, "twice": twice, "errors": errors, "limits": limits}[sys.argv[2]]
    counter: Counter[str] = Counter()
    campaign(TARGETS[sys.argv[1]](Path(sys.argv[3]) / "place"), counter)
    sys.stdout.write(json.dumps(counter))
