"""``segpt export``."""

from pathlib import Path

import click

from . import _options, _report


@click.group("export", cls=_options.CommandGroup)
def command() -> None:
    """Write a model in a format of others."""


@command.command("hf")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new directory.")
@_options.as_json
def hf(model: Path, out: Path, as_json: bool) -> None:
    """Write MODEL, a checkpoint or run of a Llama-shaped model, for transformers."""
    from segpt.stages.import_model import export_hugging_face

    export_hugging_face(model, out)
    names = sorted(path.name for path in out.iterdir())
    result = {"out": str(out), "files": names}
    _report.emit(result, as_json, [f"{out}: {', '.join(names)}"])
