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
    from segpt.data.tokenizer_facts import TokenizerFacts
    from segpt.values import Tokenizer


@click.group("tokenizer", cls=_options.CommandGroup)
def command() -> None:
    """Train, take over, compare and export tokenizers."""


@command.command("train")
@click.argument("texts", nargs=-1, type=click.Path(path_type=Path), metavar="[TEXT]...")
@click.option(
    "--vocab",
    type=click.IntRange(min=1),
    help="How many pieces.  [default: 4096, or fewer for less than 1 MB of text]",
)
@click.option("--superbpe", is_flag=True, help="Go on across words, as SuperBPE does.")
@click.option(
    "--transition",
    type=click.IntRange(min=1),
    help="With --superbpe, how many pieces stay within words.  [default: nine tenths]",
)
@click.option(
    "--pattern", help="With --superbpe, how text is cut into words until then.  [default: gpt2]"
)
@click.option("--field", default="text", show_default=True, help=FIELD)
@_options.out("The JSON file to write.  [default: runs/tokenizer-VOCAB.json]")
@_out.force
@_options.as_json
def train_command(
    texts: tuple[Path, ...],
    vocab: int | None,
    superbpe: bool,
    transition: int | None,
    pattern: str | None,
    field: str,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Train byte-pair encoding on TEXT (the built-in text without it); every byte round-trips."""
    from segpt.data.bpe.superbpe import PATTERN, train_superbpe
    from segpt.data.corpus import builtin
    from segpt.data.text import read_text
    from segpt.data.tokenizer import load, train_bpe
    from segpt.stages.tokenizers import write_tokenizer

    if not superbpe and (transition is not None or pattern is not None):
        raise click.UsageError("--transition and --pattern need --superbpe")
    if out is not None:
        _out.check_file(out, lambda path: _at(path) is not None, forced=force)
    text = read_text(texts, field=field, notice=_report.notice) if texts else builtin("train")
    if superbpe:
        tokenizer = train_superbpe(text, vocab, transition=transition, pattern=pattern or PATTERN)
    else:
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


SOURCE = (
    "SOURCE is a Hugging Face folder or its tokenizer.json, the name of a model in the local "
    "cache, a folder with vocab.json and merges.txt, a .tiktoken file, or whatever --tokenizer "
    "takes."
)


@command.command("convert", epilog=SOURCE)
@click.argument("source")
@click.option("--start", help="The token that begins documents.  [default: what SOURCE says]")
@click.option("--pattern", help="How the text of a .tiktoken file is cut into words.")
@_options.out("The JSON file to write.  [default: runs/tokenizer-VOCAB.json]")
@_out.force
@_options.as_json
def convert_command(
    source: str,
    start: str | None,
    pattern: str | None,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Take over a byte-pair encoding of others, with the same ids."""
    from segpt.data.tokenizer_facts import facts
    from segpt.stages.foreign_tokenizers import convert_tokenizer
    from segpt.stages.tokenizers import write_tokenizer

    if out is not None:
        _out.check_file(out, lambda path: _at(path) is not None, forced=force)
    tokenizer = convert_tokenizer(source, start=start, pattern=pattern)
    shape = facts(tokenizer)
    place = out or _vacant(newest.RUNS / f"tokenizer-{tokenizer.vocab}.json", tokenizer)
    write_tokenizer(place, tokenizer)
    result = {"out": shown(place), "vocab": shape.vocab, "bytes": shape.payload}
    result |= {"start": shape.start, "lossless": shape.lossless}
    line = f"{result['out']}: {shape.vocab:,} ids, documents begin with {_token(shape)}"
    _report.emit(result, as_json, [line, f"{_keeps(shape)}"])


@command.command("show", epilog=SOURCE)
@click.argument("source")
@_options.as_json
def show_command(source: str, as_json: bool) -> None:
    """What a tokenizer is: its kind, its start, what it cannot spell."""
    from segpt.data.tokenizer_facts import LENGTHS, facts
    from segpt.stages.foreign_tokenizers import convert_tokenizer

    shape = facts(convert_tokenizer(source))
    lengths = [f"{n}: {count:,}" for n, count in enumerate(shape.by_length, 1) if count]
    if shape.by_length[LENGTHS]:
        lengths[-1] = f"more: {shape.by_length[LENGTHS]:,}"
    names = ", ".join(shape.special[:12]) + (" ..." if len(shape.special) > 12 else "")
    lines = [
        f"kind       {shape.kind}, {shape.vocab:,} ids, {shape.payload:,} bytes stored",
        f"start      {_token(shape)}",
        f"lossless   {_keeps(shape)}",
        f"pieces     by bytes: {', '.join(lengths)}; the longest has {shape.longest:,}",
    ]
    if shape.pattern:
        lines.append(f"words      {shape.pattern}")
    if shape.normalizer:
        lines.append(f"original   normalizes to {shape.normalizer}; here text stays as it is")
    if names:
        lines.append(f"control    {len(shape.special):,}: {names}")
    _report.emit(shape, as_json, lines)


@command.command("compare", epilog=SOURCE)
@click.argument("sources", nargs=2, metavar="A B")
@click.argument("texts", nargs=-1, type=click.Path(path_type=Path), metavar="[TEXT]...")
@click.option("--field", default="text", show_default=True, help=FIELD)
@_options.as_json
def compare_command(
    sources: tuple[str, str], texts: tuple[Path, ...], field: str, as_json: bool
) -> None:
    """How two tokenizers cut TEXT (the built-in validation text without it)."""
    from segpt.data.corpus import builtin
    from segpt.data.text import read_text
    from segpt.data.tokenizer_facts import measure
    from segpt.stages.foreign_tokenizers import convert_tokenizer

    text = read_text(texts, field=field, notice=_report.notice) if texts else builtin("validation")
    tokenizers = [convert_tokenizer(source) for source in sources]
    sides = [measure(tokenizer, text) for tokenizer in tokenizers]
    lines = []
    for name, tokenizer, side in zip(sources, tokenizers, sides, strict=True):
        lines.append(
            f"{shown(Path(name))}: {tokenizer.vocab:,} ids, {side.bytes_per_token:.3f} bytes per "
            f"token, {side.tokens_per_word:.3f} tokens per word, {side.canonical:.1%} of halves "
            f"canonical, {side.documents - side.refused:,} of {side.documents:,} documents exact"
        )
        lines += [f"  refused: {side.first_refusal}"] if side.refused else []
    _report.emit({"a": sides[0], "b": sides[1]}, as_json, lines)


@command.command("export", epilog=SOURCE)
@click.argument("source")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@_options.as_json
def export_command(source: str, out: Path, as_json: bool) -> None:
    """Write a tokenizer as a Hugging Face folder."""
    from segpt.stages.foreign_tokenizers import convert_tokenizer, export_tokenizer

    tokenizer = convert_tokenizer(source)
    names = export_tokenizer(out, tokenizer)
    result = {"out": shown(out), "vocab": tokenizer.vocab, "files": names}
    line = f"{result['out']}: {tokenizer.vocab:,} ids in {', '.join(names)}"
    _report.emit(result, as_json, [line])


def _token(shape: "TokenizerFacts") -> str:
    return f"{shape.start_text or 'the start'} (id {shape.start})"


def _keeps(shape: "TokenizerFacts") -> str:
    """What becomes of any bytes."""
    if shape.lossless:
        return "any bytes come back"
    if not shape.missing:
        return "no: text that does not come back is refused"
    names = " ".join(f"{byte:02x}" for byte in shape.missing)
    return f"no: text with one of {len(shape.missing)} bytes is refused: {names}"


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
