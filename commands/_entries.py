"""``segpt leaderboard add``, ``claim`` and ``baseline``: what appends to the chain."""

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import _options, _report

if TYPE_CHECKING:
    from segpt.leaderboard.store import Added

DIRECTORY = "leaderboard"

directory_option = click.option(
    "--dir",
    "directory",
    default=DIRECTORY,
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where tracks.toml, records/ and the pages are.",
)
name_option = click.option("--name", required=True, help="Lower-case letters, digits and '-'.")
track_option = click.option("--track", required=True, help="A track of tracks.toml.")
authors_option = click.option(
    "--author", "authors", multiple=True, required=True, help="May be repeated."
)
date_option = click.option("--date", metavar="YYYY-MM-DD", help="[default: today, in UTC]")
about_option = click.option("--about", default="", metavar="TEXT", help="A few sentences.")


def today() -> str:
    """The day in UTC."""
    return datetime.now(UTC).date().isoformat()


@click.command("add")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--score",
    "scores",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What `segpt score --out` wrote about an artifact.  May be repeated.",
)
@name_option
@track_option
@authors_option
@date_option
@about_option
@click.option("--recipe", default="", metavar="TEXT", help="The commands that make it again.")
@directory_option
@_options.as_json
def add_command(
    artifacts: tuple[Path, ...],
    scores: tuple[Path, ...],
    name: str,
    track: str,
    authors: tuple[str, ...],
    date: str | None,
    about: str,
    recipe: str,
    directory: Path,
    as_json: bool,
) -> None:
    """Add a record of ARTIFACTS and their scores, unless a rule of the track is broken.

    Several artifacts are runs of one recipe with several seeds; the first is the one submitted.
    """
    from segpt.leaderboard import record

    added = record.add(
        directory,
        artifacts,
        scores,
        record.Description(
            name=name,
            track=track,
            authors=authors,
            date=date or today(),
            about=about,
            recipe=recipe,
        ),
    )
    _emit(added, as_json)


@click.command("claim")
@click.option("--value", type=float, required=True, help="In units of the track's metric.")
@click.option("--source", required=True, help="Where it was published.")
@click.option("--values", metavar="X,...", help="Of single runs, where they are known.")
@click.option("--bytes", "size", type=_options.Size(), help="Of the artifact.")
@click.option("--parameters", type=click.IntRange(min=1), help="Of the model.")
@name_option
@track_option
@authors_option
@date_option
@about_option
@directory_option
@_options.as_json
def claim_command(
    value: float,
    source: str,
    values: str | None,
    size: int | None,
    parameters: int | None,
    name: str,
    track: str,
    authors: tuple[str, ...],
    date: str | None,
    about: str,
    directory: Path,
    as_json: bool,
) -> None:
    """Add a figure that others published, as they say it."""
    from segpt.leaderboard import store
    from segpt.leaderboard.entry import Claim

    claim = Claim(
        name=name,
        track=track,
        authors=authors,
        date=date or today(),
        about=about,
        source=source,
        value=value,
        values=_numbers(values),
        bytes=size,
        parameters=parameters,
    )
    _emit(store.append_entry(directory, claim), as_json)


@click.command("baseline")
@click.argument("program")
@click.option(
    "--text", type=click.Path(path_type=Path), help="The text.  [default: that of the track]"
)
@click.option("--name", help="[default: PROGRAM-TRACK]")
@track_option
@date_option
@directory_option
@_options.as_json
def baseline_command(
    program: str,
    text: Path | None,
    name: str | None,
    track: str,
    date: str | None,
    directory: Path,
    as_json: bool,
) -> None:
    """Add what PROGRAM makes of the text of a track: gzip, bzip2, xz, zstd or brotli."""
    from segpt.leaderboard import record

    added = record.add_baseline(
        directory,
        program,
        track=track,
        name=name or f"{program}-{track}",
        date=date or today(),
        text=text,
    )
    _emit(added, as_json)


def _numbers(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in (text or "").split(",") if number.strip())
    except ValueError:
        raise click.BadParameter("write numbers, e.g. 1.06,1.07", param_hint="--values") from None


def _render(directory: Path) -> str:
    """The command that writes the pages of a leaderboard."""
    place = [] if directory == Path(DIRECTORY) else ["--dir", str(directory)]
    return shlex.join(["segpt", "leaderboard", "render", *place])


def _emit(added: "Added", as_json: bool) -> None:
    from segpt.leaderboard.entry import Record, Verification

    entry, advance = added.link.entry, added.advance
    result: dict[str, Any] = {"out": str(added.path), "name": entry.name, "track": entry.track}
    lines = [str(added.path)]
    if not isinstance(entry, Verification):
        result["value"] = entry.value
        lines = [f"{added.path}: {entry.value:,.10g} on {entry.track}"]
    if isinstance(entry, Record):
        result |= {"bpb": entry.bpb, "bytes": entry.bytes, "digest": entry.artifact}
        lines = [
            f"{added.path}: {entry.bpb:.4f} bits per byte in {entry.bytes:,} bytes on {entry.track}"
        ]
    if advance is not None:
        result["advance"] = advance._asdict()
        verb = "advances" if advance.made else "is listed, but does not advance"
        lines.append(f"{entry.name} {verb} {entry.track}: {advance.reason}")
    _report.emit(
        result, as_json, [*lines, f"render the pages: {_render(added.path.parent.parent)}"]
    )
