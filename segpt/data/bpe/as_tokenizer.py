"""Byte-pair encodings of others as :class:`segpt.values.Tokenizer`, and back."""

from typing import Final

from segpt.errors import DataError
from segpt.values import Tokenizer

from . import payload
from .codec import BpeCodec
from .model import BpeModel

BYTE_LEVEL: Final = "bpe"
BYTE_FALLBACK: Final = "byte_fallback"


def bpe_model(tokenizer: Tokenizer) -> BpeModel:
    """What the payload of a byte-pair encoding of others holds.

    Raises:
        DataError: if it is damaged, or of another kind than the tokenizer says.
    """
    model = payload.unpack(tokenizer.payload, tokenizer.vocab)
    if model.fallback != (tokenizer.kind == BYTE_FALLBACK):
        raise DataError(f"damaged byte-pair encoding: it is not of kind {tokenizer.kind!r}")
    return model


def codec_of(tokenizer: Tokenizer) -> BpeCodec:
    """A byte-pair encoding of others at work.

    Raises:
        DataError: if its payload is damaged, or the tokenizers library is missing.
    """
    return BpeCodec(bpe_model(tokenizer))


def from_bpe(model: BpeModel) -> Tokenizer:
    """A byte-pair encoding of others as a tokenizer.

    Raises:
        DataError: if it is unfit.
    """
    kind = BYTE_FALLBACK if model.fallback else BYTE_LEVEL
    return Tokenizer(kind, len(model.pieces), payload.pack(model))
