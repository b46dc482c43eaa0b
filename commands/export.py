"""``segpt export``."""

from pathlib import Path

import click

from . import _options, _report


@click.group("export", cls=_options.CommandGroup)
def command() -> None:
    """Write a model for the programs of others."""


@command.command("hf")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new directory.")
@click.option(
    "--form",
    type=click.Choice(["auto", "llama", "modeling"]),
    default="auto",
    show_default=True,
    help="llama: a class that transformers has. modeling: source of the model's own. auto: the "
    "first where it can say the model.",
)
@_options.as_json
def hf(model: Path, out: Path, form: str, as_json: bool) -> None:
    """Write MODEL as a directory that transformers loads.

    MODEL is a checkpoint, a run, a quantized model or an artifact; what is quantized is written as
    the numbers that it stands for. Source of the model's own lies beside its weights, and loading
    runs it: that asks for trust_remote_code=True.
    """
    from segpt.stages.export_model import export_hugging_face

    done = export_hugging_face(model, out, form)
    result = {
        "out": str(done.out),
        "form": done.form,
        "parameters": done.parameters,
        "bytes": done.bytes,
    }
    trust = ", trust_remote_code=True" if done.form == "modeling" else ""
    lines = [
        f"{done.out}: {done.parameters:,} parameters in {done.bytes:,} bytes of weights",
        f"load it with AutoModelForCausalLM.from_pretrained(DIRECTORY{trust})",
    ]
    _report.emit(result, as_json, lines)
