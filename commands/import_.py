"""``segpt import``."""

from pathlib import Path

import click

from . import _options, _report
from ._remember import remember


@click.group("import", cls=_options.CommandGroup)
def command() -> None:
    """Take over a model of others as a checkpoint: Llama, Mistral, Qwen2 and Qwen3."""


def _options_of(function: click.decorators.FC) -> click.decorators.FC:
    for option in (
        _options.as_json,
        click.option("--no-check", is_flag=True, help="Do not compare with transformers."),
        click.option("--start", help="The token that begins a document.  [default: the model's]"),
        _options.out("The checkpoint to write.  [default: runs/NAME]"),
    ):
        function = option(function)
    return function


@command.command("hf")
@click.argument("directory", type=click.Path(path_type=Path))
@_options_of
def hf(directory: Path, out: Path | None, start: str | None, no_check: bool, as_json: bool) -> None:
    """Import DIRECTORY, a model of Hugging Face with its weights as safetensors."""
    from segpt.errors import CheckpointError

    if not directory.is_dir():
        raise CheckpointError(
            f"{directory} is no directory; nothing is downloaded: fetch config.json, "
            "*.safetensors and tokenizer.json of the model and name their directory"
        )
    _import(directory, out, start, no_check, as_json)


@command.command("gguf")
@click.argument("file", type=click.Path(path_type=Path))
@_options_of
def gguf(file: Path, out: Path | None, start: str | None, no_check: bool, as_json: bool) -> None:
    """Import FILE, a model in the GGUF format; quantized weights become what they stand for."""
    from segpt.errors import CheckpointError

    if not file.is_file():
        raise CheckpointError(f"{file} is no file; fetch the model and name its .gguf file")
    _import(file, out, start, no_check, as_json)


def _import(
    source: Path, out: Path | None, start: str | None, no_check: bool, as_json: bool
) -> None:
    from segpt.atomic import check_replaceable
    from segpt.config.layout import parameters
    from segpt.data.tokenizer import load
    from segpt.stages import check_import, import_model
    from segpt.stages.value_directory import holds

    name = source.resolve()
    place = out or Path("runs") / (name.stem if source.is_file() else name.name)
    check_replaceable(place, lambda path: holds(path, "checkpoint"))
    model = check_import.import_model(source, start=start, check=not no_check)
    import_model.save_imported(place, model)
    remember("checkpoint", place)
    about = model.about.source
    assert about is not None
    codec = load(model.tokenizer)
    measured = about.agreement
    result = {
        "out": str(place),
        "parameters": parameters(model.spec),
        "vocab": model.spec.vocab,
        "start": about.start,
        "lossless": codec.lossless,
        "checked": None if measured is None else measured.tokens,
        "mean": None if measured is None else measured.mean,
        "largest": None if measured is None else measured.largest,
    }
    if measured is None:
        checked = f"logits are not compared: {about.unchecked}"
    else:
        checked = (
            f"logits over {measured.tokens} tokens are {measured.mean:.2g} from transformers' in "
            f"the mean, {measured.largest:.2g} at most"
        )
    losses = "lossless" if codec.lossless else "not lossless: text that it cannot spell is refused"
    lines = [
        f"{place}: {result['parameters']:,} parameters, documents begin with token {about.start}",
        f"tokenizer of {model.tokenizer.vocab:,} ids, {losses}",
        checked,
    ]
    _report.emit(result, as_json, lines)
