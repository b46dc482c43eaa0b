"""``segpt export``."""

from pathlib import Path
from typing import Literal

import click

from . import _options, _out, _report


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
    from segpt.stages.read_model import read_model

    value = read_model(model)  # before torch is imported, which takes seconds
    from segpt.stages.export_model import export_hugging_face

    done = export_hugging_face(value, model, out, form)
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


@command.command("gguf")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option(
    "--type",
    "number_type",
    type=click.Choice(["f32", "f16", "bf16", "q8_0"]),
    default="f32",
    show_default=True,
    help="Of the numbers of matrices; gains and biases stay float32.",
)
@_out.force
@_options.as_json
def gguf(
    model: Path,
    out: Path,
    number_type: Literal["f32", "f16", "bf16", "q8_0"],
    force: bool,
    as_json: bool,
) -> None:
    """Write MODEL as a GGUF file, which llama.cpp and its kin load.

    MODEL is a checkpoint, a run, a quantized model, an artifact or a model of others, of the shape
    of Llama, Qwen2 or Qwen3, with a byte-level BPE. The file is read back before it appears.
    """
    from segpt.stages.read_model import read_model

    _out.check_file(out, forced=force)
    value = read_model(model)  # before torch is imported, which takes seconds
    from segpt.stages.export_model import export_gguf

    done = export_gguf(value, model, out, number_type)
    result = done._asdict() | {"out": str(done.out)}
    error = "exactly" if done.error == 0 else f"to a relative error of {done.error:.2g}"
    lines = [
        f"{done.out}: {done.parameters:,} parameters in {done.bytes:,} bytes",
        f"read back, the weights are those of {model} {error}",
    ]
    _report.emit(result, as_json, lines)
