"""What a tokenizer is and how it cuts a text, in figures."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from segpt.config.base import PlainSpec, spec
from segpt.errors import DataError
from segpt.values import Tokenizer

from .bpe import export
from .bpe.as_tokenizer import bpe_model
from .bpe.codec import BpeCodec
from .bpe.model import BpeModel
from .tokenizer import load


@spec
class TokenizerFacts(PlainSpec):
    """A tokenizer in figures.

    Attributes:
        kind: how it is stored.
        vocab: its ids.
        payload: bytes of its payload.
        start: the id that begins a document.
        start_text: the text of that token, empty where it has none.
        special: the texts of tokens that spell nothing.
        pattern: how text is cut into words, empty for kinds that do not say.
        normalizer: what the original does to text first, and this does not.
        lossless: whether any bytes survive.
        missing: bytes that no id spells alone.
        by_length: how many ids spell 1, 2, 3, ... bytes; the last number is of all longer ones.
        longest: bytes of the longest piece.
    """

    kind: str
    vocab: int
    payload: int
    start: int
    start_text: str
    special: tuple[str, ...]
    pattern: str
    normalizer: str
    lossless: bool
    missing: tuple[int, ...]
    by_length: tuple[int, ...]
    longest: int


@spec
class TextFacts(PlainSpec):
    """How a tokenizer cuts a text.

    ``refused`` counts documents that it cannot spell, which are in no other figure. ``canonical``
    is the share of documents of two tokens or more whose first half, cut between tokens, is
    encoded as the same ids when it stands alone; where it is not, a prompt that ends there means
    other tokens than the text did.
    """

    documents: int
    refused: int
    bytes: int
    tokens: int
    bytes_per_token: float
    tokens_per_word: float
    canonical: float
    first_refusal: str


LENGTHS = 16  # the longest length that is counted for itself


def facts(tokenizer: Tokenizer) -> TokenizerFacts:
    """What a tokenizer is.

    Raises:
        DataError: if its payload is damaged.
    """
    codec = load(tokenizer)
    model = codec.model if isinstance(codec, BpeCodec) else None
    counts = Counter(np.minimum(codec.sizes[codec.sizes > 0], LENGTHS + 1).tolist())
    special = [] if model is None else [model.token_text(i) for i in sorted(model.control)]
    return TokenizerFacts(
        kind=tokenizer.kind,
        vocab=tokenizer.vocab,
        payload=len(tokenizer.payload),
        start=codec.start,
        start_text="" if model is None else model.token_text(model.start),
        special=tuple(text for text in special if text),
        pattern="" if model is None else model.pattern,
        normalizer="" if model is None else model.normalizer,
        lossless=codec.lossless,
        missing=() if model is None else model.missing,
        by_length=tuple(counts[length] for length in range(1, LENGTHS + 2)),
        longest=int(codec.sizes.max()),
    )


def measure(tokenizer: Tokenizer, documents: Iterable[bytes]) -> TextFacts:
    """How a tokenizer cuts documents; words are what white space separates.

    Raises:
        DataError: if its payload is damaged, or it counts other bytes than a document has.
    """
    codec = load(tokenizer)
    read = size = tokens = words = halves = same = 0
    refusals: list[str] = []
    for number, document in enumerate(documents, 1):
        read += 1
        try:
            ids = codec.encode(document)
        except DataError as error:
            refusals.append(f"document {number}: {error}")
            continue
        spelled = codec.decode(ids)
        if codec.lossless and (spelled != document or codec.sizes[ids].sum() != len(document)):
            raise DataError(f"document {number} does not come back from its tokens")
        previous = np.concatenate([[codec.start], ids])[:-1].astype(np.int64)
        size += int(codec.piece_bytes(previous, ids).sum())
        tokens += len(ids)
        words += len(document.split())
        if len(ids) > 1:
            halves += 1
            same += _stands_alone(tokenizer, ids[: len(ids) // 2].tolist())
    return TextFacts(
        documents=read,
        refused=len(refusals),
        bytes=size,
        tokens=tokens,
        bytes_per_token=size / max(tokens, 1),
        tokens_per_word=tokens / max(words, 1),
        canonical=same / max(halves, 1),
        first_refusal=refusals[0] if refusals else "",
    )


def as_bpe(tokenizer: Tokenizer) -> BpeModel:
    """A tokenizer of any kind as merges by rank, for other tools.

    Raises:
        DataError: if it is of a kind that these cannot express.
    """
    match tokenizer.kind:
        case "bytes":
            return export.of_bytes()
        case "merges":
            return export.of_merges(tokenizer.payload, tokenizer.vocab)
        case "sentencepiece":
            return export.of_model_file(tokenizer.payload)
        case _:
            return bpe_model(tokenizer)


def _stands_alone(tokenizer: Tokenizer, ids: list[int]) -> bool:
    """Whether what ids spell encodes as them, a space that was put before the text left out."""
    codec = load(tokenizer)
    first = int(codec.sizes[ids[0]] - codec.piece_bytes([codec.start], [ids[0]])[0])
    try:
        return codec.encode(codec.decode(ids)[first:]).tolist() == ids
    except DataError:
        return False
