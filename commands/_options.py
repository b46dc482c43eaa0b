"""Options that several commands share. Knobs live in recipes; flags are for paths and places."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

F = TypeVar("F", bound=Callable[..., object])

as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else."
)
device = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)
settings = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="PATH=VALUE",
    help="Change one value of the recipe, e.g. --set train.batch=32. May be repeated.",
)


def recipe(default: str | None) -> Callable[[F], F]:
    """A recipe, by shipped name or by file."""
    return click.option(
        "--recipe",
        default=default,
        show_default=default is not None,
        help="A shipped recipe or a YAML file.",
    )


def budget(default: str) -> Callable[[F], F]:
    """A byte budget."""
    return click.option(
        "--budget", type=click.IntRange(min=1), metavar="BYTES", help=f"Byte budget. {default}"
    )


def out(help: str) -> Callable[[F], F]:  # noqa: A002 - Click's own name
    """Where the result goes."""
    return click.option("--out", type=click.Path(path_type=Path), help=help)
