"""``segpt compress``."""

import time
from pathlib import Path
from typing import Literal

import click

from . import _coding, _options, _report


@click.command("compress", cls=_options.ReadingCommand)
@_coding.file
@_coding.artifact
@_options.recipe(None)
@_options.reading
@_options.out(f"The file to write.  [default: FILE{_coding.SUFFIX}]")
@_coding.force
@_options.settings
@_options.as_json
def command(
    file: Path,
    artifact: Path | None,
    recipe: str | None,
    policy: str,
    mode: Literal["strided", "rolling"] | None,
    boundaries: Literal["stream", "document"] | None,
    stride: int | None,
    context: int | None,
    out: Path | None,
    force: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compress FILE with a language model, losslessly.

    Any file does, though a model is at its best on text like that it was trained on. The same
    artifact decompresses it, on a machine that rounds floats in the same way: this shows that a
    score is real, and is no archive. Predictions follow --recipe, or else the size of the model;
    --set changes their `score.`, `adapt.` and `ngram.` values, as for `segpt score`.
    """
    from segpt.atomic import write_file
    from segpt.config.base import encode
    from segpt.config.recipe import read_recipe
    from segpt.stages.resolve_spec import Reading, score_spec

    data = _coding.read(file)
    place = _coding.vacant(out or file.with_name(file.name + _coding.SUFFIX), force)
    packed = _coding.open_artifact(artifact)

    from segpt.stages.open_model import open_model

    opened = open_model(packed)
    spec = score_spec(
        opened.spec,
        policy=policy,
        recipe=read_recipe(recipe) if recipe else None,
        reading=Reading(mode, boundaries, stride, context),
        settings=settings,
    )

    from segpt.coding.compress import compress

    begun = time.perf_counter()
    with _report.Bar(f"compress {file.name}") as bar:
        made = compress(
            opened,
            [data],
            spec,
            report=lambda done, total: bar(done / total, f"{done:,} of {total:,} tokens"),
        )
    seconds = time.perf_counter() - begun
    write_file(place, made.data)
    bpb = 8 * len(made.data) / len(data) if data else None
    result = {
        "out": str(place),
        "bytes_in": len(data),
        "bytes_out": len(made.data),
        "bpb": bpb,
        "payload": made.payload,
        "ideal_bits": made.bits,
        "tokens": made.tokens,
        "seconds": seconds,
        "artifact": opened.identity,
        "spec": encode(spec),
    }
    lines = [
        f"{place}: {len(made.data):,} bytes from {len(data):,}"
        + ("" if bpb is None else f", {bpb:.4f} bits per byte"),
        f"{made.tokens:,} tokens in a code stream of {made.payload:,} bytes (ideally "
        f"{made.bits / 8:,.1f}), {seconds:.1f} s",
        f"made by the artifact {opened.identity}",
    ]
    _report.emit(result, as_json, lines)
