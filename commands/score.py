"""``segpt score``."""

from pathlib import Path
from typing import Any

import click

from segpt.workspace import newest

from . import _options, _out, _processes, _report

_FREE = ("device", "limit", "out", "audit", "prove")  # may change when a score goes on


def _said(*names: str) -> bool:
    """Whether the command line names one of the options."""
    source = click.get_current_context().get_parameter_source
    return any(source(name) == click.core.ParameterSource.COMMANDLINE for name in names)


@click.command("score", cls=_options.ReadingCommand)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, type=click.Path(path_type=Path), metavar="[TEXT]...")
@_options.recipe(None)
@_options.reading
@click.option("--loops", metavar="N,...", help="How often looped layers run: BPB for each N.")
@click.option("--gain", is_flag=True, help="Also score strided and frozen, and compare.")
@click.option("--audit", is_flag=True, help="Look for cheating: change the text, score again.")
@click.option("--audit-seed", type=click.IntRange(min=0), help="Repeat an audit by its seed.")
@click.option("--prove", is_flag=True, help="Compress the text, and decompress it elsewhere.")
@click.option("--limit", type=click.FloatRange(min=0, min_open=True), help="Most seconds to take.")
@click.option("--resume", is_flag=True, help="Go on where an interrupted call stopped.")
@click.option("--field", default="text", show_default=True, help="Field of jsonl and parquet.")
@click.option("--truncate", type=click.IntRange(min=1), help="Of shards: whole sequences of N.")
@click.option("--verbose", is_flag=True, help="Also print every condition of the score.")
@_options.core
@_options.out("Also write the score as JSON to this file, with the figures of each document.")
@_out.force
@_options.settings
@_options.precision
@_options.device
@_options.as_json
def command(
    model: Path | None, texts: tuple[Path, ...], as_json: bool, core: str | None, **options: Any
) -> None:
    """Bits per byte of MODEL on TEXT.

    MODEL is an artifact, a quantized model or a checkpoint (the newest artifact by default); TEXT
    is by default what MODEL was validated on, wherever that was prepared. It may be files, a
    directory, token shards (.bin), the word `builtin`, or a directory of `data prepare`, of which
    the held-out part is read. How the text is read and what is learnt on the way follow --recipe,
    or else the size of the model; --set changes `score.`, `adapt.` and `ngram.` values, e.g. --set
    adapt.rate=0.005. An interrupted call goes on with --resume alone. With --core, the CORE tasks
    instead of TEXT.
    """
    from segpt.stages.json_files import is_score
    from segpt.stages.read_model import read_model
    from segpt.workspace.prepared import check_there

    _out.check_file(options["out"], is_score, forced=options.pop("force"))
    if core is None:
        others = options.keys() - {*_FREE, "resume"}
        goes_on = options["resume"] and not texts and not _said(*others)
        path = model if goes_on else newest.need("artifact", model)
        with _processes.said_once():
            if path is not None:
                newest.existing(path)
            for text in texts:
                check_there(text, advice="")
            value = None if path is None else read_model(path)

        from segpt.workspace.begun_score import ScoreCall, interrupted

        from . import _scoring

        if path is None or goes_on:
            now = {name: options[name] for name in _FREE if _said(name)}
            call = interrupted(path, now)
        else:
            call = ScoreCall(path, texts, options)
        result = _scoring.run(call, value or read_model(call.model))
    else:
        _processes.check_alone("segpt score --core")
        model = model or newest.need("artifact", None)

        from . import _core

        asked = {name: options[name] for name in _core.CoreOptions._fields if name in options}
        result = _core.run(model, _core.CoreOptions(tasks=core, **asked))
    if result is not None:
        plain, lines = result
        _report.emit(plain, as_json, lines)
        if plain.get("violations"):
            raise SystemExit(1)
