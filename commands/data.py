"""``segpt data``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import _latest, _options, _report

if TYPE_CHECKING:
    from segpt.values import Text


@click.group("data")
def command() -> None:
    """Turn text into token shards, check them, and fetch the files of benchmarks."""


@command.command("prepare")
@click.argument("texts", nargs=-1, type=click.Path(path_type=Path), metavar="[TEXT]...")
@click.option(
    "--validation",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Validation text; without it, documents are held out by their hash.",
)
@click.option(
    "--held-out",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Fraction of the documents to hold out.",
)
@click.option("--tokenizer", help="A .model or .json file, or 'bytes'.")
@click.option("--vocab", default=2048, show_default=True, help="Vocabulary to train otherwise.")
@click.option("--field", default="text", show_default=True, help="Field of jsonl and parquet.")
@_options.out("The directory to write.  [default: runs/data/NAME]")
@_options.as_json
def prepare_command(
    texts: tuple[Path, ...],
    validation: tuple[Path, ...],
    held_out: float,
    tokenizer: str | None,
    vocab: int,
    field: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Tokenize TEXT (txt, jsonl, parquet; plain, .gz, .xz or .zst; files or directories).

    Without TEXT, the built-in text: Python's own documentation.
    """
    from segpt.data.corpus import builtin
    from segpt.spec.recipe import Bpe
    from segpt.stages import prepare

    from . import _tokenizers

    if texts:
        whole, bar = _read(texts, field)
        train, held = prepare.hold_out(whole, held_out)
        if validation:
            train, held = whole, _read(validation, field)[0]
        out = out or _latest.RUNS / "data" / texts[0].name.split(".")[0]
    else:
        train, held, bar = builtin("train"), builtin("validation"), _report.Bar("tokenize")
        out = out or _latest.RUNS / "data" / f"builtin-{vocab}"
    if tokenizer is None:
        _report.notice(f"training a tokenizer of {vocab:,} pieces")
        chosen = prepare.make_tokenizer(Bpe(vocab=vocab), train)
    else:
        chosen = _tokenizers.read(tokenizer)
    with bar:
        done = prepare.prepare(
            train, held, chosen, out, lambda split, size: bar.say(f"{split}: {size:,} bytes")
        )
    _latest.remember("data", out)
    rows = {
        tokens.split: {
            "tokens": tokens.count,
            "bytes": tokens.bytes,
            "documents": int(tokens.documents.size),
            "digest": tokens.digest,
        }
        for tokens in done
    }
    result = rows["train"] | {"validation": rows["validation"], "out": str(out)}
    _report.emit(
        result,
        as_json,
        [str(out)]
        + [
            f"{split}: {row['documents']:,} documents, {row['bytes']:,} bytes, "
            f"{row['tokens']:,} tokens"
            for split, row in rows.items()
        ],
    )


def _read(paths: tuple[Path, ...], field: str) -> "tuple[Text, _report.Bar]":
    """Text, and a bar that shows how much of its files each reading has consumed."""
    from segpt.data.text import read_text, total_bytes

    bar, total = _report.Bar("read text"), max(1, total_bytes(paths))
    return read_text(paths, field=field, report=lambda done: bar(done / total)), bar


@command.command("check")
@click.argument("train", type=click.Path(path_type=Path))
@click.argument("validation", type=click.Path(path_type=Path))
@_options.as_json
def check_command(train: Path, validation: Path, as_json: bool) -> None:
    """Verify two token directories and find documents that are in both; exit 1 if there are."""
    from segpt.data.tokens import overlap, read_tokens

    shared = overlap(read_tokens(train), read_tokens(validation))
    _report.emit(
        {"overlap": int(shared.size)},
        as_json,
        [f"{shared.size} documents are in both"]
        + [f"  sha256 begins {int(value):016x}" for value in shared[:10]],
    )
    if shared.size:
        raise SystemExit(1)


@command.command("fetch")
@click.argument("name", type=click.Choice(["core"]))
@_options.out("The directory to write.  [default: runs/NAME]")
@click.option("--url", help="Another place of the archive: a URL or a file.")
@_options.as_json
def fetch_command(name: str, out: Path | None, url: str | None, as_json: bool) -> None:
    """Fetch the files of a benchmark: core, which is the 22 tasks of CORE.

    Each file is compared with the original by its SHA-256. Where there is no network, fetch the
    archive elsewhere and name it with --url.
    """
    from segpt.data import fetch

    out = out or _latest.RUNS / name
    with _report.Bar(f"fetch {name}") as bar:
        found = fetch.fetch(
            url or fetch.URL,
            out,
            report=lambda done, total: bar(done / total if total else 0, f"{done:,} bytes"),
        )
    _latest.remember(name, out)
    files = {path: source.plain() for path, source in found.sources.items()}
    others = [path for path, source in found.sources.items() if not source.verbatim]
    _report.emit(
        {"out": str(out), "sha256": found.archive, "files": files},
        as_json,
        [str(out), f"archive: SHA-256 {found.archive}"]
        + [f"{len(files) - len(others)} of {len(files)} files are the original ones"]
        + [f"  another: {path}, SHA-256 {found.sources[path].sha256}" for path in others],
    )
