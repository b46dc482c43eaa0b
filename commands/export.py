"""``segpt export``."""

from pathlib import Path

import click

from . import _options, _report


@click.group("export", cls=_options.CommandGroup)
def command() -> None:
    """Models for the programs of others."""


@command.command("hf")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The directory to write."
)
@click.option(
    "--form",
    type=click.Choice(["modeling"]),
    default="modeling",
    show_default=True,
    help="Source of the model's own.",
)
@_options.as_json
def hf(model: Path, out: Path, form: str, as_json: bool) -> None:
    """Write MODEL as a directory that transformers loads.

    MODEL is a checkpoint, a run, a quantized model or an artifact. Its source is written beside
    its weights, and loading runs that source: it asks for trust_remote_code=True.
    """
    from segpt.atomic import check_replaceable
    from segpt.convert.modeling.write import is_written_here
    from segpt.stages.export import export_modeling
    from segpt.stages.read_model import read_model

    check_replaceable(out, is_written_here)
    done = export_modeling(read_model(model), out, name=model.stem)
    result = {
        "out": str(done.out),
        "form": form,
        "parameters": done.parameters,
        "bytes": done.bytes,
        "tokenizer": done.tokenizer,
    }
    _report.emit(
        result,
        as_json,
        [
            f"{done.out}: {done.parameters:,} parameters in {done.bytes:,} bytes of weights",
            done.tokenizer,
            "load it with AutoModelForCausalLM.from_pretrained(DIRECTORY, trust_remote_code=True)",
        ],
    )
