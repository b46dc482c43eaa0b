"""The texts of ``segpt sample``: which prompts, and how they reach a terminal or a file."""

import os
import sys
import unicodedata
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from segpt.config.precision import Precision
from segpt.config.sample import SampleSpec

from . import _report


def split(words: Sequence[str]) -> tuple[Path | None, list[bytes]]:
    """The model, if the first word names one, and the prompts.

    A word that looks like a path but leads nowhere is a model too, so that a slip of the pen is
    not continued like a prompt.
    """
    model: Path | None = None
    if words and words[0] != "-" and _names_a_file(words[0]):
        model, words = Path(words[0]), words[1:]
    prompts: list[bytes] = []
    for word in words:
        prompts += _lines() if word == "-" else [os.fsencode(word)]
    return model, prompts if words else [b""]


def run(
    path: Path,
    prompts: Sequence[bytes],
    spec: SampleSpec,
    device: str,
    as_json: bool,
    precision: Precision,
) -> dict[str, Any]:
    """Continue the prompts; unless it is wanted as JSON, tell the text while it comes."""
    from segpt.stages.read_model import read_model

    value = read_model(path)  # before torch is imported, which takes seconds

    from segpt.stages.sample import sample
    from segpt.train.mesh import pick

    show = _silent if as_json else _Board(len(prompts)).show
    samples = sample(value, prompts, spec, device=pick(device), precision=precision, show=show)
    if not as_json:
        _report.notice(
            f"{path}, seed {spec.seed}: {samples.tokens:,} tokens in {samples.seconds:.2f} s "
            f"({samples.tokens_per_second:,.0f} a second), the first after "
            f"{samples.first_token_seconds:.3f} s"
        )
    return samples.plain()


_STEERS = ("Cc", "Cf")  # controls, and what turns the direction of writing
_HARMLESS = "\n\t\u200c\u200d"  # the last two join letters and pictures


class _Board:
    """Texts on stdout: one after the other, each as soon as those before it are complete."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.waiting: list[deque[str | None]] = [deque() for _ in range(count)]
        self.number = -1
        self.terminal = sys.stdout.isatty()
        self._next()

    def show(self, number: int, piece: str | None) -> None:
        """Take a piece of a text, or None for its end."""
        self.waiting[number].append(piece)
        while self.number < self.count and self.waiting[self.number]:
            first = self.waiting[self.number].popleft()
            if first is None:
                click.echo()
                self._next()
            else:
                click.echo(visible(first) if self.terminal else first, nl=False)

    def _next(self) -> None:
        self.number += 1
        if self.count > 1 and self.number < self.count:
            click.echo(f"--- {self.number + 1} of {self.count}")


def visible(text: str) -> str:
    """``text`` without what would steer a terminal: a model can write anything."""
    return "".join(
        f"<{ord(c):02x}>" if unicodedata.category(c) in _STEERS and c not in _HARMLESS else c
        for c in text
    )


def _silent(number: int, piece: str | None) -> None:
    """Tell nothing."""


def _names_a_file(word: str) -> bool:
    path = Path(word)
    if not word:
        return False
    try:
        exists = path.exists()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        return False
    return exists or path.suffix == ".segpt" or (os.sep in word and not any(map(str.isspace, word)))


def _lines() -> Iterator[bytes]:
    for line in sys.stdin.buffer:
        yield line.rstrip(b"\r\n")
