"""``segpt train``."""

from pathlib import Path

import click

from . import _latest, _options, _report


@click.command("train")
@_options.recipe("demo")
@click.option("--data", type=click.Path(path_type=Path), help="A directory of `data prepare`.")
@_options.out("The run directory.  [default: runs/RECIPE]")
@click.option("--steps", type=click.IntRange(min=1), help="Train for so many steps.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Train for so long.")
@click.option("--seed", type=int, help="Seed of initialisation and data order.")
@_options.settings
@_options.device
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of --out.")
@click.option("--dry-run", is_flag=True, help="Only say what the run would be.")
@_options.as_json
def command(
    recipe: str,
    data: Path | None,
    out: Path | None,
    steps: int | None,
    seconds: float | None,
    seed: int | None,
    settings: tuple[str, ...],
    device: str,
    resume: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a model from a recipe; without arguments, the demo's on built-in text.

    An interrupted run saves itself; `--resume` goes on exactly where it stopped.
    """
    if steps is not None and seconds is not None:
        raise click.UsageError("give --steps or --seconds, not both")
    changes = list(settings)
    if steps is not None:
        changes.append(f"train.length={{kind: steps, count: {steps}}}")
    if seconds is not None:
        changes.append(f"train.length={{kind: seconds, count: {seconds}}}")
    if seed is not None:
        changes.append(f"train.seed={seed}")

    from segpt.spec.recipe import read_recipe

    from . import _training

    chosen = read_recipe(recipe, changes)
    if dry_run:
        from segpt.stages.train import describe

        about = describe(chosen)
        _report.emit(about, as_json, [f"{key}: {value}" for key, value in about.items()])
        return
    place = out or Path(_latest.RUNS / chosen.name)
    result = _training.run(
        chosen,
        lambda: _training.splits(chosen, data),
        place,
        device,
        resume=resume,
        fresh=out is None,
    )
    if result is None:
        return
    _report.emit(
        result,
        as_json,
        [
            f"{result['checkpoint']}: {result['parameters']:,} parameters, "
            f"{result['steps']:,} steps, {result['tokens']:,} tokens",
            f"loss {result['loss']:.4f} nats per token, validation {result['bpb']:.4f} bits per "
            f"byte, {result['tokens_per_second']:,.0f} tokens/s",
        ],
    )
