"""Byte-exact tokenizers on the SentencePiece library (Kudo and Richardson 2018, 1808.06226)."""

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import sentencepiece
from numpy.typing import ArrayLike, NDArray

from segpt.errors import DataError

from . import modelproto
from .merges import FIRST_MERGE
from .modelproto import SPACE, Kind, SentencePieceModel

Ids = NDArray[np.uint32]

COVERAGE: Final = 0.9995  # of the characters of a text; the others are spelt as bytes
BLOCK: Final = 2**16  # characters that the library encodes at once, which bounds its memory

# What the library cannot tell apart or keep: bytes that are no UTF-8, which Python shows as
# lone surrogates, and the sign that the library writes for a space.
_ESCAPED = re.compile(r"([\udc80-\udcff\u2581]+)")
_WORD_START = re.compile(r"(?<! ) ")  # no piece crosses it

# The trainer skips any sentence with these: NUL and its own signs for a space and the unknown.
_RESERVED = re.compile(r"[\0\u2581\u2585]+")


def train(documents: Iterable[bytes], vocab: int, *, exact: bool = True) -> SentencePieceModel:
    """Learn a BPE vocabulary; the same documents give the same one.

    Unless ``exact``, the number of pieces is the nearest to ``vocab`` that the documents support.

    Raises:
        DataError: if the documents hold too few or too many characters for ``vocab`` pieces.
    """
    sentences = list(_sentences(documents))
    if not sentences:
        raise DataError(
            "there is no text to learn a vocabulary from; give some, or take --tokenizer bytes"
        )
    sentences.append(" ")  # a required character that never occurs ends the process
    least = _least_vocab(sentences)
    if vocab < least and exact:
        raise DataError(
            f"a vocabulary of {vocab:,} has no room for the characters of this text; ask for one "
            f"of at least {least:,} (--vocab {least})"
        )
    vocab = max(vocab, least)
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=written,
            model_type="bpe",
            vocab_size=vocab,
            hard_vocab_limit=False,
            character_coverage=COVERAGE,
            required_chars=SPACE,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            byte_fallback=True,
            unk_id=0,
            bos_id=1,
            eos_id=-1,
            pad_id=-1,
            max_sentence_length=2**30,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"no vocabulary of {vocab:,} can be learnt from this text; ask for another size with "
            "--vocab, or take --tokenizer bytes, which any text supports"
        ) from error
    model = modelproto.read(written.getvalue())
    pieces = len(model.pieces)
    if pieces != vocab and exact:
        raise DataError(
            f"this text yields only {pieces:,} of {vocab:,} pieces; give more text or ask for a "
            f"vocabulary of {pieces:,} (--vocab {pieces})"
        )
    return model


def _sentences(documents: Iterable[bytes]) -> Iterator[str]:
    for document in documents:
        yield from filter(None, _RESERVED.split(document.decode(errors="ignore")))


def _least_vocab(sentences: Iterable[str]) -> int:
    """What the trainer asks for; before 0.2.3 it ends the process when that is not met."""
    counts: Counter[str] = Counter()
    for sentence in sentences:
        counts.update(sentence)
    commonest = counts.most_common()
    covered = np.cumsum([count for _, count in commonest])
    kept = 1 + int(np.searchsorted(covered, COVERAGE * covered[-1]))
    characters = {" ", *(character for character, _ in commonest[:kept])}
    return FIRST_MERGE + len(characters)


