"""Options that several commands share. Knobs live in recipes; flags are for paths and places."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from . import _guesses

F = TypeVar("F", bound=Callable[..., object])


class CommandGroup(click.Group):
    """A group that knows what others call its commands."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            raise click.UsageError(_guesses.no_such_command(args[0], names, ctx.command_path), ctx)
        return super().resolve_command(ctx, args)


class ReadingCommand(click.Command):
    """A command whose --ttt and --core may stand alone before a path, and leave it alone."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _completed(args))


_ALONE = {"--ttt": "best", "--core": "all"}  # what an option means that has no value


def _completed(args: Sequence[str]) -> list[str]:
    """Arguments in which an optional value is never a path that only comes next."""
    shown = list(args)
    end = shown.index("--") if "--" in shown else len(shown)
    for i, word in enumerate(shown[: max(0, end - 1)]):
        if word in _ALONE and _is_path(shown[i + 1]):
            shown[i] = f"{word}={_ALONE[word]}"
    return shown


def _is_path(word: str) -> bool:
    """Whether a word is a file and not a policy or a task: both have plain names."""
    if word.endswith(".segpt") or os.sep in word:
        return True
    return not word.startswith("-") and ("." in word or "-" in word) and Path(word).exists()


class Size(click.ParamType[int]):
    """A number of bytes, with or without a unit."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from segpt.config.sizes import byte_count
        from segpt.errors import SpecError

        try:
            return value if isinstance(value, int) else byte_count(str(value))
        except SpecError as error:
            self.fail(str(error), param, ctx)


as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else."
)
device = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)
precision = click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    help="What the model multiplies in.  [default: auto, float32 on every device]",
)
template = click.option(
    "--template",
    metavar="NAME|FILE",
    help="How a conversation is written: chatml, turns, instruction, plain, or a file.  "
    "[default: that beside the model]",
)
settings = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="PATH=VALUE",
    help="Change one value of the recipe, e.g. --set train.batch=32. May be repeated.",
)


def recipe(default: str | None, usual: str | None = None) -> Callable[[F], F]:
    """A recipe, by shipped name or by file; ``usual`` is what a command takes without one."""
    return click.option(
        "--recipe",
        default=default,
        show_default=default is not None or usual,
        help="A shipped recipe or a YAML file.",
    )


def stage(command: F) -> F:
    """Which recipe is meant of a file that holds several."""
    named = click.option("--stage", metavar="NAME", help="A stage of a recipe that has several.")
    keyed = click.option(
        "--config-key", metavar="NAME", help="An entry of a recipe that holds `experiments:`."
    )
    return named(keyed(command))


def resume(what: str, help: str) -> Callable[[F], F]:  # noqa: A002 - Click's own name
    """Go on with what was interrupted: named, or the newest where the value is empty."""
    return click.option("--resume", is_flag=False, flag_value="", metavar=f"[{what}]", help=help)


def budget(default: str) -> Callable[[F], F]:
    """A byte budget."""
    return click.option(
        "--budget",
        type=Size(),
        metavar="BYTES",
        help=f"Byte budget, such as 16000000, 16MB or 15.9MiB. {default}",
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
        help="Learn from what was scored: none, sgd, low_rank, phased, in_place, ngram, best, or "
        "one of them and +ngram.  [default: none; --ttt alone: best]",
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
