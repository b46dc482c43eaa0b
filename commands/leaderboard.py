"""``segpt leaderboard``."""

from datetime import UTC, datetime
from pathlib import Path

import click

from . import _options, _report

directory_option = click.option(
    "--dir",
    "directory",
    default="leaderboard",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where tracks.toml, README.md and records/ are.",
)


@click.group("leaderboard")
def command() -> None:
    """Add records, check them, render the page."""


@command.command("add")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--score",
    "scores",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What `segpt score --out` wrote about ARTIFACT.  May be repeated.",
)
@click.option("--name", required=True, help="Lower-case letters, digits and '-'.")
@click.option("--track", required=True, help="A track of tracks.toml.")
@click.option("--author", "authors", multiple=True, required=True, help="May be repeated.")
@click.option("--date", metavar="YYYY-MM-DD", help="[default: today, in UTC]")
@click.option("--recipe", default="", metavar="TEXT", help="How to make ARTIFACT again.")
@directory_option
@_options.as_json
def add_command(
    artifact: Path,
    scores: tuple[Path, ...],
    name: str,
    track: str,
    authors: tuple[str, ...],
    date: str | None,
    recipe: str,
    directory: Path,
    as_json: bool,
) -> None:
    """Write a record of ARTIFACT and its scores, unless a rule of the track is broken."""
    from segpt.stages import record

    path = record.add(
        directory,
        artifact,
        scores,
        name=name,
        track=track,
        authors=authors,
        date=date or datetime.now(UTC).date().isoformat(),
        recipe=recipe,
    )
    found = record.read_record(path)
    result = {
        "out": str(path),
        "name": found.name,
        "track": found.track,
        "bpb": found.bpb,
        "bytes": found.bytes,
        "digest": found.artifact,
    }
    _report.emit(
        result,
        as_json,
        [f"{path}: {found.bpb:.4f} bits per byte in {found.bytes:,} bytes on {found.track}"],
    )


@command.command("check")
@directory_option
@_options.as_json
def check_command(directory: Path, as_json: bool) -> None:
    """Find records that are damaged or break a rule of their track; exit 1 if there are any."""
    from segpt.stages import record

    findings = record.check(directory)
    _report.emit({"findings": findings}, as_json, findings or ["every record is sound"])
    if findings:
        raise SystemExit(1)


@command.command("render")
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if the page is stale.")
@directory_option
@_options.as_json
def render_command(check: bool, directory: Path, as_json: bool) -> None:
    """Write the tables of all records into README.md."""
    from segpt.stages import record

    stale = record.render_page(directory, write=not check)
    page = str(directory / "README.md")
    state = "is up to date"
    if stale:
        state = "is stale; run: segpt leaderboard render" if check else "rendered anew"
    _report.emit({"page": page, "stale": stale}, as_json, [f"{page} {state}"])
    if stale and check:
        raise SystemExit(1)
