"""Fixtures shared by all tests."""

import os
from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner, Result

from segpt.__main__ import load_commands

Run = Callable[..., Result]

# On GitHub a command prints each error once more, as an annotation. The tests see what a user sees,
# wherever they run; the tests of annotations ask for them.
for _name in ("CI", "GITHUB_ACTIONS"):
    os.environ.pop(_name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: one that began last would keep one process busy alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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
