"""Writes survive what interrupts them: a fault at every system call, real kills, a full disk."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from segpt.atomic import new_directory, new_file, remove_directory, standing, write_file
from segpt.errors import SegptError

FAULTS = Path(__file__).with_name("faults.py")


def anything(path: Path) -> bool:
    """Whatever is there may be replaced."""
    return path.is_dir()


def fill(path: Path, **contents: bytes) -> None:
    with new_directory(path, replaces=anything) as fresh:
        for name, data in contents.items():
            (fresh / name).write_bytes(data)


@pytest.fixture
def quick_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory where flushing costs nothing, if this machine has one."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as place:
        yield Path(place)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks and sets kernel limits")
@pytest.mark.parametrize(
    ("target", "campaign", "least"),
    [
        ("file", "crash", {"old": 5, "new": 2}),
        ("file", "errors", {"refused": 10, "written": 1}),
        ("file", "limits", {"refused": 5, "written": 1}),
        ("directory", "crash", {"old": 15, "new": 3}),
        ("directory", "errors", {"refused": 40, "written": 3}),
        ("renames", "crash", {"old": 15, "set aside": 1, "new": 3}),
        ("renames", "errors", {"refused": 40, "written": 3}),
        ("directory", "limits", {"refused": 5, "written": 1}),
        pytest.param("file", "twice", {"old": 30, "new": 30}, marks=pytest.mark.slow),
        pytest.param(
            "renames",
            "twice",
            {"old": 300, "set aside": 20, "new": 300},
            marks=pytest.mark.campaign,
        ),
    ],
)
def test_every_fault_leaves_old_or_new(
    target: str, campaign: str, least: dict[str, int], quick_disk: Path
) -> None:
    done = subprocess.run(
        [sys.executable, FAULTS, target, campaign, quick_disk],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert all(seen.get(outcome, 0) >= count for outcome, count in least.items()), seen


WRITER = """
import itertools, sys
from pathlib import Path
from segpt.atomic import new_directory, write_file
place = Path(sys.argv[1])
for i in itertools.count():
    data = bytes([i % 251]) * 300_000
    write_file(place / "file", data)
    with new_directory(place / "directory", replaces=Path.is_dir) as fresh:
        (fresh / "a").write_bytes(data)
        (fresh / "b").write_bytes(data)
    if i == 0:
        print("ready", flush=True)
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_contents(quick_disk: Path) -> None:
    delays = random.Random(0)
    for _ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, quick_disk], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(delays.uniform(0, 0.02))
            writer.send_signal(signal.SIGKILL)
        with pytest.raises(LookupError), new_directory(quick_disk / "directory", replaces=anything):
            raise LookupError  # removes what the kill may have left
        for name in ("file", "directory/a", "directory/b"):
            data = (quick_disk / name).read_bytes()
            assert data == data[:1] * 300_000
        assert (quick_disk / "directory/a").read_bytes() == (
            quick_disk / "directory/b"
        ).read_bytes()
        write_file(quick_disk / "file", b"next")
        assert sorted(f.name for f in quick_disk.iterdir()) == ["directory", "file"]


def test_a_file_that_a_block_writes_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with new_file(path) as place:
        place.write_bytes(b"first")
        assert not path.exists()
    assert path.read_bytes() == b"first"

    def stop(place: Path) -> None:
        place.write_bytes(b"half")
        raise LookupError

    with pytest.raises(LookupError), new_file(path) as place:
        stop(place)
    assert path.read_bytes() == b"first"
    with pytest.raises(SegptError, match="file"), new_file(path / "below") as place:
        place.write_bytes(b"never")
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if mount is None or subprocess.run([mount, *options], check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_keeps_the_old_contents(small_disk: Path) -> None:
    file, directory = small_disk / "file", small_disk / "directory"
    write_file(file, b"old" * 1000)
    fill(directory, a=b"old" * 1000)

    with pytest.raises(SegptError, match=r"file: No space left on device; nothing there was"):
        write_file(file, b"new" * 100_000)
    with pytest.raises(SegptError, match=r"directory: No space left on device; nothing there was"):
        fill(directory, a=b"new" * 1000, b=b"new" * 100_000)

    assert file.read_bytes() == (directory / "a").read_bytes() == b"old" * 1000
    assert sorted(f.name for f in small_disk.rglob("*")) == ["a", "directory", "file"]
    write_file(file, b"new" * 50_000)
    assert file.stat().st_size == 150_000


def order(action: Callable[[], None]) -> list[str]:
    """The flushes and renames that an action makes."""
    made: list[str] = []

    def profile(frame: FrameType, event: str, function: object) -> None:
        name = getattr(function, "__name__", "")
        if event == "call" and frame.f_code.co_name == "_exchange":
            made.append("exchange")
        if event == "c_call" and name in ("fsync", "rename", "replace"):
            made.append(name)

    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)
    return made


@pytest.mark.skipif(os.name != "posix", reason="directories are flushed on POSIX only")
def test_data_reaches_the_disk_before_its_name_does(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert order(lambda: write_file(tmp_path / "file", b"x")) == ["fsync", "replace", "fsync"]
    assert order(lambda: fill(path, a=b"", b=b"")) == ["fsync"] * 3 + ["rename", "fsync"]
    assert order(lambda: fill(path, a=b"")) == ["fsync"] * 2 + ["exchange", "fsync"]


def test_contents_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "far" / "away" / "run"
    fill(path, old=b"old", both=b"old")
    with new_directory(path, replaces=anything) as fresh:
        (fresh / "both").write_text("new")
        assert (path / "both").read_text() == "old"
    assert {f.name: f.read_text() for f in path.iterdir()} == {"both": "new"}

    write_file(path.parent / "file", b"long contents")
    write_file(path.parent / "file", b"")
    assert (path.parent / "file").read_bytes() == b""


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "file", b"x")
        with new_directory(tmp_path / "directory"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "directory").stat().st_mode & 0o777 == 0o750


