"""Tokenizers of any kind as the folder that Hugging Face's ``AutoTokenizer`` opens."""

import json
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np

from segpt.data import merges, modelproto
from segpt.data.modelproto import BPE, Kind, SentencePieceModel
from segpt.errors import DataError

from .codec import build
from .model import ALWAYS, NO_PREFIX, SPACE, BpeModel, check, derive_merges
from .patterns import SPACED, WHOLE

START: Final = "<s>"
_END = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>")


def of_bytes() -> BpeModel:
    """The tokenizer of kind ``bytes``."""
    return BpeModel(
        pieces=(*(bytes([byte]) for byte in range(256)), START.encode()),
        merges=np.empty((0, 2), np.int64),
        pattern="none",
        start=256,
        control=frozenset({256}),
    )


def of_merges(payload: bytes, vocab: int) -> BpeModel:
    """One of ours, of kind ``merges``."""
    return of_sentencepiece(merges.unpack(payload, vocab))


def of_sentencepiece(model: SentencePieceModel) -> BpeModel:
    """A SentencePiece model whose ids merges by rank can give.

    Raises:
        DataError: naming what they cannot.
    """
    kinds = [piece.kind for piece in model.pieces]
    for refused, why in (
        (model.algorithm != BPE, "is not BPE"),
        (bool(model.normaliser), "normalizes text"),
        (model.squeeze_spaces, "squeezes spaces"),
        (not model.byte_fallback, "has no byte fallback"),
        (model.space_as_suffix or not model.escape_spaces, "writes spaces as suffixes"),
        (Kind.USER_DEFINED in kinds, "has pieces of users"),
    ):
        if refused:
            raise DataError(
                f"this SentencePiece model {why}, which a tokenizer.json of merges cannot say; "
                "give its .model file to the other tool"
            )
    pieces = [_spelled(piece.text, piece.kind) if piece.text else b"" for piece in model.pieces]
    byte_ids = {pieces[i]: i for i, kind in enumerate(kinds) if kind is Kind.BYTE}
    control = [i for i, k in enumerate(kinds) if k in (Kind.CONTROL, Kind.UNKNOWN, Kind.UNUSED)]
    texts = {piece.text: i for i, piece in enumerate(model.pieces) if piece.kind is Kind.CONTROL}
    start = texts.get(model.start, texts.get(model.end))
    if start is None or len(byte_ids) != 256:
        raise DataError("this SentencePiece model has no start, or not all 256 bytes")
    normal = [i for i, kind in enumerate(kinds) if kind is Kind.NORMAL]
    order = sorted(normal, key=lambda i: (-model.pieces[i].score, i))
    ranked = derive_merges({pieces[i]: rank for rank, i in enumerate(order)})
    made = BpeModel(
        pieces=tuple(pieces),
        merges=np.array(order, dtype=np.int64)[ranked].reshape(-1, 2),
        pattern=WHOLE,
        start=start,
        control=frozenset(control),
        byte_tokens=tuple(byte_ids[bytes([byte])] for byte in range(256)),
        prefix=ALWAYS if model.dummy_prefix else NO_PREFIX,
    )
    check(made)
    return made


def folder(model: BpeModel, *, opens: bool = False) -> dict[str, bytes]:
    """The files of a Hugging Face folder by their names.

    By itself the exported tokenizer puts nothing in front of a text: what measures a model brings
    the start token itself. It reads the text of control tokens as these tokens, as all of its kind
    do. One that ``opens`` a text puts the start there, and reads the text of control tokens as
    text, as segpt does.

    Raises:
        DataError: if the tokenizers library refuses the model.
    """
    start = model.token_text(model.start)
    control = [model.token_text(i) for i in sorted(model.control) if model.pieces[i]]
    end = model.token_text(end_of(model))
    special = {"bos_token": start, "eos_token": end}
    config: dict[str, str | bool | int] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "model_max_length": 1_000_000_000,
    }
    if opens:
        config |= {"add_bos_token": True, "split_special_tokens": True}
    return {
        "tokenizer.json": _tokenizer_json(model, control, start if opens else None).encode(),
        "tokenizer_config.json": _json(config | special),
        "special_tokens_map.json": _json(special),
    }


def end_of(model: BpeModel) -> int:
    """The id that ends a text for other tools: a control token with a usual name, or the start."""
    ids = {model.token_text(i): i for i in model.control if model.pieces[i]}
    return next((ids[text] for text in _END if text in ids), model.start)


def _tokenizer_json(model: BpeModel, control: Iterable[str], start: str | None) -> str:
    from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, processors

    library = build(model, control=True)
    library.add_special_tokens([AddedToken(text, normalized=False) for text in control])
    if start is not None:
        library.post_processor = processors.TemplateProcessing(
            single=[start, "$A"], pair=[start, "$A", "$B:1"], special_tokens=[(start, model.start)]
        )
    if not model.fallback:
        library.decoder = decoders.ByteLevel()
        if model.normalizer:
            library.normalizer = normalizers.NFC()
        return library.to_str(pretty=True)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(" ", 1, 0)] if model.prefix else []
    library.decoder = decoders.Sequence([*steps, *strip])
    if model.prefix == ALWAYS:
        replace = normalizers.Replace(" ", SPACE)
        library.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
    elif model.prefix:
        library.normalizer = None
        library.pre_tokenizer = pre_tokenizers.Metaspace(
            SPACE, prepend_scheme="first", split=model.pattern == SPACED
        )
    return library.to_str(pretty=True)


def of_model_file(payload: bytes) -> BpeModel:
    """A SentencePiece ``.model`` file, as :func:`of_sentencepiece` takes it."""
    return of_sentencepiece(modelproto.read(payload))


def _spelled(text: str, kind: Kind) -> bytes:
    if kind is Kind.BYTE:
        return bytes([int(text[1:-1], 16)])
    return (text.replace(SPACE, " ") if kind is Kind.NORMAL else text).encode()


def _json(table: Mapping[str, str | bool | int]) -> bytes:
    return json.dumps(table, indent=2, ensure_ascii=False).encode() + b"\n"
