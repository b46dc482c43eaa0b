"""Byte-pair encodings of others at work: encoding by the `tokenizers` library, the rest ours."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segpt.data.sentencepiece import within
from segpt.errors import DataError

from .model import ABSENT, SPACE, BpeModel
from .patterns import PATTERNS, SPACED

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

Ids = NDArray[np.uint32]

BLOCK: Final = 2**15  # characters that the library gets at once where words allow it

_REMEDY = "use a lossless one (segpt tokenizer train)"
_INVALID = re.compile(r"([\udc80-\udcff]+)")  # bytes that are no UTF-8, as Python shows them
_INVALID_OR_SIGN = re.compile(rf"([\udc80-\udcff{SPACE}]+)")
_BORDER = re.compile(r"(?<=\S) (?=\S)")  # where each pattern begins a word


class BpeCodec:
    """A model at work.

    The text of a control token in a document is encoded as the text that it is, never as the
    token. A ``lossless`` model gives back any bytes: those that are no UTF-8 become the ids of
    single bytes. Other models refuse what they would change.
    """

    def __init__(self, model: BpeModel) -> None:
        """Load ``model`` into the library.

        Raises:
            DataError: if the library refuses it, or is not installed.
        """
        self.model = model
        self.lossless, self.exact = model.lossless, True
        self.vocab = len(model.pieces)
        self.start = model.start
        self._library = build(model)
        self._spelled = [b"" if i in model.control else p for i, p in enumerate(model.pieces)]
        self.sizes = np.array([len(spelled) for spelled in self._spelled], dtype=np.int64)
        self._bytes = np.array([i if i is not None else 0 for i in model.byte_ids], np.uint32)
        self._boundary = np.zeros(self.vocab, dtype=bool)
        self._boundary[sorted(model.control)] = True
        self._leads = np.array(
            [bool(model.prefix) and spelled.startswith(b" ") for spelled in self._spelled]
        )
        cut = model.pattern != "none"
        self._cuts = cut and not any(b" " in model.pieces[i] for i in model.added)
        self._escaped = _INVALID_OR_SIGN if model.fallback else _INVALID

    def encode(self, document: bytes) -> Ids:
        """The ids of a document, without the start.

        Raises:
            DataError: if the model is not lossless and its ids would not spell the document.
        """
        if self.lossless:
            return self._encode_exactly(document)
        try:
            text = document.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"a document is not UTF-8 ({error}), which this tokenizer cannot spell; {_REMEDY}"
            ) from None
        ids = self._pieces(self._prefixed(text))
        spelled = self.decode(ids)
        wanted = b" " + document if self.model.prefix and document else document
        if spelled != wanted:
            raise DataError(f"{self._lost(spelled, wanted)}; {_REMEDY}")
        return ids

    def decode(self, ids: ArrayLike) -> bytes:
        """What the ids spell; control ids spell nothing.

        Raises:
            DataError: if an id is outside the vocabulary.
        """
        return b"".join([self._spelled[i] for i in within(ids, self.vocab).tolist()])

    def piece_bytes(self, previous: ArrayLike, ids: ArrayLike) -> NDArray[np.int64]:
        """The bytes that each id spells after the id before it, of the same shape.

        Where the tokenizer puts a space before a text, that space does not count: it is the
        leading one of the piece after a control id.
        """
        counted: NDArray[np.int64] = self.sizes[np.asarray(ids)]
        return counted - (self._leads[np.asarray(ids)] & self._boundary[np.asarray(previous)])

    def _prefixed(self, text: str) -> str:
        if not text or not self.model.prefix:
            return text
        absent = self.model.prefix == ABSENT and text.startswith((" ", SPACE))
        return text if absent else " " + text

    def _encode_exactly(self, document: bytes) -> Ids:
        parts = [np.empty(0, np.uint32)]
        text = document.decode("utf-8", "surrogateescape")
        for number, part in enumerate(self._escaped.split(text)):
            if number % 2:
                parts.append(self._spell(part.encode("utf-8", "surrogateescape")))
            else:
                parts.append(self._pieces(part))
        ids = np.concatenate(parts)
        return ids if self.decode(ids) == document else self._spell(document)

    def _pieces(self, text: str) -> Ids:
        blocks = list(_blocks(text)) if self._cuts else [text]
        encoded = self._library.encode_batch_fast(blocks, add_special_tokens=False)
        parts = [np.array(block.ids, dtype=np.uint32) for block in encoded]
        return np.concatenate([np.empty(0, np.uint32), *parts])

    def _spell(self, raw: bytes) -> Ids:
        return self._bytes[np.frombuffer(raw, dtype=np.uint8)]

    def _lost(self, spelled: bytes, wanted: bytes) -> str:
        """What of a text does not come back."""
        if missing := sorted(set(wanted).intersection(self.model.missing)):
            where = wanted.index(missing[0])
            around = wanted[max(0, where - 20) : where + 20].decode("utf-8", "replace")
            return f"this tokenizer has no piece for the byte 0x{missing[0]:02x} (in {around!r})"
        pairs = enumerate(zip(spelled, wanted, strict=False))
        where = next((i for i, (a, b) in pairs if a != b), min(len(spelled), len(wanted)))
        around = wanted[max(0, where - 10) : where + 20].decode("utf-8", "replace")
        return f"this tokenizer does not give back {around!r}"


def build(model: BpeModel, *, control: bool = False) -> "Library":
    """The model as an object of the `tokenizers` library; ``control`` also names control tokens.

    Raises:
        DataError: if the library refuses it, or is not installed.
    """
    try:
        from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
    except ImportError as error:
        raise DataError(
            f"this tokenizer needs the tokenizers package ({error}): pip install tokenizers"
        ) from None
    hidden = frozenset() if control else model.control
    ids = [i for i, piece in enumerate(model.pieces) if piece and i not in hidden]
    vocab = {model.token_text(i): i for i in ids}
    if len(vocab) != len(ids):
        raise DataError("a control token has the text of another piece; this cannot be exported")
    texts = {i: text for text, i in vocab.items()}
    pairs = [(texts[left], texts[right]) for left, right in model.merges.tolist()]
    try:
        library = Tokenizer(
            models.BPE(
                vocab=vocab,
                merges=pairs,
                byte_fallback=model.fallback,
                ignore_merges=model.whole_words,
            )
        )
    except Exception as error:  # noqa: BLE001 - the library raises Exception itself
        raise DataError(f"the tokenizers library refuses this tokenizer: {error}") from None
    if model.fallback:
        library.normalizer = normalizers.Replace(" ", SPACE)
        if model.pattern == SPACED:
            library.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "never", split=True)
    else:
        library.pre_tokenizer = pre_tokenizers.Sequence(
            [
                *map(_step, PATTERNS[model.pattern]),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    added = [AddedToken(texts[i], special=False, normalized=False) for i in sorted(model.added)]
    library.add_tokens(added)
    return library


def _step(step: str) -> "object":
    from tokenizers import Regex, pre_tokenizers

    if step in ("digit", "digits"):
        return pre_tokenizers.Digits(individual_digits=step == "digit")
    return pre_tokenizers.Split(Regex(step), behavior="isolated")


def _blocks(text: str) -> Iterator[str]:
    """``text`` in blocks that encode as the whole does."""
    start = 0
    while len(text) - start > BLOCK:
        border = _BORDER.search(text, start + BLOCK)
        if border is None:
            break
        yield text[start : border.start()]
        start = border.start()
    if start < len(text):
        yield text[start:]
