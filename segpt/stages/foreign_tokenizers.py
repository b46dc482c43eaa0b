"""Tokenizers of others: taken over from their files, and written for their tools."""

import os
import re
from pathlib import Path

from segpt.atomic import new_directory
from segpt.data.bpe import export, files
from segpt.data.bpe.as_tokenizer import from_bpe
from segpt.data.tokenizer_facts import as_bpe
from segpt.errors import DataError
from segpt.values import Tokenizer

from .json_files import read_json
from .tokenizers import KNOWN, open_tokenizer

_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")


def open_foreign(path: Path, start: str | None = None) -> Tokenizer:
    """The byte-pair encoding of a folder, a ``tokenizer.json`` or a rank file.

    Args:
        path: where it is.
        start: the text or id of the token that begins a document, instead of what it says.

    Raises:
        DataError: if it is damaged, or one of its components is not known.
    """
    if path.is_dir():
        return from_bpe(files.from_folder(path, start))
    if path.suffix.lower() == ".tiktoken":
        return from_bpe(files.from_ranks(path, start=start))
    return from_bpe(files.from_json(path, start))


def convert_tokenizer(
    source: str, *, start: str | None = None, pattern: str | None = None
) -> Tokenizer:
    """The tokenizer of others that ``source`` names, with another start or pattern if asked for.

    Args:
        source: a Hugging Face folder or its ``tokenizer.json``, the name of a model in the local
            cache, a folder with GPT-2's two files, a rank file of tiktoken, or whatever
            :func:`open_tokenizer` takes.
        start: the text or id of the token that begins a document.
        pattern: how a rank file's text is cut into words.

    Raises:
        SegptError: if it names none of these, or what it names is damaged or not known.
    """
    path = Path(source)
    if source != "bytes" and not path.exists() and _HUB.fullmatch(source):
        path = _cached(source)
    if path.suffix.lower() == ".tiktoken" and path.is_file():
        return from_bpe(files.from_ranks(path, pattern, start=start))
    if pattern is not None:
        raise DataError(f"{source}: no rank file, so it says itself how text is cut (no --pattern)")
    if path.is_dir() and files.is_folder(path):
        return open_foreign(path, start)
    if path.suffix.lower() == ".json" and path.is_file() and not _is_ours(path):
        return open_foreign(path, start)
    if start is not None:
        raise DataError(f"{source}: says itself what begins a document (no --start)")
    return open_tokenizer(source)


def export_tokenizer(out: Path, tokenizer: Tokenizer) -> list[str]:
    """Write a Hugging Face folder of a tokenizer, which is new or empty before.

    Returns:
        The names of its files.

    Raises:
        DataError: if the tokenizer is of a kind that such a folder cannot express, or ``out`` is
            there already.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out}: is there and not empty; choose a new folder with --out")
    contents = export.folder(as_bpe(tokenizer))
    with new_directory(out) as directory:
        for name, data in contents.items():
            (directory / name).write_bytes(data)
    return list(contents)


def _cached(name: str) -> Path:
    """The folder of a model in the local cache of Hugging Face; nothing is downloaded."""
    root = os.environ.get("HF_HUB_CACHE") or Path(
        os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface", "hub"
    )
    snapshots = Path(root) / f"models--{name.replace('/', '--')}" / "snapshots"
    whole = [path.parent for path in snapshots.glob(f"*/{files.NAME}")]
    if not whole:
        raise DataError(f"{name}: no such file, and no tokenizer of this name in {root}; {KNOWN}")
    return max(whole, key=lambda path: path.stat().st_mtime)


def _is_ours(path: Path) -> bool:
    table = read_json(path, "tokenizer")
    return isinstance(table, dict) and "payload" in table
