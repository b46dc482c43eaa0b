"""``segpt average``."""

from pathlib import Path

import click

from segpt.errors import CheckpointError
from segpt.workspace import newest

from . import _options, _report
from ._remember import remember


@click.command("average")
@click.argument("checkpoints", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--last", type=click.IntRange(min=2), default=6, show_default=True, help="How many to take."
)
@click.option(
    "--decay",
    type=click.FloatRange(0, 1, max_open=True),
    help="What each one leaves of the average so far.  [default: 0.8]",
)
@click.option("--mean", is_flag=True, help="Weigh all the same.")
@_options.out("The checkpoint to write.  [default: beside the run]")
@_options.as_json
def command(
    checkpoints: tuple[Path, ...],
    last: int,
    decay: float | None,
    mean: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Average the weights of CHECKPOINTS, or of those that runs hold (the newest by default).

    The average starts with the oldest and moves towards each later one in turn. What comes out
    is a checkpoint without optimizer state, to be scored or quantized.

    A run keeps only its last two checkpoints unless its recipe says more: train with, for
    example, --set train.keep=6 --set train.save_every=100.
    """
    if mean and decay is not None:
        raise click.UsageError("give --decay or --mean, not both")

    from segpt.atomic import check_replaceable
    from segpt.stages import checkpoint_io, run_directory, value_directory
    from segpt.stages.average import average, sources

    places = sources(checkpoints or [newest.need("run", None)], last)
    run = places[-1].resolve().parent if places[-1].parent == Path() else places[-1].parent
    place = out or run.with_name(f"{run.name}-average")
    if run_directory.checkpoints(place) or place.resolve() in [p.resolve() for p in places]:
        raise CheckpointError(f"{place} holds what is to be averaged, or a run; give another --out")
    check_replaceable(place, lambda directory: value_directory.holds(directory, "checkpoint"))
    chosen = None if mean else 0.8 if decay is None else decay
    with _report.Bar("average") as bar:
        value = average(places, decay=chosen, report=bar)
    checkpoint_io.save_checkpoint(place, value)
    remember("checkpoint", place)
    assert value.about.average is not None  # as it was just made
    steps = value.about.average.steps
    result = {
        "checkpoint": str(place),
        "steps": list(steps),
        "decay": chosen,
        "fingerprint": value.fingerprint,
    }
    method = "mean" if chosen is None else f"moving average with decay {chosen:g}"
    _report.emit(result, as_json, [f"{place}: {method} of steps {', '.join(map(str, steps))}"])
