"""``python -m bench.unchanged COMMIT``: does this tree do what COMMIT did, to the last bit?

The same commands run in a work tree of COMMIT and in this one, as they lie here, both through the
command line alone: nothing is imported, so that modules may have moved. Each side has a directory
of its own with the same files in it, one thread, and goes its way beside the other. Then the exit
code, the standard output, the notices and every file that a command wrote are compared, as
:mod:`bench.differences` says, which also lists the little that is masked. :mod:`bench.calls` lists
the commands; one that does not end as it should proves nothing, and counts as a difference.

Of the script in a contest's folder only what it prints is compared, since it holds the names of
modules; the page of that folder, which tells its size, is left out too.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click

from . import inputs
from .calls import GROUPS, Call, ordered
from .differences import (
    SIZED,
    USUAL,
    Difference,
    files,
    neutral,
    notices,
    of_files,
    of_texts,
    of_values,
    outline,
    parsed,
)

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 600  # seconds of one command
WIDTH = 96  # of a command in the table
LEFT_OUT = re.compile(r"submission/(train_gpt\.py|README\.md)")

# An installation that is editable would find modules in its own tree.
_SITE = """import sys
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
"""


class BadInput(click.ClickException):
    """What cannot be compared at all, told in one line."""

    exit_code = 2


class Side(NamedTuple):
    """A tree, and the directory in which its commands run."""

    name: str
    tree: Path
    place: Path
    site: Path

    @property
    def names(self) -> dict[Path, str]:
        """What its directories are called in text that is compared."""
        return {self.place: "PLACE", self.tree: "TREE"}

    @property
    def environment(self) -> dict[str, str]:
        """That of its commands: one thread, no network, and nothing of the other tree."""
        kept = {
            k: v for k, v in os.environ.items() if k not in ("CI", "GITHUB_ACTIONS", "VIRTUAL_ENV")
        }
        return kept | {
            "PYTHONPATH": os.pathsep.join(map(str, (self.site, self.tree))),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "100",
            "HF_HOME": str(self.place.parent / f"{self.place.name}-cache"),
            "HF_HUB_OFFLINE": "1",
        }


class Outcome(NamedTuple):
    """What a command came to: how it ended, what it said, and the files that it wrote."""

    code: int
    stdout: str
    stderr: str
    written: frozenset[str]


class Row(NamedTuple):
    """A command, and where the two trees first part under it."""

    group: str
    call: Call
    difference: Difference | None


@click.command()
@click.argument("commit")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(GROUPS)),
    help="Of these groups, and their needs.",
)
@click.option("--keep", type=click.Path(path_type=Path), help="Keep what both sides wrote there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def main(commit: str, only: tuple[str, ...], keep: Path | None, as_json: bool) -> None:
    """Run the same commands in COMMIT and in this tree; exit with 1 if anything differs."""
    named = resolved(commit)
    if keep is not None and keep.exists():
        raise BadInput(f"{keep} exists; choose another directory for --keep")
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="unchanged-") as folder,
        work_tree(named, Path(folder).resolve() / "tree") as tree,
    ):
        place = Path(folder).resolve() if keep is None else keep.resolve()
        sides = prepared(place, tree)
        rows = []
        for row in compared(sides, ordered(only)):
            rows.append(row)
            if not as_json:
                click.echo(line_of(row))
    different = [row for row in rows if row.difference is not None]
    seconds = time.monotonic() - started
    if as_json:
        summary = {"commit": named, "seconds": seconds, "different": len(different)}
        click.echo(json.dumps(summary | {"rows": [plain(row) for row in rows]}))
    else:
        state = f"{len(different)} DIFFERENT" if different else "all the same"
        click.echo(f"{len(rows)} commands, {state}, {seconds:.0f} s, against {named[:12]}")
    if different:
        raise SystemExit(1)


def resolved(commit: str) -> str:
    """The full name of a commit.

    Raises:
        BadInput: if there is none of that name.
    """
    line = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BadInput(f"{commit!r} is no commit of this repository")
    return done.stdout.strip()


@contextlib.contextmanager
def work_tree(commit: str, place: Path) -> Iterator[Path]:
    """A work tree of a commit, which is gone afterwards."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(place), commit], check=True)
    try:
        yield place
    finally:
        subprocess.run([*git, "remove", "--force", str(place)], check=True)


