"""``segpt leaderboard export`` and ``check-folder``: submissions to a contest."""

from pathlib import Path

import click

from . import _options, _report


@click.command("export")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--contest", required=True, metavar="NAME", help="parameter-golf.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--score",
    "scores",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What `segpt score --out` wrote about an ARTIFACT.  May be repeated.",
)
@click.option(
    "--log",
    "logs",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A log of training to put in.  May be repeated.",
)
@click.option("--author", required=True, help="Who submits.")
@click.option("--github", default="", metavar="ID", help="The author's identifier there.")
@click.option("--name", required=True, help="What is submitted.")
@click.option("--date", metavar="YYYY-MM-DD", help="[default: today, in UTC]")
@click.option("--recipe", help="A shipped recipe or a YAML file.  [default: of the run]")
@_options.as_json
def export_command(
    artifacts: tuple[Path, ...],
    contest: str,
    out: Path,
    scores: tuple[Path, ...],
    logs: tuple[Path, ...],
    author: str,
    github: str,
    name: str,
    date: str | None,
    recipe: str | None,
    as_json: bool,
) -> None:
    """Write the folder that a contest takes, from the ARTIFACT of each seed and their scores.

    It holds one script that carries what it needs of segpt, so that it runs where segpt is not
    installed: `python train_gpt.py` evaluates the first ARTIFACT, and `python train_gpt.py train`
    trains it anew. If code and model are over the contest's bytes, nothing is written.
    """
    from datetime import UTC, datetime

    from segpt.contest.export import export
    from segpt.contest.folder_texts import About

    exported = export(
        artifacts,
        out,
        scores,
        logs,
        contest=contest,
        about=About(author, name, date or datetime.now(UTC).date().isoformat(), github),
        recipe=recipe,
    )
    sizes = f"{exported.bytes:,} bytes, {exported.code:,} of them code"
    _report.emit(exported.plain(), as_json, [f"{out}: {exported.bpb:.4f} bits per byte in {sizes}"])


@click.command("check-folder")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--against",
    metavar="FILE|NUMBER",
    help="The record to beat: its bits per byte, its folder or its submission.json.",
)
@_options.as_json
def check_folder_command(directory: Path, against: str | None, as_json: bool) -> None:
    """Hold what the submission in DIRECTORY claims against its own logs and files.

    Prints every contradiction, one line each; exit 1 if there is any.
    """
    from segpt.contest.read_folder import check_folder

    contradictions = check_folder(directory, against)
    lines = [f"{c.file}: {c.text} [{c.kind}]" for c in contradictions]
    result = {"folder": str(directory), "contradictions": [c._asdict() for c in contradictions]}
    _report.emit(result, as_json, lines or [f"{directory}: no contradiction"])
    if contradictions:
        raise SystemExit(1)
