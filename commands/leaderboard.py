"""``segpt leaderboard``."""

from pathlib import Path
from typing import Any

import click

from . import _contest, _entries, _options, _report, _verify

directory_option = _entries.directory_option


@click.group("leaderboard", cls=_options.CommandGroup)
def command() -> None:
    """Add entries, check and verify them, render the pages."""


command.add_command(_entries.add_command)
command.add_command(_entries.claim_command)
command.add_command(_entries.baseline_command)
command.add_command(_verify.command)
command.add_command(_contest.export_command)
command.add_command(_contest.check_folder_command)


@command.command("check")
@click.option("--head", metavar="DIGEST", help="Of an entry seen before: it must still be there.")
@directory_option
@_options.as_json
def check_command(head: str | None, directory: Path, as_json: bool) -> None:
    """Find entries that were changed or break a rule of their track; exit 1 if there are any.

    No model is needed.  The head that is printed names all entries at once: whoever keeps it can
    tell later, with --head, whether any of them was changed since.
    """
    from segpt.leaderboard import store

    findings, chain = store.check(directory, head)
    sound = chain is not None and not findings
    lines = list(findings)
    if not findings:
        lines.append("every entry is sound")
    if sound and chain is not None:
        lines.append(f"head of {chain.count:,} entries: {chain.head}")
    result = {
        "findings": list(findings),
        "head": chain.head if sound and chain is not None else None,
        "entries": 0 if chain is None else chain.count,
    }
    _report.emit(result, as_json, lines)
    if findings:
        raise SystemExit(1)


@command.command("repair")
@directory_option
@_options.as_json
def repair_command(directory: Path, as_json: bool) -> None:
    """Complete or drop a last entry that was being added when the command was interrupted.

    Entries before the last are never touched, and nothing else that is wrong is mended.
    """
    from segpt.leaderboard import store

    done = store.repair(directory)
    lines = [*done] or ["every entry is whole; there is nothing to repair"]
    _report.emit({"done": list(done)}, as_json, lines)


@command.command("show")
@click.argument("name", required=False)
@click.option("--track", help="Of this track only.")
@directory_option
@_options.as_json
def show_command(name: str | None, track: str | None, directory: Path, as_json: bool) -> None:
    """The standings of every track, or all that is known of the entry NAME."""
    from rich.markup import escape

    from segpt.leaderboard import shown

    if name is not None:
        result, lines = shown.entry(directory, name)
        _report.emit(result, as_json, lines)
        return
    tables = shown.tables(directory, track)
    if as_json:
        result = {each.name: each.plain for each in tables}
        _report.emit({"tracks": result}, True, [])
        return
    for each in tables:
        rows = [[escape(cell) for cell in row] for row in each.rows]
        _report.table(each.title, each.columns, rows)


@command.command("render")
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if a page is stale.")
@directory_option
@_options.as_json
def render_command(check: bool, directory: Path, as_json: bool) -> None:
    """Write the tables into README.md, and index.html."""
    from segpt.leaderboard import page_files

    pages = page_files.render_pages(directory, write=not check)
    left = "is stale; run: segpt leaderboard render" if check else "rendered anew"
    lines = [f"{path} {left if stale else 'is up to date'}" for path, stale in pages.items()]
    result: dict[str, Any] = {
        "pages": [str(path) for path in pages],
        "stale": [str(path) for path, stale in pages.items() if stale],
    }
    _report.emit(result, as_json, lines)
    if check and result["stale"]:
        raise SystemExit(1)
