"""Tokenizers of others as files: a Hugging Face folder, ranks of tiktoken, GPT-2's two files."""

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from segpt.config.base import nearest
from segpt.errors import DataError

from . import huggingface
from .model import (
    LARGEST_VOCAB,
    LONGEST,
    MOST_BYTES,
    BpeModel,
    check,
    derive_merges,
    in_letters,
)
from .patterns import LLAMA_CPP, PATTERNS, TIKTOKEN, WHOLE_WORDS

LARGEST_FILE: Final = 64 << 20
END: Final = "<|endoftext|>"
NAME: Final = "tokenizer.json"

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # of GGUF's token types


def is_folder(path: Path) -> bool:
    """Whether a directory holds a tokenizer of others."""
    return (path / NAME).is_file() or _gpt2_files(path) is not None


def from_folder(path: Path, start: str | None = None) -> BpeModel:
    """The tokenizer of a Hugging Face folder, or of one with GPT-2's two files.

    Args:
        path: a directory.
        start: the token that begins a document, instead of what the folder says.

    Raises:
        DataError: naming what is missing, damaged or not known.
    """
    if (path / NAME).is_file():
        return from_json(path / NAME, start)
    pair = _gpt2_files(path)
    if pair is None:
        raise DataError(
            f"{path}: neither {NAME} nor vocab.json with merges.txt in it; give the folder of a "
            "byte-pair encoding"
        )
    return from_gpt2(*pair, start=start)


def from_json(path: Path, start: str | None = None) -> BpeModel:
    """A ``tokenizer.json``; ``tokenizer_config.json`` beside it may name the start.

    Raises:
        DataError: naming the file and what is wrong with it.
    """
    try:
        table = _json(path)
        config = path.parent / "tokenizer_config.json"
        tokens = _config_tokens(_json(config)) if config.is_file() else []
        return huggingface.read(table, start, tokens)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def from_ranks(
    path: Path,
    pattern: str | None = None,
    special: Mapping[str, int] | None = None,
    start: str | None = None,
) -> BpeModel:
    """A rank file of tiktoken: in each line a piece in base64, and its id.

    Args:
        path: such as ``o200k_base.tiktoken``, whose name tells the pattern.
        pattern: how text is cut into words, where the name does not tell.
        special: control tokens and their ids; without any, END gets the next free id.
        start: which of them begins a document: END, or the first.

    Raises:
        DataError: naming the file and what is wrong with it.
    """
    pattern = pattern or TIKTOKEN.get(path.stem)
    try:
        if pattern not in PATTERNS:
            raise DataError(
                f"the pattern {pattern!r} of a rank file; name it with --pattern "
                f"({', '.join(PATTERNS)})"
            )
        ranks = _ranks(_bytes(path))
        control = dict(special or {END: 1 + max(ranks.values())})
        if start is not None and start not in control:
            raise DataError(f"--start: no token {start!r}; {nearest(start, control)}")
        begin = start or (END if END in control else next(iter(control)))
        size = 1 + max(*ranks.values(), *control.values())
        if size > LARGEST_VOCAB or set(control.values()) & set(ranks.values()):
            raise DataError("ids of control tokens are taken or too large")
        pieces = [b""] * size
        for piece, i in ranks.items():
            pieces[i] = piece
        for text, i in control.items():
            pieces[i] = text.encode()
        model = BpeModel(
            pieces=tuple(pieces),
            merges=derive_merges(ranks),
            pattern=pattern,
            start=control[begin],
            control=frozenset(control.values()),
            whole_words=True,
        )
        check(model)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return model


def from_gpt2(vocab: Path, merges: Path, *, start: str | None = None) -> BpeModel:
    """GPT-2's two files: pieces with their ids, and a merge in each line.

    Raises:
        DataError: naming the file and what is wrong with it.
    """
    table = _json(vocab)
    lines = _bytes(merges).decode("utf-8", "replace").split("\n")
    kept = [line for line in lines if line and not line.startswith("#version")]
    end = table.get(END) if isinstance(table, Mapping) else None
    added = [] if end is None else [{"id": end, "content": END, "special": True}]
    whole = {
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": table, "merges": kept},
    }
    try:
        return huggingface.read(whole, start)
    except DataError as error:
        raise DataError(f"{vocab}: {error}") from None


