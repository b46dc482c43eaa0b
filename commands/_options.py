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


def reading(command: F) -> F:
    """How a text is read, and what is learnt on the way."""
    ttt = click.option(
        "--ttt",
        "policy",
        is_flag=False,
        flag_value="best",
        default="none",
        metavar="[POLICY]",
        help="Learn from what was scored: none, sgd, lora, phased, inplace, ngram, best, or one "
        "of them and +ngram.  [default: best]",
    )
    mode = click.option(
        "--mode",
        type=click.Choice(["strided", "rolling"]),
        help="Windows from scratch, or one pass with a cache.",
    )
    boundaries = click.option(
        "--boundaries",
        type=click.Choice(["stream", "document"]),
        help="Whether a document is read after the one before it.",
    )
    stride = click.option("--stride", type=click.IntRange(min=1), help="Targets per window.")
    context = click.option(
        "--context", type=click.IntRange(min=1), help="Tokens per window, or looked back over."
    )
    return ttt(mode(boundaries(stride(context(command)))))


def core(command: F) -> F:
    """The CORE tasks."""
    tasks = click.option(
        "--core",
        is_flag=False,
        flag_value="all",
        metavar="[TASKS]",
        help="Ask the CORE tasks, or those of a list, e.g. arc_easy,piqa.",
    )
    most = click.option(
        "--max-per-task", default=-1, show_default=True, help="Items of each task; -1 is all."
    )
    bundle = click.option(
        "--bundle", type=click.Path(path_type=Path), help="The CORE data.  [default: as fetched]"
    )
    baselines = click.option(
        "--baselines", type=click.Choice(["v1", "v2"]), help="Which table of random baselines."
    )
    return tasks(most(bundle(baselines(command))))
