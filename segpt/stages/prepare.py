"""Text to Tokens: a directory with a training and a validation split of one tokenizer."""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from segpt.atomic import new_directory
from segpt.data.corpus import builtin
from segpt.data.tokenizer import BYTES, load, train_bpe
from segpt.data.tokens import ids, overlap, read_tokens, write_tokens
from segpt.errors import DataError
from segpt.spec.recipe import Bpe, Bytes
from segpt.values import Text, Tokenizer, Tokens

SPLITS = ("train", "validation")
Report = Callable[[str, int], None]  # split, bytes of its documents so far


def make_tokenizer(spec: Bytes | Bpe, text: Text) -> Tokenizer:
    """The tokenizer a recipe asks for, trained on ``text`` if it has to be."""
    match spec:
        case Bytes():
            return BYTES
        case Bpe(vocab=vocab):
            return train_bpe(text, vocab)


def prepare(
    train: Text,
    validation: Text,
    tokenizer: Tokenizer,
    out: Path,
    report: Report = lambda split, done: None,
) -> tuple[Tokens, Tokens]:
    """Write both splits below ``out``, whole or not at all.

    Raises:
        DataError: if a document is in both, or a split is empty.
    """
    with new_directory(out) as directory:
        written = [
            write_tokens(
                text,
                tokenizer,
                directory / split,
                split=split,
                report=partial(report, split),
            )
            for split, text in zip(SPLITS, (train, validation), strict=True)
        ]
        if (shared := overlap(*written)).size:
            raise DataError(
                f"{shared.size} documents are in both {train.name} and {validation.name}; "
                "remove them from one of the two"
            )
    return open_splits(out)


def open_splits(path: Path) -> tuple[Tokens, Tokens]:
    """The training and validation split that :func:`prepare` wrote.

    Raises:
        DataError: if they are missing or damaged.
    """
    for split in SPLITS:
        if not (path / split / "manifest.json").is_file():
            raise DataError(f"{path / split} holds no token shards; run `segpt data prepare`")
    train, validation = (read_tokens(path / split) for split in SPLITS)
    return train, validation


def builtin_splits(tokenizer: Bytes | Bpe, out: Path, report: Report) -> tuple[Tokens, Tokens]:
    """The built-in text under a recipe's tokenizer, prepared at ``out`` unless it is there."""
    if out.is_dir():
        vocab = tokenizer.vocab if isinstance(tokenizer, Bpe) else BYTES.vocab
        try:
            found = open_splits(out)
        except DataError:
            found = None  # stale or damaged: it is cheap to make again
        if found is not None and found[0].tokenizer.vocab == vocab:
            return found
    train = builtin("train")
    return prepare(train, builtin("validation"), make_tokenizer(tokenizer, train), out, report)


def hold_out(text: Text, fraction: float) -> tuple[Text, Text]:
    """Split documents by their hash, so that a document's side never depends on the others.

    Raises:
        DataError: on reading, if one side is empty.
    """

    def chosen(held: bool) -> Callable[[], Iterator[bytes]]:
        def read() -> Iterator[bytes]:
            empty = True
            for document in text:
                draw = int.from_bytes(hashlib.sha256(b"held out" + document).digest()[:8], "big")
                if (draw < fraction * 2**64) == held:
                    empty = False
                    yield document
            if empty:
                raise DataError(
                    f"{text.name} has too few documents to split at {fraction:g}; change "
                    "--held-out, or name the --validation text"
                )

        return read

    return (
        Text(f"{text.name}, training part", chosen(False)),
        Text(f"{text.name}, held-out part", chosen(True)),
    )


def as_text(tokens: Tokens) -> Text:
    """The documents that were tokenized, spelt out again.

    Raises:
        DataError: if the tokenizer loses text, so that they cannot be.
    """
    codec = load(tokens.tokenizer)
    if not codec.lossless:
        raise DataError("this tokenizer loses text; name the text files to score instead")

    def read() -> Iterator[bytes]:
        stream = ids(tokens)
        whole = stream.slice(0, len(stream))
        starts = [*(whole == codec.start).nonzero()[0].tolist(), len(whole)]
        for begin, end in itertools.pairwise(starts):
            yield codec.decode(whole[begin + 1 : end])

    return Text(f"{tokens.split} split {tokens.fingerprint}", read)
