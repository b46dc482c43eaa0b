"""Tokenizers by name: a file, or anything that was made with one."""

import base64
from importlib import import_module
from pathlib import Path

from segpt.artifact import container, frame
from segpt.artifact.reader import open_artifact
from segpt.data import manifest
from segpt.data.tokenizer import BYTES, from_model_file, load
from segpt.errors import DataError, SegptError
from segpt.values import Tokenizer

from .checkpoint_io import read_tokenizer
from .json_files import read_json, write_json
from .run_directory import kind_of, newest_checkpoint

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
        return _foreign(path)
    return _of_file(path)


def write_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer as JSON."""
    payload = base64.b64encode(tokenizer.payload).decode()
    write_json(path, {"kind": tokenizer.kind, "vocab": tokenizer.vocab, "payload": payload})


def _foreign(path: Path) -> Tokenizer:
    """A byte-pair encoding of others.

    What reads it is loaded by its name: no script of a contest folder carries it.
    """
    opened: Tokenizer = import_module("segpt.stages.foreign_tokenizers").open_foreign(path)
    return opened


def _of_json(path: Path) -> Tokenizer:
    table = read_json(path, "tokenizer")
    if isinstance(table, dict) and "model" in table and "payload" not in table:
        return _foreign(path)
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
    if (path / "tokenizer.json").is_file():
        return _of_json(path / "tokenizer.json")
    if any((path / name).is_file() for name in ("merges.txt", "vocab.bpe")):
        return _foreign(path)
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
