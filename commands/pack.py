"""``segpt pack``."""

from pathlib import Path

import click

from segpt.workspace import newest

from . import _options, _out, _report
from ._remember import remember

DEFAULT_BUDGET = 16_000_000


@click.command("pack")
@click.argument("quantized", required=False, type=click.Path(path_type=Path))
@_options.budget("[default: the recipe's, or 16,000,000; none of an imported model]")
@_options.out("The file to write.  [default: beside the quantized model]")
@_out.force
@_options.as_json
def command(
    quantized: Path | None, budget: int | None, out: Path | None, force: bool, as_json: bool
) -> None:
    """Pack QUANTIZED (the newest by default) into one self-contained file.

    Over budget nothing is written, and the overshoot is named. The hashes of the documents the
    model was trained on go to a file beside the artifact, so that `score` can refuse them.
    """
    from segpt.artifact.frame import MAGIC
    from segpt.stages import quantized_io
    from segpt.stages.pack import pack

    source = newest.need("quantized", quantized)
    place = out or source.with_name(source.name.removesuffix("-quantized") + ".segpt")
    _out.check_file(place, _out.begins_with(MAGIC), forced=force)
    value = quantized_io.read_quantized(source)
    asked = None if value.report is None else value.report.budget
    free = asked is None and "import" in value.origin  # nobody has set a budget for it
    limit = budget or asked or (None if free else DEFAULT_BUDGET)
    artifact, sections = pack(value, place, limit)
    remember("artifact", place)
    result = {
        "out": str(place),
        "bytes": artifact.size,
        "budget": limit,
        "headroom": None if limit is None else limit - artifact.size,
        "digest": artifact.digest,
        "sections": {section.name: section.bytes for section in sections},
    }
    room = "no budget"
    if limit is not None:
        room = f"{limit - artifact.size:,} below the budget of {limit:,}"
    _report.emit(
        result,
        as_json,
        [
            f"{place}: {artifact.size:,} bytes, {room}",
            f"sha256 {artifact.digest}",
        ],
    )