class SentencePieceCodec:
    """A model at work.

    A model that changes nothing and can spell any byte is ``lossless``: ``decode`` gives back
    what ``encode`` was given, whatever the bytes. Other models encode as the library does, and
    may say that they cannot.
    """

    def __init__(self, model: SentencePieceModel) -> None:
        """Load ``model`` into the library.

        Raises:
            DataError: if bytes could not be counted under this model, or the library refuses it.
        """
        _check(model)
        self.lossless = self.exact = _is_lossless(model)
        self.vocab = len(model.pieces)
        self.start = _start(model)
        # Those that a chat template can name; the start of our own tokenizers has no text.
        control = [i for i, piece in enumerate(model.pieces) if piece.kind is Kind.CONTROL]
        self.special_tokens = {model.pieces[i].text: i for i in control if not self.lossless}
        self._processor = _loaded(model)
        self._spelled = [_spelled(piece) for piece in model.pieces]
        self._unknown = {i for i, p in enumerate(model.pieces) if p.kind is Kind.UNKNOWN}
        self._bytes = _byte_ids(model) if self.lossless else np.empty(0, np.uint32)
        self.sizes = np.array([len(spelled) for spelled in self._spelled], dtype=np.int64)
        self._boundary = np.array([p.kind in _SILENT for p in model.pieces])
        self._leads = np.array(
            [
                not self.lossless and p.kind not in _SILENT and p.text.startswith(SPACE)
                for p in model.pieces
            ]
        )

    def encode(self, document: bytes) -> Ids:
        """The ids of a document, without the start.

        Raises:
            DataError: if the model is not lossless and cannot spell the document.
        """
        return self._encode_exactly(document) if self.lossless else self._encode(document)

    def decode(self, ids: ArrayLike) -> bytes:
        """What the ids spell; start and control ids spell nothing.

        Raises:
            DataError: if an id is outside the vocabulary.
        """
        return b"".join([self._spelled[i] for i in within(ids, self.vocab).tolist()])

    def piece_bytes(self, previous: ArrayLike, ids: ArrayLike) -> NDArray[np.int64]:
        """The bytes that each id spells after the id before it, of the same shape.

        The leading space of a foreign piece does not count after a control id: it is the
        library's, not the text's.
        """
        counted: NDArray[np.int64] = self.sizes[np.asarray(ids)]
        return counted - (self._leads[np.asarray(ids)] & self._boundary[np.asarray(previous)])

    def _encode_exactly(self, document: bytes) -> Ids:
        parts = [np.empty(0, np.uint32)]
        text = document.decode("utf-8", "surrogateescape")
        for i, part in enumerate(_ESCAPED.split(text)):
            if i % 2:
                parts.append(self._spell(part.encode("utf-8", "surrogateescape")))
            else:
                parts += [self._pieces(block) for block in _blocks(part)]
        ids = np.concatenate(parts)
        return ids if self.decode(ids) == document else self._spell(document)

    def _encode(self, document: bytes) -> Ids:
        try:
            text = document.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"a document is not UTF-8 ({error}), which this tokenizer would count wrongly; "
                "use a lossless one (segpt tokenizer train)"
            ) from error
        ids = self._pieces(text)
        if unknown := self._unknown.intersection(ids.tolist()):
            where = int(np.flatnonzero(np.isin(ids, list(unknown)))[0])
            surface = self._processor.encode(text, out_type=str)[where]
            raise DataError(
                f"this tokenizer has no piece for {surface!r} and no byte fallback, so bytes "
                "would be counted wrongly; use a lossless one (segpt tokenizer train)"
            )
        return ids

    def _pieces(self, text: str) -> Ids:
        return np.array(self._processor.encode(text), dtype=np.uint32)

    def _spell(self, raw: bytes) -> Ids:
        return self._bytes[np.frombuffer(raw, dtype=np.uint8)]


def within(ids: ArrayLike, vocab: int) -> NDArray[np.int64]:
    """``ids`` as an array, all of them of the vocabulary.

    Raises:
        DataError: if one is not.
    """
    checked = np.asarray(ids, dtype=np.int64)
    if checked.size and not 0 <= checked.min() <= checked.max() < vocab:
        raise DataError(f"an id outside the vocabulary of {vocab}; this text has other tokens")
    return checked


def _blocks(text: str) -> Iterator[str]:
    """``text`` in blocks that encode as the whole does, if words are shorter than a block."""
    start = 0
    while start < len(text):
        border = _WORD_START.search(text, start + BLOCK, start + 2 * BLOCK)
        stop = border.start() if border else start + 2 * BLOCK
        yield text[start:stop]
        start = stop


_SILENT = {Kind.CONTROL, Kind.UNKNOWN, Kind.UNUSED}


def _spelled(piece: modelproto.VocabularyPiece) -> bytes:
    if piece.kind in _SILENT:
        return b""
    if piece.kind is Kind.BYTE:
        return bytes([int(piece.text[1:-1], 16)])
    return piece.text.replace(SPACE, " ").encode()


def _check(model: SentencePieceModel) -> None:
    if model.space_as_suffix or not model.escape_spaces:
        raise DataError("this tokenizer does not write spaces as prefixes; use another one")
    texts = {piece.text for piece in model.pieces if piece.kind is Kind.NORMAL}
    if SPACE not in texts:
        raise DataError(
            "this tokenizer has no piece for a lone space, so spaces would be counted as three "
            "bytes; use another one"
        )
    named = {f"<0x{byte:02X}>" for byte in range(256)}
    spelling = [piece.text for piece in model.pieces if piece.kind is Kind.BYTE]
    if spelling and (len(spelling) != 256 or set(spelling) != named):
        raise DataError("this tokenizer has some bytes as pieces but not all 256; use another one")


def _is_lossless(model: SentencePieceModel) -> bool:
    changes = model.normaliser or model.dummy_prefix or model.squeeze_spaces
    return model.byte_fallback and not changes and Kind.BYTE in {p.kind for p in model.pieces}


def _byte_ids(model: SentencePieceModel) -> Ids:
    ids = {piece.text: i for i, piece in enumerate(model.pieces) if piece.kind is Kind.BYTE}
    return np.array([ids[f"<0x{byte:02X}>"] for byte in range(256)], dtype=np.uint32)


def _start(model: SentencePieceModel) -> int:
    control = {p.text: i for i, p in enumerate(model.pieces) if p.kind is Kind.CONTROL}
    for name in (model.start, model.end):
        if name in control:
            return control[name]
    raise DataError(f"this tokenizer has neither {model.start} nor {model.end}; use another one")


def _loaded(model: SentencePieceModel) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=modelproto.write(model))
    except (RuntimeError, ValueError, OSError) as error:
        raise DataError(f"not a SentencePiece model: {error}") from error
