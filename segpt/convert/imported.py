"""What reading a model of others gives."""

from dataclasses import dataclass

from segpt.config.model import ModelSpec
from segpt.data.bpe.as_tokenizer import bpe_model, from_bpe
from segpt.data.bpe.model import BpeModel
from segpt.data.tokenizer import load
from segpt.errors import DataError
from segpt.values import Arrays, Tokenizer

TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Imported:
    """A model of others in our terms, with its template for chats, verbatim, if it has one."""

    spec: ModelSpec
    weights: Arrays
    tokenizer: Tokenizer
    template: bytes | None = None


def sized(tokenizer: Tokenizer, vocab: int) -> tuple[Tokenizer, int]:
    """A tokenizer with as many ids as the model has rows, the last without pieces; its start.

    Raises:
        DataError: if it has more ids than the model has rows.
    """
    if tokenizer.vocab > vocab:
        raise DataError(f"the tokenizer has {tokenizer.vocab:,} ids, the model {vocab:,} rows")
    if tokenizer.vocab < vocab:
        if tokenizer.kind not in ("bpe", "byte_fallback"):
            raise DataError(
                f"the tokenizer has {tokenizer.vocab:,} ids and the model {vocab:,} rows; only "
                "a byte-pair encoding can have ids without pieces"
            )
        tokenizer = from_bpe(_padded(bpe_model(tokenizer), vocab))
    return tokenizer, load(tokenizer).start


def _padded(model: BpeModel, vocab: int) -> BpeModel:
    import dataclasses

    missing = vocab - len(model.pieces)
    return dataclasses.replace(model, pieces=(*model.pieces, *[b""] * missing))
