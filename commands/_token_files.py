"""``segpt data inspect`` and ``segpt data link``: files of ids that other programs wrote."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from segpt import __version__
from segpt.data.sources import shown
from segpt.errors import DataError
from segpt.workspace import newest

from . import _options, _report
from ._remember import remember

if TYPE_CHECKING:
    from segpt.values import Tokenizer, Tokens

ids = click.option(
    "--ids",
    type=click.Choice(["uint16", "uint32", "int32", "int64"]),
    help="What the ids of a file without a header are.",
)


@click.command("inspect")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@ids
@_options.as_json
def inspect_command(files: tuple[Path, ...], ids: str | None, as_json: bool) -> None:
    """Say what FILES of ids are: shards of other programs (.bin) or arrays of numpy (.npy)."""
    from segpt.data.token_files import open_token_file

    rows: list[dict[str, object]] = []
    for path in files:
        tokens = open_token_file(path, ids)
        least, most = tokens.span()
        rows.append(
            {
                "file": shown(path),
                "form": tokens.form,
                "ids": str(tokens.ids.dtype),
                "tokens": len(tokens.ids),
                "first": int(tokens.ids[0]),
                "smallest": least,
                "largest": most,
            }
        )
    lines = [
        f"{row['file']}: {row['form']}, {row['tokens']:,} ids of {row['ids']}, from "
        f"{row['smallest']} to {row['largest']}, the first is {row['first']}"
        for row in rows
    ]
    _report.emit({"files": rows}, as_json, lines)


@click.command("link")
@click.option(
    "--train",
    multiple=True,
    required=True,
    metavar="PATTERN",
    help="Files to train on, such as 'fineweb_train_*.bin', in quotes. May be repeated.",
)
@click.option(
    "--validation",
    multiple=True,
    metavar="PATTERN",
    help="Files to validate on.  [default: x_val_* beside x_train_*]",
)
@click.option(
    "--tokenizer",
    help="What made the ids: all that `segpt data prepare` takes, or a folder of Hugging Face.",
)
@click.option(
    "--start", metavar="TEXT|ID", help="The token that begins a document, if not the tokenizer's."
)
@ids
@click.option(
    "--begin-shard",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Which training file comes first; those before it come last.",
)
@_options.out("The directory to write.  [default: runs/data/NAME]")
@_options.as_json
def link_command(
    train: tuple[str, ...],
    validation: tuple[str, ...],
    tokenizer: str | None,
    start: str | None,
    ids: str | None,
    begin_shard: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Make a text of files of ids that other programs wrote, without copying them.

    The files are read once, and are to stay where they are: what is written refers to them. Known
    are the .bin shards of modded-nanogpt, Parameter Golf and llm.c, .npy arrays of numpy, and .bin
    files without a header.
    """
    from segpt.data.tokens import overlap
    from segpt.stages import link, prepare

    if tokenizer is None:
        raise DataError(
            "what bytes the ids stand for only their tokenizer knows; name it with --tokenizer"
        )
    known = _tokenizer(tokenizer, start)
    files = link.rotated(link.matched(train), begin_shard)
    held = link.matched(validation) if validation else link.held_out_beside(files)
    source = {
        "segpt": __version__,
        "linked": [[str(path.resolve()) for path in paths] for paths in (files, held)],
        "ids": ids,
        "tokenizer": known.fingerprint,
    }
    if out is None:
        out = prepare.place_for(newest.RUNS / "data" / place_name(files[0]), source)
    link.check_place(out, [*files, *held])
    _report.notice(f"text: {described(files)}; validation: {described(held)}")
    total = sum(path.stat().st_size for path in [*files, *held])
    done = 0
    with _report.Bar("read ids") as bar:

        def report(size: int) -> None:
            nonlocal done
            done += size
            bar(done / total)

        splits = link.link(files, held, known, out, report, id_type=ids, source=source)
    remember("data", out)
    if shared := overlap(*splits).size:
        _report.notice(
            f"{shared:,} documents are in both parts; a model that is trained on them cannot be "
            "scored on them"
        )
    show_splits(out, splits, as_json)


def _tokenizer(name: str, start: str | None) -> "Tokenizer":
    from segpt.stages.foreign_tokenizers import convert_tokenizer

    return convert_tokenizer(name, start=start)


def described(files: Sequence[Path]) -> str:
    """Files for people: how many and how large."""
    size = sum(path.stat().st_size for path in files)
    name = shown(files[0]) if len(files) == 1 else f"{len(files):,} files from {shown(files[0])} on"
    return f"{name} ({size:,} bytes)"


def place_name(path: Path) -> str:
    """What the directory of a text is called: its name up to the first dot, in plain letters."""
    name = path.resolve().name.lstrip(".").split(".")[0]
    name = re.sub(r"[^\w-]+", "-", name.encode("utf-8", "replace").decode()).strip("-") or "text"
    return f"my-{name}" if name.startswith("builtin") else name


def show_splits(out: Path, splits: "Iterable[Tokens]", as_json: bool) -> None:
    """Print what the splits of a text hold."""
    import numpy as np

    rows: dict[str, dict[str, object]] = {}
    lines = [shown(out)]
    for tokens in splits:
        documents = int(tokens.documents.size)
        repeated = documents - int(np.unique(tokens.documents).size)
        rows[tokens.split] = {
            "tokens": tokens.count,
            "bytes": tokens.bytes,
            "documents": documents,
            "repeated": repeated,
            "vocab": tokens.tokenizer.vocab,
            "digest": tokens.digest,
        }
        lines.append(
            f"{tokens.split}: {documents:,} documents, {tokens.bytes:,} bytes, "
            f"{tokens.count:,} tokens"
            + (f"; {repeated:,} documents repeat an earlier one" if repeated else "")
        )
    result = rows["train"] | {"validation": rows["validation"], "out": shown(out)}
    _report.emit(result, as_json, lines)
