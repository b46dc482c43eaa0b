"""Every ``--help`` is there, light and quick, and the set of flags is frozen."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from segpt.__main__ import load_commands

FLAGS = Path(__file__).with_name("flags.txt")
HEAVY = ("torch", "numpy", "triton")
SECONDS = 0.3
PROBE = f"""
import sys
from segpt.__main__ import main
try:
    main()
finally:
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    sys.stderr.write(" ".join(loaded))
"""


def subcommand(name: str) -> click.Command | None:
    """A command of the table, or None where its module is missing: its own test then fails."""
    commands = load_commands()
    try:
        found = commands.main.get_command(click.Context(commands.main), name)
    except ModuleNotFoundError:
        return None
    assert isinstance(found, click.Command)
    return found


def everything() -> Iterator[tuple[tuple[str, ...], click.Command | None]]:
    """Every command and subcommand by its words."""
    yield (), load_commands().main
    for name in load_commands().COMMANDS:
        command = subcommand(name)
        yield (name,), command
        if isinstance(command, click.Group):
            yield from (((name, word), child) for word, child in command.commands.items())


COMMANDS = dict(everything())


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_is_light_and_quick(words: tuple[str, ...]) -> None:
    seconds: list[float] = []
    while not seconds or (seconds[0] > SECONDS and len(seconds) < 2):  # noisy machines: once more
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", PROBE, *words, "--help"],
            capture_output=True,
            text=True,
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("Usage: "), done.stdout
        assert done.stderr == "", f"--help imports {done.stderr}"
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) <= SECONDS, seconds


def test_the_main_help_lists_every_command_with_its_summary() -> None:
    main = load_commands().main
    text = " ".join(main.get_help(click.Context(main, info_name="segpt")).split())
    for name, summary in load_commands().COMMANDS.items():
        assert f" {name} {summary}" in text
    modules = {f.stem for f in Path(str(load_commands().__file__)).parent.glob("[a-z]*.py")}
    named = load_commands().MODULES
    assert modules == {named.get(name, name) for name in load_commands().COMMANDS}


def test_flags_are_frozen() -> None:
    """Knobs live in recipes. A new flag is a decision: write it into flags.txt by hand."""
    found = [
        " ".join([*words, *(param.opts if isinstance(param, click.Option) else [param.name])])
        for words, command in COMMANDS.items()
        if command is not None
        for param in command.params
    ]
    frozen = FLAGS.read_text(encoding="utf-8").splitlines()
    assert sorted(found) == frozen