def test_an_exception_in_the_block_changes_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "run", a=b"old")
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "run", replaces=anything):
        raise KeyboardInterrupt
    assert [f.name for f in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "a").read_text() == "old"


def test_links_stay_and_lead_to_the_new_contents(tmp_path: Path) -> None:
    (tmp_path / "disk" / "run").mkdir(parents=True)
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "run")
    (tmp_path / "file").symlink_to(tmp_path / "disk" / "file")
    for content in ("1", "2"):
        fill(tmp_path / "run", a=content.encode())
        write_file(tmp_path / "file", content.encode())
    assert (tmp_path / "disk" / "run" / "a").read_text() == "2"
    assert (tmp_path / "disk" / "file").read_text() == "2"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["disk", "file", "run"]
    assert sorted(f.name for f in (tmp_path / "disk").iterdir()) == ["file", "run"]


def test_a_file_is_not_replaced_by_a_directory_or_the_reverse(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "directory").mkdir()
    for _ in range(2):
        with (
            pytest.raises(SegptError, match=r"cannot write .*file: Not a directory"),
            new_directory(tmp_path / "file"),
        ):
            pass
        with pytest.raises(SegptError, match=r"cannot write .*directory: Is a directory"):
            write_file(tmp_path / "directory", b"")
        with pytest.raises(SegptError, match=r"cannot write .*file/below: "):
            write_file(tmp_path / "file" / "below", b"")
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["directory", "file"]


def test_the_root_is_refused() -> None:
    with pytest.raises(SegptError, match="cannot write /"):
        write_file(Path("/"), b"")


def test_strays_of_the_dead_are_removed_and_no_others(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    mine = [f".we[i]rd*.{gone.pid}.tmp", f".run.{gone.pid}.tmp"]
    others = [
        f".we[i]rd*.{os.getppid()}.tmp",  # still running
        f".we[i]rd*.x.{gone.pid}.tmp",  # of a file called "we[i]rd*.x"
        f".weird.{gone.pid}.tmp",
        ".we[i]rd*.old.tmp",
    ]
    for name in mine + others:
        (tmp_path / name).mkdir()
    write_file(tmp_path / "we[i]rd*", b"")
    with new_directory(tmp_path / "run"):
        pass
    assert {f.name for f in tmp_path.iterdir()} == {"we[i]rd*", "run", *others}


def test_a_write_inside_a_block_spares_the_block(tmp_path: Path) -> None:
    with new_directory(tmp_path / "run.step") as fresh:
        (fresh / "a").write_text("kept")
        write_file(tmp_path / "run", b"")
    assert (tmp_path / "run.step" / "a").read_text() == "kept"


def others(path: Path) -> dict[str, Callable[[], None]]:
    """Directories that are not the writer's, each made at ``path``."""

    def hold(name: str) -> Callable[[], None]:
        def make() -> None:
            (path / name).parent.mkdir(parents=True)
            (path / name).write_text("mine")

        return make

    return {"files": hold("notes.txt"), "hidden": hold(".git/config"), "deep": hold("a/b/c")}


@pytest.mark.parametrize("kind", others(Path()))
def test_a_directory_with_other_things_is_not_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mine"
    others(path)[kind]()
    before = sorted(path.rglob("*"))
    with pytest.raises(SegptError, match="it holds other things than segpt writes there"):
        fill_new(path)
    assert sorted(path.rglob("*")) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


def fill_new(path: Path) -> None:
    """Write a directory that replaces none."""
    with new_directory(path) as fresh:
        (fresh / "a").write_bytes(b"new")


def test_what_appears_while_a_directory_is_filled_is_not_replaced(tmp_path: Path) -> None:
    def write() -> None:
        with new_directory(tmp_path / "run"):
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "mine").write_text("kept")

    with pytest.raises(SegptError, match="it holds other things"):
        write()
    assert (tmp_path / "run" / "mine").read_text() == "kept"


def test_an_empty_directory_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    fill_new(tmp_path / "run")
    assert (tmp_path / "run" / "a").read_bytes() == b"new"


@pytest.mark.parametrize("place", [".", "..", "/", "~", "link", "../link/.."])
def test_where_people_work_nothing_is_replaced(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "here").mkdir(parents=True)
    monkeypatch.chdir(home / "here")
    monkeypatch.setenv("HOME", str(home))
    (home / "link").symlink_to(home / "here")
    path = {"~": home, "link": home / "link"}.get(place, Path(place))
    with (
        pytest.raises(SegptError, match="a directory that you work in"),
        new_directory(path, replaces=anything),
    ):
        pass
    assert sorted(entry.name for entry in home.iterdir()) == ["here", "link"]


def test_an_error_of_what_is_read_is_not_called_one_of_what_is_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_directory(tmp_path / "run"):
        (tmp_path / "text.txt").read_bytes()
    assert not list(tmp_path.iterdir())


def test_what_stays_aside_is_found_and_named(tmp_path: Path) -> None:
    fill(tmp_path / ".run.old", a=b"old")
    assert standing(tmp_path / "run") == tmp_path / ".run.old"
    fill(tmp_path / "run", a=b"new")
    assert standing(tmp_path / "run") == tmp_path / "run"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_a_directory_is_removed_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "run", a=b"1", b=b"2")
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before it
    remove_directory(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    fill(tmp_path / "run", a=b"1")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
    remove_directory(tmp_path / "run")
    assert not list(tmp_path.iterdir())
