"""Tokenizers by name or file, for the commands that take one."""

import base64
from pathlib import Path

from segpt.data.tokenizer import BYTES, from_model_file
from segpt.errors import DataError
from segpt.stages.files import read_json, write_json
from segpt.values import Tokenizer


def read(source: str) -> Tokenizer:
    """``bytes``, a SentencePiece ``.model``, or the JSON that :func:`write` made.

    Raises:
        DataError: if the file is not a tokenizer.
    """
    if source == "bytes":
        return BYTES
    path = Path(source)
    if path.suffix != ".json":
        return from_model_file(path)
    table = read_json(path, "tokenizer")
    try:
        payload = base64.b64decode(table["payload"], validate=True)
        return Tokenizer(str(table["kind"]), int(table["vocab"]), payload)
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path} is not a tokenizer made by `segpt tokenizer train`") from None


def write(path: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer as JSON."""
    payload = base64.b64encode(tokenizer.payload).decode()
    write_json(path, {"kind": tokenizer.kind, "vocab": tokenizer.vocab, "payload": payload})
