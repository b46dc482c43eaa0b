"""Answers to commands and options that segpt does not have: what others call what it has."""

import difflib
from collections.abc import Iterable

import click

from segpt.config import synonyms

# Whose settings `--set` changes where it is not those of training.
_AREAS = {"score": "score", "compress": "score", "quantize": "quantize"}
_HOW = {
    "device": "cuda",
    "precision": "bfloat16",
    "dry-run": None,
    "resume": None,
    "json": None,
    "force": None,
}
_COMMANDS = {
    "prepare": "data prepare",
    "tokenize": "data prepare",
    "fetch": "data fetch",
    "generate": "sample",
    "infer": "sample",
    "complete": "sample",
    "evaluate": "score",
    "test": "score",
    "ppl": "score",
    "bpb": "score",
    "fit": "train",
    "pretrain": "train",
    "finetune": "train --init CHECKPOINT",
    "resume": "train --resume",
    "export": "pack",
    "convert": "pack",
    "verify": "leaderboard verify",
    "submit": "leaderboard add",
    "list": "recipes",
    "ls": "recipes",
    "models": "recipes",
    "configs": "recipes",
    "help": "--help",
    "version": "--version",
    "check": "doctor",
    "info": "inspect",
}


def no_such_command(word: str, known: Iterable[str], group: str) -> str:
    """What to say of a subcommand ``word`` that ``group`` does not have."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1)
    if close:
        return f"{group} has no command {word!r}; did you mean {close[0]!r}?"
    if group == "segpt" and word in _COMMANDS:
        return f"segpt has no command {word!r}; write: segpt {_COMMANDS[word]}"
    return f"{group} has no command {word!r}; it has {', '.join(choices)}"


def no_such_option(option: str, context: click.Context | None) -> str:
    """What to say of an option that the command of ``context`` does not have."""
    if context is None:
        return f"no such option: {option}"
    path = context.command_path
    hint = _hint(option, context) or _close(option, context.command)
    return f"{path} has no {option}; {hint or f'see: {path} --help'}"


def _hint(option: str, context: click.Context) -> str | None:
    command, word = context.command, synonyms.bare(option)
    ours = {synonyms.bare(name): name for name in _names(command)}
    if word in ours:
        return f"did you mean {ours[word]}?"
    for name, words in synonyms.OPTIONS.items():
        if word in words and synonyms.bare(name) in ours:
            return f"write {_shown(command, ours[synonyms.bare(name)])}"
    area = _AREAS.get(command.name or "", "train")
    if "set" in ours:
        answer = synonyms.answer(word, area)
        if answer is not None:
            return answer
    if (stands := _argument(word, command)) is not None:
        return f"its place is enough: {context.command_path} {stands}"
    answer = synonyms.answer(word)
    if answer is None:
        return None
    return f"for training {answer}" if answer.startswith("write") else answer


def _names(command: click.Command) -> list[str]:
    """The long options of a command."""
    options = [p for p in command.params if isinstance(p, click.Option)]
    return [name for option in options for name in option.opts if name.startswith("--")]


def _shown(command: click.Command, name: str) -> str:
    """An option with what stands behind it."""
    if name.removeprefix("--") in _HOW:
        value = _HOW[name.removeprefix("--")]
        return name if value is None else f"{name} {value}"
    option = next(p for p in command.params if name in p.opts)
    if isinstance(option, click.Option) and option.is_flag:
        return name
    return f"{name} {option.metavar or option.type.name.upper()}"


def _argument(word: str, command: click.Command) -> str | None:
    """The argument of a command that stands where an option was tried for it."""
    others = {
        "model": ("model", "modelname", "modelpath", "checkpoint", "artifact", "ckpt", "m"),
        "checkpoint": ("checkpoint", "ckpt", "model", "modelpath", "run", "m"),
        "texts": ("text", "texts", "file", "files", "input", "data", "dataset", "inputs", "i"),
        "words": ("prompt", "prompts", "model", "artifact", "checkpoint", "text", "input", "p"),
        "files": ("file", "files", "artifact", "model", "input"),
        "file": ("file", "input", "text", "i"),
        "quantized": ("quantized", "model", "checkpoint", "input"),
        "run": ("run", "rundir", "checkpoint", "model"),
        "recipe": ("recipe", "config", "name"),
        "artifacts": ("artifact", "artifacts", "model", "file"),
    }
    for param in command.params:
        if isinstance(param, click.Argument) and word in others.get(param.name or "", ()):
            return param.make_metavar(click.Context(command))
    return None


def _close(option: str, command: click.Command) -> str | None:
    close = difflib.get_close_matches(option, _names(command), n=1)
    return f"did you mean {close[0]}?" if close else None
