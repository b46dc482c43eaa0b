"""``segpt score``."""

from pathlib import Path

import click

from . import _latest, _options, _report


@click.command("score")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, type=click.Path(path_type=Path), metavar="[TEXT]...")
@_options.recipe(None)
@click.option("--ttt", is_flag=True, help="Score first, then train on what was scored.")
@click.option("--stride", type=click.IntRange(min=1), help="Targets per window.")
@click.option("--context", type=click.IntRange(min=1), help="Tokens per window.")
@click.option("--field", default="text", show_default=True, help="Field of jsonl and parquet.")
@click.option("--limit", type=click.FloatRange(min=0, min_open=True), help="Most seconds to take.")
@_options.out("Also write the score as JSON to this file.")
@_options.settings
@_options.device
@_options.as_json
def command(
    model: Path | None,
    texts: tuple[Path, ...],
    recipe: str | None,
    ttt: bool,
    stride: int | None,
    context: int | None,
    field: str,
    limit: float | None,
    out: Path | None,
    settings: tuple[str, ...],
    device: str,
    as_json: bool,
) -> None:
    """Bits per byte of MODEL on TEXT.

    MODEL is an artifact, a quantized model or a checkpoint (the newest artifact by default);
    TEXT is the newest validation split by default, else the built-in one. Windows and test-time
    training follow --recipe, or else the size of the model; --set changes their `score.` and
    `adapt.` values, e.g. --set adapt.rate=0.005.
    """
    from segpt.data.text import read_text
    from segpt.spec.recipe import read_recipe
    from segpt.stages import files, models, recipes, score
    from segpt.train.mesh import join, leave

    from . import _texts

    path = _latest.need("artifact", model)
    value, model_spec = models.read_model(path)
    spec = recipes.score_spec(
        model_spec,
        ttt=ttt,
        recipe=read_recipe(recipe) if recipe else None,
        stride=stride,
        context=context,
        settings=settings,
    )
    text = read_text(texts, field=field) if texts else _texts.validation(value)
    mesh = join(device)
    try:
        with _report.Bar(f"score {path.name}" + (" with test-time training" if ttt else "")) as bar:
            result = score.score(
                value,
                text,
                spec,
                device=str(mesh.device),
                limit_seconds=limit,
                report=lambda p: bar(p.done / p.total, f"BPB {p.bpb:.4f}") if mesh.leads else None,
            )
    finally:
        leave()
    if not mesh.leads:
        return
    plain = result.plain()
    if out is not None:
        files.write_json(out, plain)
    lines = [
        f"{result.bpb:.4f} bits per byte ({result.nats_per_token:.4f} nats per token) on "
        f"{text.name}",
        f"{result.tokens:,} tokens, {result.bytes:,} bytes ({result.denominator}), "
        f"{result.seconds:.1f} s",
    ]
    lines += [f"  {name}: {state}" for name, state in result.conditions.items()]
    _report.emit(plain, as_json, lines)