def from_gguf_fields(
    tokens: Sequence[str],
    merges: Sequence[str],
    token_types: Sequence[int],
    pre: str,
    start: int,
) -> BpeModel:
    """The byte-level BPE of a GGUF file, whose ``tokenizer.ggml.model`` is ``gpt2``.

    Args:
        tokens: ``tokenizer.ggml.tokens``.
        merges: ``tokenizer.ggml.merges``.
        token_types: ``tokenizer.ggml.token_type``.
        pre: ``tokenizer.ggml.pre``.
        start: the id that begins a document.

    Raises:
        DataError: if the name of its pre-tokenizer is not known, or the fields do not agree.
    """
    if pre not in LLAMA_CPP:
        raise DataError(f"tokenizer.ggml.pre is {pre!r}, which is not known; use another model")
    if not len(tokens) == len(token_types) <= LARGEST_VOCAB or not 0 <= start < len(tokens):
        raise DataError("tokenizer.ggml.tokens, .token_type and the start do not agree")
    unused = {i for i, kind in enumerate(token_types) if kind == UNUSED and i != start}
    model = huggingface.from_parts(
        tokens,
        merges,
        {*unused, *(i for i, kind in enumerate(token_types) if kind == CONTROL)},
        [i for i, kind in enumerate(token_types) if kind == USER_DEFINED],
        LLAMA_CPP[pre],
        start,
    )
    whole = dataclasses.replace(
        model,
        pieces=tuple(b"" if i in unused else piece for i, piece in enumerate(model.pieces)),
        control=model.control - unused,
        whole_words=pre in WHOLE_WORDS,
    )
    check(whole)
    return whole


def ranks_of(model: BpeModel) -> bytes:
    """The rank file of a byte-level model, the inverse of :func:`from_ranks` but for names."""
    order = sorted(model.normal.items(), key=lambda item: item[1])
    return b"".join(base64.b64encode(piece) + b" %d\n" % i for piece, i in order)


def letters_of(model: BpeModel) -> tuple[dict[str, int], list[str]]:
    """The contents of GPT-2's two files: pieces with their ids, and lines of merges."""
    vocab = {model.token_text(i): i for i, piece in enumerate(model.pieces) if piece}
    pairs = model.merges.tolist()
    pieces = model.pieces
    return vocab, [f"{in_letters(pieces[a])} {in_letters(pieces[b])}" for a, b in pairs]


def _gpt2_files(path: Path) -> tuple[Path, Path] | None:
    for names in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        first, second = (path / name for name in names)
        if first.is_file() and second.is_file():
            return first, second
    return None


def _bytes(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise DataError(f"{path}: {size:,} bytes; a tokenizer has at most {LARGEST_FILE:,}")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _json(path: Path) -> object:
    try:
        return json.loads(_bytes(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None


def _config_tokens(config: object) -> list[str]:
    """The texts of the tokens that begin and end texts, as a configuration names them."""
    texts: list[str] = []
    for name in ("bos_token", "eos_token"):
        value = config.get(name) if isinstance(config, Mapping) else None
        text = value.get("content") if isinstance(value, Mapping) else value
        texts += [text] if isinstance(text, str) else []
    return texts


def _ranks(data: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    total = 0
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            text, rank = line.split()
            piece, i = base64.b64decode(text, validate=True), int(rank)
        except ValueError:
            raise DataError(f"line {number} is not a piece in base64 and a rank") from None
        total += len(piece)
        if not 0 < len(piece) <= LONGEST or total > MOST_BYTES or not 0 <= i < LARGEST_VOCAB:
            raise DataError(f"line {number} has a piece or a rank that is too large")
        if piece in ranks:
            raise DataError(f"line {number} has a piece that came before")
        ranks[piece] = i
    if not ranks or len(set(ranks.values())) != len(ranks):
        raise DataError("no ranks, or a rank twice")
    return ranks
