"""Fixtures shared by all tests."""

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from segpt.__main__ import load_commands

Run = Callable[..., Result]

# On GitHub a command prints each error once more, as an annotation. The tests see what a user sees,
# wherever they run; the tests of annotations ask for them.
for _name in ("CI", "GITHUB_ACTIONS"):
    os.environ.pop(_name, None)

# Where there is no GPU, Triton's kernels run in its interpreter, as they are seen when imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Python looks for unreachable objects through all that torch and the tests have loaded, hundreds
# of times; looking rarely saves a tenth of the whole suite.
gc.set_threshold(100_000, 50, 1000)

# A shell starts what runs in the background with SIGINT ignored, and so would every process that a
# test starts; the tests of signals need what a foreground process has.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Files that take the longest, those first.
LONG = (
    "test_documentation",
    "test_tally",
    "test_designed",
    "test_recipes",
    "test_quantize",
    "test_memory",
    "test_export",
    "test_interruption",
    "test_compress",
    "test_token_predictor",
    "test_own_text",
    "test_solve",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: one that began last would keep one process busy alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def rank(item: pytest.Item) -> tuple[bool, int]:
        known = item.path.stem in LONG
        return item.path not in slow, LONG.index(item.path.stem) if known else len(LONG)

    items.sort(key=rank)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch  # two busy threads on two busy cores can stall

    torch.set_num_threads(1)


@pytest.fixture
def segpt() -> Run:
    """Run the command line in-process: ``segpt("train", "--device", "cpu")``."""
    main = load_commands().main
    assert isinstance(main, click.Group)

    def run(*args: object) -> Result:
        return CliRunner().invoke(main, [str(a) for a in args])

    return run
