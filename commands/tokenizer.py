"""``segpt tokenizer``."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import click

from segpt.data.sources import shown
from segpt.errors import SegptError
from segpt.workspace import newest

from . import _options, _out, _report
from .data import FIELD

if TYPE_CHECKING:
    from segpt.values import Tokenizer


@click.group("tokenizer", cls=_options.CommandGroup)
def command() -> None:
    """Train a lossless tokenizer."""


@command.command("train")
@click.argument("texts", nargs=-1, type=click.Path(path_type=Path), metavar="[TEXT]...")
@click.option(
    "--vocab",
    type=click.IntRange(min=1),
    help="How many pieces.  [default: 4096, or fewer for less than 1 MB of text]",
)
@click.option("--field", default="text", show_default=True, help=FIELD)
@_options.out("The JSON file to write.  [default: runs/tokenizer-VOCAB.json]")
@_out.force
@_options.as_json
def train_command(
    texts: tuple[Path, ...],
    vocab: int | None,
    field: str,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Train byte-pair encoding on TEXT (the built-in text without it); every byte round-trips."""
    from segpt.data.corpus import builtin
    from segpt.data.text import read_text
    from segpt.data.tokenizer import load, train_bpe
    from segpt.stages.tokenizers import write_tokenizer

    if out is not None:
        _out.check_file(out, lambda path: _at(path) is not None, forced=force)
    text = read_text(texts, field=field, notice=_report.notice) if texts else builtin("train")
    tokenizer = train_bpe(text, vocab)
    codec = load(tokenizer)
    sample = [document for document, _ in zip(text, range(1000), strict=False)]
    tokens = sum(len(codec.encode(document)) for document in sample)
    place = out or _vacant(newest.RUNS / f"tokenizer-{tokenizer.vocab}.json", tokenizer)
    write_tokenizer(place, tokenizer)
    result = {
        "out": shown(place),
        "vocab": tokenizer.vocab,
        "bytes": len(tokenizer.payload),
        "bytes_per_token": sum(map(len, sample)) / max(tokens, 1),
    }
    _report.emit(
        result,
        as_json,
        [
            f"{result['out']}: {result['vocab']:,} pieces, {result['bytes_per_token']:.3f} bytes "
            "per token"
        ],
    )


def _vacant(place: Path, tokenizer: "Tokenizer") -> Path:
    """``place``, or the first of place-2, place-3, ... that is new or holds the same tokenizer."""
    names = (place if n == 1 else place.with_stem(f"{place.stem}-{n}") for n in itertools.count(1))
    return next(name for name in names if not name.exists() or _at(name) == tokenizer)


def _at(path: Path) -> "Tokenizer | None":
    from segpt.stages.tokenizers import open_tokenizer

    if path.suffix.lower() != ".json":
        return None
    try:
        return open_tokenizer(str(path))
    except SegptError:
        return None
