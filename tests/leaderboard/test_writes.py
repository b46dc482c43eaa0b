"""The leaderboard when its writer is killed, refused by the disk, or not alone."""

import errno
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from segpt.config.base import readable
from segpt.errors import CheckError, SegptError
from segpt.leaderboard import store
from segpt.leaderboard.chain import INDEX
from segpt.leaderboard.entry import Chain, Claim
from tests import processes
from tests.leaderboard.entries import claim

TRACKS = '[[tracks]]\nname = "tiny"\nabout = "Tiny files."\nbytes = 100\n'

ADD = """
import sys
from pathlib import Path
from segpt.leaderboard import store
from tests.leaderboard.entries import claim
store.append_entry(Path(sys.argv[1]), claim(sys.argv[2], track="tiny"))
"""


@pytest.fixture
def board(tmp_path: Path) -> Path:
    (tmp_path / "tracks.toml").write_text(TRACKS)
    for name in ("one", "two"):
        store.append_entry(tmp_path, made(name))
    return tmp_path


def made(name: str) -> Claim:
    return claim(name, track="tiny")


def names(board: Path) -> list[str]:
    assert store.check(board).findings == ()
    return [link.entry.name for link in store.read_board(board).links]


class Killed(BaseException):
    """Nothing handles it, as nothing handles a kill."""


def at_call(k: int, fault: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Have a fault in place of the k-th call that changes the disk."""
    count, opened = itertools.count(1), Path.open
    for owner, name in (
        *((os, "fsync"), (os, "mkdir"), (Path, "replace"), (Path, "open"), (Path, "unlink")),
    ):
        call = getattr(owner, name)

        def step(*args: object, call: Callable[..., object] = call, **named: object) -> object:
            reads = call is opened and not {"xb", "a+b"} & {*args}
            if not reads and next(count) == k:
                fault()
            return call(*args, **named)

        patch.setattr(owner, name, step)


def kill() -> None:
    raise Killed


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.slow
@pytest.mark.parametrize("fault", [kill, full])
def test_whatever_interrupts_an_addition_the_chain_is_sound(
    board: Path, fault: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    for k in range(1, 30):
        before = names(board)
        with monkeypatch.context() as patch:
            at_call(k, fault, patch)
            try:
                store.append_entry(board, made(f"new-{k}"))
            except (Killed, SegptError, OSError):
                seen.add("stopped")
        assert names(board) in (before, [*before, f"new-{k}"])
        after = names(board)
        store.append_entry(board, made(f"next-{k}"))
        assert names(board) == [*after, f"next-{k}"]
        seen.add("kept" if after != before else "not added")
        assert not [path for path in (board / "records").iterdir() if path.name[0] == "."]
    assert seen == {"stopped", "kept", "not added"}


@pytest.mark.slow
def test_six_additions_at_once_make_a_chain_of_six(board: Path) -> None:
    root = Path(__file__).parents[2]

    def add(number: int) -> int:
        return processes.run(["-c", ADD, str(board), f"claim-{number}"], cwd=root).returncode

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(add, range(6))) == [0] * 6
    assert sorted(names(board)) == sorted(["one", "two", *(f"claim-{i}" for i in range(6))])


def test_temporary_files_are_no_entries(board: Path) -> None:
    for name in (".0003-x.json.123.tmp", ".DS_Store", ".0002-two.json.swp"):
        (board / "records" / name).write_text("{}")
    assert names(board) == ["one", "two"]


def older(board: Path) -> str:
    """Leave what a version did that was killed between entry and index."""
    index = (board / INDEX).read_bytes()
    store.append_entry(board, made("three"))
    (board / INDEX).write_bytes(index)
    return "0003-three.json"


def test_what_an_older_version_left_is_completed(board: Path) -> None:
    last = older(board)
    with pytest.raises(CheckError, match="to mend that: segpt leaderboard repair"):
        store.append_entry(board, made("four"))
    assert store.repair(board) == (f"completed {last}: chain.json names it now",)
    assert names(board) == ["one", "two", "three"]
    assert store.repair(board) == ()


def test_the_first_entry_is_completed_too(tmp_path: Path) -> None:
    (tmp_path / "tracks.toml").write_text(TRACKS)
    store.append_entry(tmp_path, made("one"))
    (tmp_path / INDEX).unlink()
    assert store.repair(tmp_path) == ("completed 0001-one.json: chain.json names it now",)


def test_a_last_entry_that_is_not_sound_is_dropped_and_kept_aside(board: Path) -> None:
    last = older(board)
    path = board / "records" / last
    path.write_bytes(path.read_bytes()[:-20])
    (done,) = store.repair(board)
    assert done.startswith(f"dropped {last}")
    assert names(board) == ["one", "two"]
    assert (board / "records" / f".{last}.dropped").is_file()


@pytest.mark.parametrize("harm", ["edited", "deleted", "two more", "index"])
def test_nothing_else_is_repaired(board: Path, harm: str) -> None:
    first, second = sorted((board / "records").iterdir())
    match harm:
        case "edited":
            second.write_bytes(second.read_bytes().replace(b"two", b"2wo"))
        case "deleted":
            second.unlink()
        case "two more":
            index = (board / INDEX).read_bytes()
            older(board)
            store.repair(board)
            store.append_entry(board, made("four"))
            (board / INDEX).write_bytes(index)
        case _:
            (board / INDEX).write_bytes(readable(Chain(root="1" * 64, head="1" * 64, count=2)))
    before = {path: path.read_bytes() for path in board.rglob("*") if path.is_file()}
    assert store.check(board).findings
    with pytest.raises(CheckError, match="nothing was repaired"):
        store.repair(board)
    assert {path: path.read_bytes() for path in board.rglob("*") if path.is_file()} == before
    assert first.is_file()
