"""Fixtures shared by all tests."""

from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner, Result

from segpt.__main__ import load_commands

Run = Callable[..., Result]


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
