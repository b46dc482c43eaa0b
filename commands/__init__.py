"""The ``segpt`` command line: one module per subcommand, loaded when it runs."""

import errno
import re
import shlex
from importlib import import_module
from typing import Any, NoReturn

import click

from segpt import __version__
from segpt.errors import InterruptError, SegptError, one_line

from . import _guesses, _options, _processes, _report, _signals

LINE = "segpt.line"  # the command as it was typed

COMMANDS = {
    "average": "Average the weights of the last checkpoints of a run.",
    "chat": "Talk with a model in the terminal.",
    "compare": "Whether one recipe scores better than another, or chance explains it.",
    "compress": "Compress a file with an artifact, losslessly.",
    "data": "Turn text into token shards, check them, and fetch the files of benchmarks.",
    "decompress": "Give back what was compressed, exactly.",
    "demo": "The whole line on built-in text: train, quantize, pack, score.",
    "doctor": "What of this machine works, and what to do about the rest.",
    "eval": "Tasks of lm-evaluation-harness, offline.",
    "export": "Write a model for the programs of others.",
    "import": "Take over a model of others: Hugging Face directories and GGUF files.",
    "inspect": "Account for every byte of an artifact; check it against a budget.",
    "leaderboard": "Records that anyone can verify: add, check, verify, show.",
    "pack": "Pack a quantized model into one file that never exceeds its budget.",
    "quantize": "Quantize a checkpoint and report the damage.",
    "recipes": "List the recipes that come with segpt, or show all values of one.",
    "report": "One page about a run: curves, bytes, scores, samples.",
    "runs": "What was made here: texts, runs, checkpoints, quantized models, artifacts.",
    "sample": "Text from a model, as it comes.",
    "score": "Bits per byte of an artifact on text, with or without test-time training.",
    "tokenizer": "Train, take over, compare and export tokenizers.",
    "serve": "Answer over HTTP as OpenAI's interface does, with a page to talk to the model.",
    "train": "Train a model from a recipe.",
}

MODULES = {"import": "import_"}  # where the name of a command is a word of Python


class LazyGroup(_options.CommandGroup):
    """Import a subcommand when it runs; turn errors into one line and an exit code."""

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            return super().main(*args, **options)
        except OSError as error:  # the help could not be printed
            _report.silence(1)
            _report.notice(f"segpt: cannot print: {error.strerror or error}")
            raise SystemExit(2) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in _processes.SHARED:
            _processes.check_alone(f"segpt {cmd_name}")
        module = import_module(f".{MODULES.get(cmd_name, cmd_name)}", __package__)
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[LINE] = shlex.join(["segpt", *args])
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            return _misused(ctx, error)

    def invoke(self, ctx: click.Context) -> object:
        with _signals.Watch() as watch:
            try:
                return self._invoke(ctx)
            except InterruptError as error:
                return _end(ctx, str(error), watch.exit_code)
            except KeyboardInterrupt:
                again = f"to start again: {ctx.meta[LINE]}"
                reason = f"interrupted; what was there before is as it was; {again}"
                return _end(ctx, reason, watch.exit_code)

    def _invoke(self, ctx: click.Context) -> object:
        try:
            result = super().invoke(ctx)
            _flush()
            return result
        except InterruptError:
            raise
        except SegptError as error:
            return _end(ctx, str(error), error.exit_code)
        except click.UsageError as error:
            return _misused(ctx, error)
        except click.ClickException as error:
            return _end(ctx, error.format_message(), error.exit_code)
        except BrokenPipeError:
            raise  # whoever reads has gone, and Click ends quietly
        except (OSError, MemoryError, RuntimeError, ImportError, ValueError) as error:
            reason = _reason(error)
            if reason is None:
                raise
            if isinstance(error, OSError) and not error.filename:
                _report.silence(1)  # so that Python does not try again
            return _end(ctx, reason, 2)


def _end(ctx: click.Context, reason: str, code: int) -> NoReturn:
    """One line for people: the number of an error of the system tells them nothing."""
    _say(f"segpt: {one_line(_NUMBER.sub('', reason))}")
    ctx.exit(code)


def _say(text: str) -> None:
    """Tell people, if anyone can be told."""
    try:
        click.echo(text, err=True)
    except OSError:  # stderr is full, and would be tried again at the end of the process
        _report.silence(2)


def _misused(ctx: click.Context, error: click.UsageError) -> NoReturn:
    """Say what is wrong with a command line; without any command, which ones there are."""
    if isinstance(error, _NO_COMMAND):
        _say(error.format_message())
        ctx.exit(error.exit_code)
    _end(ctx, _usage(error), error.exit_code)


def _usage(error: click.UsageError) -> str:
    """What is wrong with a command line, and where to read on."""
    if isinstance(error, click.NoSuchOption):
        return _guesses.no_such_option(error.option_name, error.ctx)
    message = " ".join(error.format_message().split())
    path = error.ctx.command_path if error.ctx is not None else "segpt"
    return message if path == "segpt" else f"{message.rstrip('.')} (see: {path} --help)"


_NO_COMMAND = getattr(click.exceptions, "NoArgsIsHelpError", ())  # of Click 8.2 and later
_NUMBER = re.compile(r"\[Errno -?\d+\] ")
MEMORY = (
    "the memory is not enough; take a smaller model or batch (segpt train --dry-run says what a "
    "run needs), or raise the limit that this process is under"
)
_NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "can't start new thread",
    "failed to map segment",
    "bad_alloc",
)


def _reason(error: BaseException) -> str | None:
    """One line about an error that is nobody's mistake in the code; None about others."""
    text = str(error)
    if isinstance(error, MemoryError) or any(words in text.lower() for words in _NO_MEMORY):
        return MEMORY
    if isinstance(error, OSError):
        if error.errno == errno.EBADF and not error.filename:
            return "standard output is closed, so the result cannot be printed"
        place = f"{error.filename}: " if error.filename else ""
        if not place and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            place = "the result cannot be written: "
        return f"{place}{error.strerror or text}"
    if isinstance(error, UnicodeEncodeError) and "surrogates" in text:
        return f"a name holds half a character, which no file can: {error.object!r}"
    if isinstance(error, ValueError) and "embedded null" in text:
        return "a path holds the character NUL, which no file name can"
    return None


def _flush() -> None:
    """Write what is left to standard output now, where an error can still be reported."""
    try:
        _report.flush()
    except BrokenPipeError:
        raise
    except OSError:
        _report.silence(1)  # so that Python does not try again
        raise


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """How good can a language model be in N bytes?

    Train, quantize, pack and score small language models:

      segpt train && segpt quantize --bits 6 && segpt pack && segpt score --ttt
    """
