"""``segpt sample``."""

from typing import Any

import click

from segpt.config.precision import Precision
from segpt.config.sample import SampleSpec
from segpt.workspace import newest

from . import _options, _report

_USUAL = SampleSpec()


@click.command("sample")
@click.argument("words", nargs=-1, metavar="[MODEL] [PROMPT]...")
@click.option("--tokens", default=_USUAL.tokens, show_default=True, help="Most per prompt.")
@click.option(
    "--temperature",
    default=_USUAL.temperature,
    show_default=True,
    help="0 is always the likeliest.",
)
@click.option("--top-k", default=_USUAL.top_k, show_default=True, help="Likeliest ones; 0 is all.")
@click.option(
    "--top-p", default=_USUAL.top_p, show_default=True, help="Fewest with this share; 1 is all."
)
@click.option(
    "--repetition-penalty",
    default=_USUAL.repetition_penalty,
    show_default=True,
    help="For tokens among the last 128; 1 is none.",
)
@click.option("--seed", default=_USUAL.seed, show_default=True, help="The same one, the same text.")
@click.option(
    "--context", type=click.IntRange(min=1), help="Tokens looked back over.  [default: the model's]"
)
@click.option("--batch", default=_USUAL.batch, show_default=True, help="Prompts at a time.")
@click.option("--no-cache", is_flag=True, help="Read everything again for each token.")
@_options.precision
@_options.device
@_options.as_json
def command(
    words: tuple[str, ...],
    no_cache: bool,
    precision: Precision | None,
    device: str,
    as_json: bool,
    **knobs: Any,
) -> None:
    """Continue each PROMPT as MODEL would.

    MODEL is an artifact, a quantized model or a checkpoint; if the first word names no file, it
    is a prompt for the newest artifact. Without a prompt a new document begins. The prompt `-`
    stands for the lines of the standard input, one prompt each.
    """
    from . import _sampling

    model, prompts = _sampling.split(words)
    spec = SampleSpec(cache=not no_cache, **knobs)
    path = newest.existing(newest.need("artifact", model))
    continued = _sampling.run(path, prompts, spec, device, as_json, precision or "auto")
    if as_json:
        _report.emit(continued, True, [])
