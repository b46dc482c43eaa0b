"""``segpt serve``."""

from pathlib import Path

import click

from segpt.config.precision import Precision
from segpt.workspace import newest

from . import _options


@click.command("serve")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; another one than this machine's own lets others in.",
)
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="A name under which clients know this server. May be repeated.",
)
@click.option("--name", help="What clients call the model.  [default: the name of its file]")
@click.option("--parallel", default=4, show_default=True, help="Requests that take turns.")
@click.option("--waiting", default=32, show_default=True, help="Requests that wait; more get 503.")
@click.option("--max-tokens", default=1024, show_default=True, help="Most of one answer.")
@click.option("--max-prompt", type=int, help="Most tokens of a prompt.  [default: the context]")
@click.option("--seconds", default=120.0, show_default=True, help="Most for one request.")
@_options.template
@_options.precision
@_options.device
def command(
    model: Path | None,
    port: int,
    host: str,
    allow_host: tuple[str, ...],
    name: str | None,
    parallel: int,
    waiting: int,
    max_tokens: int,
    max_prompt: int | None,
    seconds: float,
    template: str | None,
    precision: Precision | None,
    device: str,
) -> None:
    """Answer over HTTP with MODEL, an artifact, a quantized model or a checkpoint.

    `/v1/chat/completions`, `/v1/completions` and `/v1/models` are as OpenAI's interface has them,
    and `/` is a page to talk to the model. Only this machine reaches the server unless --host
    says otherwise; it asks nobody for a key.
    """
    path = newest.existing(newest.need("artifact", model))
    from segpt.stages.chat_template import find_template
    from segpt.stages.read_model import read_model

    shape = find_template(path, template)
    value = read_model(path)  # before torch is imported, which takes seconds

    from segpt.serve.limits import Limits
    from segpt.stages.open_model import open_model
    from segpt.train.mesh import pick

    from . import _serving

    _serving.check_packages()
    limits = Limits(parallel, waiting, max_tokens, max_prompt, seconds)
    opened = open_model(value, pick(device))
    where = _serving.Place(host, port, allow_host)
    _serving.run(opened, shape, name or path.stem, limits, where, precision or "auto")
