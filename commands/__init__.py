"""The ``segpt`` command line: one module per subcommand, loaded when it runs."""

import difflib
from importlib import import_module

import click

from segpt import __version__
from segpt.errors import SegptError

COMMANDS = {
    "average": "Average the weights of the last checkpoints of a run.",
    "compare": "Whether one recipe scores better than another, or chance explains it.",
    "compress": "Compress a file with an artifact, losslessly.",
    "data": "Turn text into token shards, check them, and fetch the files of benchmarks.",
    "decompress": "Give back what was compressed, exactly.",
    "demo": "The whole line on built-in text: train, quantize, pack, score.",
    "doctor": "What of this machine works, and what to do about the rest.",
    "eval": "Tasks of lm-evaluation-harness, offline.",
    "inspect": "Account for every byte of an artifact; check it against a budget.",
    "leaderboard": "Records that anyone can verify: add, check, verify, show.",
    "pack": "Pack a quantized model into one file that never exceeds its budget.",
    "quantize": "Quantize a checkpoint and report the damage.",
    "report": "One page about a run: curves, bytes, scores, samples.",
    "sample": "Text from a model, as it comes.",
    "score": "Bits per byte of an artifact on text, with or without test-time training.",
    "tokenizer": "Train a lossless tokenizer.",
    "train": "Train a model from a recipe.",
}


class LazyGroup(click.Group):
    """Import a subcommand when it runs; turn errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f".{cmd_name}", __package__)
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except SegptError as error:
            click.echo(f"segpt: {error}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            click.echo(f"segpt: {place}{error.strerror or error}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("segpt: interrupted", err=True)
            ctx.exit(130)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """How good can a language model be in N bytes?

    Train, quantize, pack and score small language models:

      segpt train && segpt quantize --bits 6 && segpt pack && segpt score --ttt
    """
