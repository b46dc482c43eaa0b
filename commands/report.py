"""``segpt report``."""

from pathlib import Path

import click

from segpt.workspace import newest

from . import _options, _out, _report


@click.command("report")
@click.argument("run", required=False, type=click.Path(path_type=Path))
@_options.out("The page to write.  [default: report.html in RUN]")
@click.option(
    "--png",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also draw the curves as a picture.",
)
@_out.force
@_options.as_json
def command(
    run: Path | None, out: Path | None, png: Path | None, force: bool, as_json: bool
) -> None:
    """One page about RUN (the newest by default): curves, bytes, scores, samples, environment.

    RUN is the directory of `segpt train` or `segpt demo`. What it lacks is left out, and the page
    names the command that adds it. The page is one HTML file that loads nothing.
    """
    from segpt.report import gather, picture, plot

    if png is not None:
        plot.need()
    place = newest.need("run", run)
    page = out or place / gather.PAGE
    _out.check_file(page, gather.is_page, forced=force)
    _out.check_file(png, plot.is_ours, forced=force)
    report = gather.gather(place)
    size = gather.write(report, page)
    if png is not None:
        picture.draw(report, png)
    result = {
        "out": str(page),
        "bytes": size,
        "png": None if png is None else str(png),
        "missing": dict(report.missing),
        "notices": list(report.notices),
    }
    lines = [*report.notices, f"{page} shows the run: open it in a browser ({size:,} bytes)"]
    lines += [f"{png} shows its curves"] * (png is not None)
    lines += [f"  {part} is missing; to add it: {line}" for part, line in report.missing.items()]
    _report.emit(result, as_json, lines)