def prepared(place: Path, tree: Path) -> tuple[Side, Side]:
    """Both sides, each with what its commands are given.

    Raises:
        ClickException: if the modules of one side would come from elsewhere.
    """
    site = place / "site"
    site.mkdir(parents=True)
    (site / "sitecustomize.py").write_text(_SITE, encoding="utf-8")
    sides = (
        Side("base", tree, place / "was", site),  # as long as the other name: sizes tell it
        Side("now", ROOT, place / "now", site),
    )
    for side in sides:
        inputs.write(side.place, tree)
        check_modules(side)
    return sides


def check_modules(side: Side) -> None:
    """Make sure that every module of segpt comes from the tree of a side.

    Raises:
        ClickException: naming the first that does not.
    """
    line = [sys.executable, "-v", "-m", "segpt", "recipes", "--json"]
    done = subprocess.run(
        line, cwd=side.place, env=side.environment, capture_output=True, text=True, check=False
    )
    loaded = re.findall(
        r"^# code object from '?([^'\n]+?)'?$|^# .* matches (.+)$", done.stderr, re.MULTILINE
    )
    paths = [Path(code or source) for code, source in loaded]
    ours = [
        path
        for path in paths
        if {"segpt", "commands"} & set(path.parts) and "site-packages" not in path.parts
    ]
    if not ours:
        raise click.ClickException(f"no module of {side.tree} was loaded: {done.stderr[-300:]}")
    for path in ours:
        if not path.is_relative_to(side.tree):
            raise click.ClickException(f"{side.name} loads {path}, which is not of {side.tree}")


def compared(sides: Sequence[Side], groups: Sequence[str]) -> Iterator[Row]:
    """Run the commands of groups on both sides at the same time, and compare each."""
    with ThreadPoolExecutor(len(sides)) as pool:
        for group in groups:
            for call in GROUPS[group].calls:
                base, now = pool.map(lambda side, call=call: run(side, call), sides)
                yield Row(group, call, difference(call, sides, (base, now)))


def run(side: Side, call: Call) -> Outcome:
    """Run a command on one side."""
    before = dict(files(side.place))
    try:
        done = subprocess.run(
            [sys.executable, *call.words()],
            cwd=side.place,
            env=side.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        code, stdout, stderr = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        code, stdout, stderr = -1, "", f"took more than {LIMIT} seconds"
    after = dict(files(side.place))
    written = frozenset(name for name in after if before.get(name) != after[name])
    return Outcome(code, neutral(stdout, side.names), notices(neutral(stderr, side.names)), written)


def difference(call: Call, sides: Sequence[Side], outcomes: Sequence[Outcome]) -> Difference | None:
    """Where two outcomes of a command first part, or how it did not end as it should."""
    base, now = outcomes
    if (base.code, now.code) != (call.code, call.code):
        last = [(side.stderr.splitlines() or [""])[-1][:200] for side in outcomes]
        endings = (f"{o.code} {text}".strip() for o, text in zip(outcomes, last, strict=True))
        return Difference(f"exit code, which should be {call.code}", *endings)
    if call.outlined:
        return of_values(*(outline(parsed(side.stdout)) for side in outcomes))
    masks = SIZED if call.sized else USUAL
    for name, texts in (
        ("stdout", (base.stdout, now.stdout)),
        ("stderr", (base.stderr, now.stderr)),
    ):
        if (first := of_texts(*texts, masks)) is not None:
            return first._replace(place=f"{name} {first.place}")
    names = sides[0].names | sides[1].names
    for name in sorted(base.written | now.written):
        if LEFT_OUT.fullmatch(name):
            continue
        here = [side.place / name for side in sides]
        if (first := of_files(here[0], here[1], names, masks)) is not None:
            return first._replace(place=f"{name} {first.place}")
    return None


def line_of(row: Row) -> str:
    """A row of the table, on one line."""
    line = row.call.line if len(row.call.line) <= WIDTH else f"{row.call.line[:WIDTH]}..."
    head = f"{row.group:9}  {'same' if row.difference is None else 'DIFFERENT':9}  {line}"
    if row.difference is None:
        return head
    place, base, now = row.difference
    return f"{head}: {place}: {base} | {now}"


def plain(row: Row) -> dict[str, Any]:
    """A row as JSON values."""
    first = None if row.difference is None else row.difference._asdict()
    return {"group": row.group, "command": row.call.line, "difference": first}


if __name__ == "__main__":
    main()
