"""Tokenizers by name: a file, or anything that was made with one."""

import base64
import os
import re
from pathlib import Path

from segpt.artifact import container, frame
from segpt.artifact.reader import open_artifact
from segpt.atomic import new_directory
from segpt.data import manifest
from segpt.data.bpe import export, files
from segpt.data.tokenizer import BYTES, from_bpe, from_model_file, load
from segpt.data.tokenizer_facts import as_bpe
from segpt.errors import DataError, SegptError
from segpt.values import Tokenizer

from .checkpoint_io import read_tokenizer
from .json_files import read_json, write_json
from .run_directory import kind_of, newest_checkpoint

_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")

KNOWN = (
    "name 'bytes', a SentencePiece .model, the .json of `segpt tokenizer train`, a directory of "
    "`segpt data prepare`, a run, a checkpoint, a quantized model or an artifact, a folder with a "
    "tokenizer.json, or a .tiktoken file"
)


def open_tokenizer(source: str) -> Tokenizer:
    """The tokenizer that ``source`` names.

    Args:
        source: ``bytes``; a SentencePiece ``.model``; the JSON of :func:`write_tokenizer`; a
            Hugging Face folder or its ``tokenizer.json``; a ``.tiktoken`` file that is named after
            its encoding; or the path of a prepared text, a run, a checkpoint, a quantized model or
            an artifact, for the tokenizer that was used for it.

    Raises:
        SegptError: if it names none of these, or what it names is damaged.
    """
    if source == "bytes":
        return BYTES
    path = Path(source)
    if path.is_dir():
        return _of_directory(path)
    if path.suffix.lower() == ".json":
        return _of_json(path)
    if not path.exists():
        raise DataError(f"{path}: no such tokenizer; {KNOWN}")
    if not path.is_file():
        raise DataError(f"{path}: a pipe or a device; {KNOWN}")
    if path.suffix.lower() == ".model":
        return from_model_file(path)
    if path.suffix.lower() == ".tiktoken":
        return from_bpe(files.from_ranks(path))
    return _of_file(path)


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
    if not path.exists() and _HUB.fullmatch(source):
        path = _cached(source)
    if path.suffix.lower() == ".tiktoken" and path.is_file():
        return from_bpe(files.from_ranks(path, pattern, start=start))
    if pattern is not None:
        raise DataError(f"{source}: no rank file, so it says itself how text is cut (no --pattern)")
    if path.is_dir() and files.is_folder(path):
        return from_bpe(files.from_folder(path, start))
    if path.suffix.lower() == ".json" and path.is_file() and not _is_ours(path):
        return from_bpe(files.from_json(path, start))
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


def write_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer as JSON."""
    payload = base64.b64encode(tokenizer.payload).decode()
    write_json(path, {"kind": tokenizer.kind, "vocab": tokenizer.vocab, "payload": payload})


def _of_json(path: Path) -> Tokenizer:
    table = read_json(path, "tokenizer")
    if isinstance(table, dict) and "model" in table and "payload" not in table:
        return from_bpe(files.from_json(path))
    try:
        payload = base64.b64decode(table["payload"], validate=True)
        tokenizer = Tokenizer(str(table["kind"]), int(table["vocab"]), payload)
        load(tokenizer)
    except (KeyError, TypeError, ValueError, OverflowError, DataError) as error:
        why = f" ({error})" if isinstance(error, DataError) else ""
        raise DataError(f"{path}: not a tokenizer of `segpt tokenizer train`{why}") from None
    return tokenizer


def _of_directory(path: Path) -> Tokenizer:
    for place in (path / "train", path):
        if (place / manifest.NAME).is_file():
            return manifest.read(place)[1]
    if files.is_folder(path) and not (path / "tokenizer.bin").is_file():
        return from_bpe(files.from_folder(path))
    try:
        quantized = kind_of(path) == "quantized"
        return read_tokenizer(path if quantized else newest_checkpoint(path))
    except SegptError as error:
        raise DataError(f"{path}: no tokenizer in this directory ({error}); {KNOWN}") from error


def _of_file(path: Path) -> Tokenizer:
    """Of an artifact, or of a SentencePiece model under any name."""
    with path.open("rb") as file:
        begins = file.read(len(frame.MAGIC))
    if begins != frame.MAGIC and path.suffix.lower() != ".segpt":
        return from_model_file(path)
    opened = open_artifact(container.load(path))
    head = opened.header
    return Tokenizer(head.tokenizer, head.vocab, opened.section("tokenizer"))
