"""``segpt chat``."""

from pathlib import Path

import click

from segpt.config.precision import Precision
from segpt.config.sample import SampleSpec
from segpt.workspace import newest

from . import _options

_USUAL = SampleSpec()


@click.command("chat")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--system", help="What the model is told before the conversation.")
@click.option("--max-tokens", default=256, show_default=True, help="Most per answer.")
@click.option(
    "--temperature",
    default=_USUAL.temperature,
    show_default=True,
    help="0 is always the likeliest.",
)
@click.option("--top-p", default=_USUAL.top_p, show_default=True, help="1 is all.")
@click.option("--seed", default=_USUAL.seed, show_default=True, help="The same one, the same text.")
@_options.template
@_options.precision
@_options.device
def command(
    model: Path | None,
    system: str | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    template: str | None,
    precision: Precision | None,
    device: str,
) -> None:
    """Talk with MODEL, an artifact, a quantized model or a checkpoint; the newest artifact if none.

    A line is a message; `/reset` begins anew, `/exit` ends. Ctrl-C stops an answer and not the
    program. Without a terminal every line of the standard input is a message.
    """
    spec = SampleSpec(tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    path = newest.existing(newest.need("artifact", model))
    from segpt.stages.chat_template import find_template
    from segpt.stages.read_model import read_model

    shape = find_template(path, template)
    value = read_model(path)  # before torch is imported, which takes seconds

    from segpt.stages.open_model import open_model
    from segpt.train.mesh import pick

    from . import _chat

    opened = open_model(value, pick(device))
    chat = _chat.Chat(opened, shape, spec, system)
    opened.model.eval()  # loaded before the first message
    _chat.run(chat, path, shape, precision or "auto")
