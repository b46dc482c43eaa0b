"""A record's recipe to an artifact: its commands run again, with nothing else at hand.

A recipe comes from whoever added the record. It is never given to a shell: each of its commands
is one of segpt that makes things, and names no place outside the directory that it runs in.
"""

import hashlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from segpt.errors import SegptError, SpecError

MAKERS = (
    ("average",),
    ("data", "prepare"),
    ("demo",),
    ("pack",),
    ("quantize",),
    ("tokenizer", "train"),
    ("train",),
)

# A word, or what follows an = : or , in it, that leads out of the directory.
_OUTSIDE = re.compile(r"(^|[=:,])[/~]|(^|[/=:,])\.\.(/|$)|\\|\0")


def commands_of(recipe: str) -> list[list[str]]:
    """The arguments of each command of a recipe: one on a line, or several joined by ``&&``.

    Raises:
        SpecError: if there is none, or one of them is not safe to run.
    """
    commands = []
    for line in recipe.replace("&&", "\n").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise SpecError(f"recipe: {line[:80]!r}: {error}") from None
        if words:
            commands.append(_checked(words, line))
    if not commands:
        raise SpecError("it has no recipe, so it cannot be made again")
    return commands


def remake(recipe: str, directory: Path, digest: str) -> Path:
    """Run a recipe in an empty directory.

    What the commands print goes to stderr.

    Returns:
        The artifact with the digest, or else the newest.

    Raises:
        SpecError: if the recipe is not safe to run.
        SegptError: if a command fails, or no artifact comes out.
    """
    # They import what this process would, from the same places.
    paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
    for command in commands_of(recipe):
        process = subprocess.run(
            [sys.executable, "-P", "-m", "segpt", *command],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=2,  # what stdout holds is the result of this process
            check=False,
        )
        if process.returncode != 0:
            words = shlex.join(["segpt", *command])
            raise SegptError(f"recipe: {words[:200]}: exit code {process.returncode}")
    made = sorted(directory.rglob("*.segpt"), key=lambda path: path.stat().st_mtime_ns)
    if not made:
        raise SegptError("recipe: its commands leave no artifact behind; end with segpt pack")
    same = [p for p in made if hashlib.sha256(p.read_bytes()).hexdigest() == digest]
    return (same or made)[-1]


def _checked(words: list[str], line: str) -> list[str]:
    command = words[1:]
    if words[0] != "segpt" or not any(tuple(command[: len(m)]) == m for m in MAKERS):
        known = ", ".join(f"segpt {' '.join(maker)}" for maker in MAKERS)
        raise SpecError(f"recipe: {line.strip()[:80]!r} is none of {known}")
    for word in command:
        if _OUTSIDE.search(word):
            raise SpecError(
                f"recipe: {word[:80]!r} leads out of the directory that a recipe runs in"
            )
    return command
