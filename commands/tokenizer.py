"""``segpt tokenizer``."""

from pathlib import Path

import click

from . import _latest, _options, _report


@click.group("tokenizer")
def command() -> None:
    """Train a lossless tokenizer."""


@command.command("train")
@click.argument("texts", nargs=-1, type=click.Path(path_type=Path), metavar="[TEXT]...")
@click.option("--vocab", default=2048, show_default=True, type=click.IntRange(min=1))
@click.option("--field", default="text", show_default=True, help="Field of jsonl and parquet.")
@_options.out("The JSON file to write.  [default: runs/tokenizer-VOCAB.json]")
@_options.as_json
def train_command(
    texts: tuple[Path, ...], vocab: int, field: str, out: Path | None, as_json: bool
) -> None:
    """Train byte-pair encoding on TEXT (the built-in text without it); every byte round-trips."""
    from segpt.data.corpus import builtin
    from segpt.data.text import read_text
    from segpt.data.tokenizer import load, train_bpe

    from . import _tokenizers

    text = read_text(texts, field=field) if texts else builtin("train")
    tokenizer = train_bpe(text, vocab)
    codec = load(tokenizer)
    sample = [document for document, _ in zip(text, range(1000), strict=False)]
    tokens = sum(len(codec.encode(document)) for document in sample)
    place = out or _latest.RUNS / f"tokenizer-{vocab}.json"
    _tokenizers.write(place, tokenizer)
    result = {
        "out": str(place),
        "vocab": tokenizer.vocab,
        "bytes": len(tokenizer.payload),
        "bytes_per_token": sum(map(len, sample)) / max(tokens, 1),
    }
    _report.emit(
        result,
        as_json,
        [f"{place}: {result['vocab']:,} pieces, {result['bytes_per_token']:.3f} bytes per token"],
    )
