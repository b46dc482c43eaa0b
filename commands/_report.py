"""What people see: progress on stderr, results on stdout, JSON when asked for."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from segpt.config.base import PlainSpec, encode

if TYPE_CHECKING:  # rich is imported when something is drawn, and doctor runs without it
    from rich.console import Console
    from rich.progress import Progress, TaskID

LINE_EVERY = 10.0  # seconds between lines where there is no terminal


def stderr() -> "Console":
    """A console for people; plain where stderr is no terminal, and in continuous integration."""
    from rich.console import Console

    return Console(stderr=True, no_color="NO_COLOR" in os.environ or None, highlight=False)


def notice(text: str) -> None:
    """One line for people; where nobody can read it any more, the work goes on without."""
    with contextlib.suppress(OSError, ValueError):
        click.echo(text, err=True)


def silence(descriptor: int) -> None:
    """Send to nowhere what is still to be written to a closed stdout (1) or stderr (2)."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def flush() -> None:
    """Print what is still held back.

    Raises:
        OSError: if it cannot be printed.
    """
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()


class Bar:
    """Progress of one task: a bar with ETA on a terminal, otherwise a line now and then."""

    def __init__(self, title: str) -> None:
        self.title, self.fraction, self.detail = title, 0.0, ""
        self.started = self.last = time.monotonic()
        self.live: Progress | None = None
        self.task: TaskID
        if sys.stderr.isatty() and not os.environ.get("CI"):
            from rich import progress

            self.live = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TextColumn("{task.percentage:>3.0f}%  {task.fields[detail]}"),
                progress.TimeElapsedColumn(),
                progress.TextColumn("ETA"),
                progress.TimeRemainingColumn(),
                console=stderr(),
                transient=True,
            )

    def __enter__(self) -> "Bar":
        if self.live is not None:
            self.live.start()
            self.task = self.live.add_task(self.title, total=1.0, detail="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def __call__(self, fraction: float, detail: str | None = None) -> None:
        """Show that ``fraction`` is done."""
        self.fraction = fraction
        self._show(detail)

    def say(self, detail: str) -> None:
        """Show a detail beside the fraction that was last shown."""
        self._show(detail)

    def _show(self, detail: str | None) -> None:
        self.detail = self.detail if detail is None else detail
        if self.live is not None:
            if self.live.tasks:
                self.live.update(self.task, completed=self.fraction, detail=self.detail)
            return
        now = time.monotonic()
        if now - self.last < LINE_EVERY:
            return
        self.last = now
        done, elapsed = self.fraction, now - self.started
        share = f" {100 * done:3.0f}%" if done else ""
        eta = f", ETA {elapsed / done - elapsed:.0f} s" if 0 < done < 1 else ""
        notice(f"{self.title}:{share}  {self.detail}{eta}")


def emit(result: Mapping[str, Any] | PlainSpec, as_json: bool, lines: Sequence[str]) -> None:
    """Print the result: one JSON object, or ``lines`` for people."""
    if as_json:
        unicode = (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
        click.echo(json.dumps(encode(result), ensure_ascii=not unicode))
    else:
        for line in lines:
            click.echo(line)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout: numbers stand right, and columns without anything in them are left out."""
    used = [i for i, _ in enumerate(columns) if not rows or any(row[i] for row in rows)]
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for i in used:
        shown.add_column(columns[i], justify="right" if _numeric(rows, i) else "left")
    for row in rows:
        shown.add_row(*(row[i] for i in used))
    width = None if sys.stdout.isatty() else 110
    Console(no_color="NO_COLOR" in os.environ or None, width=width).print(shown)


def _numeric(rows: Sequence[Sequence[str]], column: int) -> bool:
    """Whether a column holds numbers, with or without a unit."""
    cells = [row[column] for row in rows if row[column]]
    return all(cell.lstrip("+-")[:1].isdigit() for cell in cells)
