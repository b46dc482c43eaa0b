"""Text to Tokens: a directory with a training and a validation split of one tokenizer."""

import bisect
import hashlib
import itertools
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from segpt.atomic import check_replaceable, new_directory, remove_directory, standing, sweep
from segpt.config.recipe import Bpe, Bytes
from segpt.data.corpus import builtin
from segpt.data.tokenizer import BYTES, load, train_bpe
from segpt.data.tokens import continue_tokens, ids, is_tokens, overlap, read_tokens
from segpt.errors import DataError, SegptError
from segpt.locks import locked, numbered
from segpt.values import Text, Tokenizer, Tokens

from .json_files import read_json, write_json
from .tokenizers import open_tokenizer, write_tokenizer

SPLITS = ("train", "validation")
SOURCE = "source.json"
Source = Mapping[str, Any]  # what a preparation depends on, as JSON values
Notice = Callable[[str], None]
Report = Callable[[str, int], None]  # split, bytes of its documents so far


def make_tokenizer(spec: Bytes | Bpe | None, text: Text) -> Tokenizer:
    """The tokenizer a recipe asks for, trained on ``text`` if need be; None leaves its size."""
    match spec:
        case None:
            return train_bpe(text)
        case Bytes():
            return BYTES
        case Bpe(vocab=vocab):
            return train_bpe(text, vocab)


def prepare(
    train: Text,
    validation: Text,
    tokenizer: Tokenizer | Callable[[], Tokenizer],
    out: Path,
    report: Report = lambda split, done: None,
    *,
    source: Source | None = None,
    limit: int | None = None,
) -> tuple[Tokens, Tokens]:
    """Write both splits below ``out``, whole or not at all.

    With ``source``, what is finished when the call is interrupted stays in a hidden directory
    beside ``out``: the tokenizer, and shards. The next call for the same source goes on from there,
    to the same bytes; any other call for ``out`` removes it.

    Args:
        train: The training text.
        validation: The validation text.
        tokenizer: What to tokenize with, or what makes it.
        out: The directory; a text that was prepared there is replaced.
        report: Called after each document with the split and the bytes of it tokenized so far.
        source: What the result depends on, which is kept beside the splits.
        limit: Where the training split ends: with the document that reaches so many tokens.

    Raises:
        DataError: if a document is in both, a split is empty, or ``out`` holds other things.
        SegptError: if another process prepares a source there, or the disk refuses.
    """
    check_vacant(out)
    if source is None:
        with new_directory(out, replaces=is_prepared) as directory:
            _write(train, validation, tokenizer, directory, report, limit)
        return open_splits(out)
    draft = draft_of(out)
    with locked(out):
        if not _is_from(draft, source):
            remove_directory(draft)
            write_json(draft / SOURCE, dict(source))
        try:
            _write(train, validation, tokenizer, draft, report, limit)
        except DataError:  # which would only come again
            remove_directory(draft)
            raise
        except OSError as error:
            if error.filename is not None and not Path(error.filename).is_relative_to(draft):
                raise  # something that was read
            raise SegptError(
                f"cannot write {out}: {error.strerror or error}; what is finished is kept: see to "
                "the disk, then give the same command again"
            ) from error
        with new_directory(out, replaces=is_prepared) as directory:
            for name in (SOURCE, *SPLITS):
                (draft / name).rename(directory / name)
        remove_directory(draft)
    return open_splits(out)


def prepared(out: Path, source: Source) -> tuple[Tokens, Tokens] | None:
    """Both splits below ``out``, if they are whole and from ``source``."""
    if not _is_from(out, source):
        return None
    place, draft = out.resolve(), draft_of(out)
    try:
        splits = open_splits(out)
    except DataError:  # damaged: it can be made again
        return None
    # The text may be whole thanks to a call that died before it had put its things away.
    sweep(place.parent, f"{re.escape(place.name)}|{re.escape(draft.name)}")
    return splits


def place_for(place: Path, source: Source) -> Path:
    """``place``, or place-2, place-3, ...: the first that is new, or whose text is ``source``."""
    return next(
        name
        for name in numbered(place)
        if not (name.exists() or draft_of(name).exists())
        or _is_from(name, source)
        or (not name.exists() and _is_from(draft_of(name), source))
    )


def draft_of(out: Path) -> Path:
    """Where an interrupted preparation of ``out`` leaves what is finished."""
    return out.resolve().parent / f".{out.resolve().name}.unfinished"


def is_prepared(path: Path) -> bool:
    """Whether a directory holds what :func:`prepare` writes, whole or damaged, and nothing else."""
    entries = list(path.iterdir())
    return any(entry.name != SOURCE for entry in entries) and all(map(_is_ours, entries))


def _is_ours(entry: Path) -> bool:
    """Whether it is what a prepared text has in it."""
    return entry.name == SOURCE or (entry.name in SPLITS and is_tokens(entry))


def check_vacant(out: Path) -> None:
    """Refuse to replace anything but a prepared text.

    Raises:
        DataError: naming the first thing that would be lost.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; choose a new directory with --out")
    check_replaceable(out, lambda _: True)
    if not out.is_dir():
        return
    for entry in sorted(out.iterdir()):
        if not _is_ours(entry):
            raise DataError(
                f"{out}: holds {entry.name!r}, which is no prepared text and would be lost; choose "
                "a new directory with --out"
            )


def _write(
    train: Text,
    validation: Text,
    tokenizer: Tokenizer | Callable[[], Tokenizer],
    directory: Path,
    report: Report,
    limit: int | None,
) -> None:
    """Fill ``directory`` with both splits, as far as they are not there yet."""
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = _kept(directory / "tokenizer.json", tokenizer)
    written = [
        continue_tokens(
            text,
            tokenizer,
            directory / split,
            split=split,
            report=partial(report, split),
            limit=limit if split == SPLITS[0] else None,
        )
        for split, text in zip(SPLITS, (train, validation), strict=True)
    ]
    if (shared := overlap(*written)).size:
        raise DataError(
            f"{shared.size:,} documents are in both {train.name} and {validation.name}; "
            "remove them from one of the two"
        )


def _kept(path: Path, make: Callable[[], Tokenizer]) -> Tokenizer:
    """The tokenizer at ``path``; made and put there if there is none."""
    try:
        return open_tokenizer(str(path))
    except SegptError:
        tokenizer = make()
        write_tokenizer(path, tokenizer)
        return tokenizer


def _is_from(directory: Path, source: Source) -> bool:
    try:
        return bool(read_json(directory / SOURCE, "source") == dict(source))
    except SegptError:
        return False


def open_splits(path: Path) -> tuple[Tokens, Tokens]:
    """The training and validation split that :func:`prepare` wrote.

    Raises:
        DataError: if they are missing or damaged.
    """
    path = standing(path)
    if path.is_file():
        line = shlex.join(["segpt", "data", "prepare", str(path)])
        raise DataError(f"{path} is a file and not a prepared text; prepare it first: {line}")
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
            splits = open_splits(out)
        except DataError:
            splits = None  # stale or damaged: it is cheap to make again
        if splits is not None and splits[0].tokenizer.vocab == vocab:
            return splits
    train = builtin("train")
    return prepare(train, builtin("validation"), make_tokenizer(tokenizer, train), out, report)


def hold_out(text: Text, fraction: float, notice: Notice = lambda line: None) -> tuple[Text, Text]:
    """Split documents by their hash, so that a document's side never depends on the others.

    Where this leaves one side empty, as it does for a single document, the last part of the text
    is held out instead, from the end of a paragraph, or else of a line, on.

    Args:
        text: The documents; of a text that is split by its hash only a few are read here.
        fraction: How much to hold out: of the documents, or of the bytes.
        notice: Called with a line about the last part, if it is what is held out.

    Raises:
        DataError: if the text is empty or too short to split.
    """
    sides: set[bool] = set()
    size = 0
    for document in text:
        sides.add(_is_held_out(document, fraction))
        size += len(document)
        if len(sides) == 2:
            return _by_hash(text, fraction)
    return _last_part(text, size, fraction, notice)


def _is_held_out(document: bytes, fraction: float) -> bool:
    draw = int.from_bytes(hashlib.sha256(b"held out" + document).digest()[:8], "big")
    return draw < fraction * 2**64


def _by_hash(text: Text, fraction: float) -> tuple[Text, Text]:
    def side(held: bool) -> Callable[[], Iterator[bytes]]:
        return lambda: (d for d in text if _is_held_out(d, fraction) == held)

    return _halves(text, side(False), side(True))


def _last_part(text: Text, size: int, fraction: float, notice: Notice) -> tuple[Text, Text]:
    """Split a text of few documents and ``size`` bytes near the place that ``fraction`` says."""
    target = max(0, min(round(size * (1 - fraction)), size - 1))
    sizes = [len(document) for document in text]
    ends = list(itertools.accumulate(sizes))
    index = bisect.bisect_right(ends, target)  # of the document that is cut
    begin = ends[index] - sizes[index]
    document = next(itertools.islice(text, index, None))
    at, border = _cut(document, target - begin)
    if begin + at in (0, size):
        raise DataError(
            f"{text.name} is too short to hold out a part of it; give more text, or name the "
            "--validation text"
        )
    held = size - begin - at
    notice(
        f"{text.name}: too few documents to choose from, so the last {held:,} of {size:,} bytes "
        f"are held out, from the end of a {border} on"
    )

    def training() -> Iterator[bytes]:
        yield from itertools.islice(text, index)
        if at:
            yield next(itertools.islice(text, index, None))[:at]

    def validation() -> Iterator[bytes]:
        rest = itertools.islice(text, index, None)
        yield from filter(None, (next(rest)[at:],))
        yield from rest

    return _halves(text, training, validation)


def _halves(
    text: Text, training: Callable[[], Iterator[bytes]], validation: Callable[[], Iterator[bytes]]
) -> tuple[Text, Text]:
    return (
        Text(f"{text.name}, training part", training),
        Text(f"{text.name}, held-out part", validation),
    )


_BORDERS = {
    "paragraph": re.compile(rb"(?:\r?\n[ \t]*)+\r?\n"),
    "line": re.compile(rb"\n"),
    "word": re.compile(rb"[ \t]"),
}


def _cut(document: bytes, at: int) -> tuple[int, str]:
    """The border nearest to ``at``, of the best kind that lies nearer than half of either part."""
    if not at:
        return at, "document"
    reach = max(1, min(at, len(document) - at) // 2)
    first = at - reach
    window = document[first : at + reach]
    for name, pattern in _BORDERS.items():
        ends = [first + match.end() for match in pattern.finditer(window)]
        if ends := [end for end in ends if 0 < end < len(document)]:
            return min(ends, key=lambda end: abs(end - at)), name
    while at < len(document) and document[at] & 0xC0 == 0x80:  # inside a character of UTF-8
        at += 1
    return at, "character"


def as_text(tokens: Tokens) -> Text:
    """The documents that were tokenized, spelt out again.

    Raises:
        DataError: if the tokenizer loses text, so that they cannot be.
    """
    codec = load(tokens.tokenizer)
    linked = tokens.shards[0].link is not None  # files that may hold start after start
    if not codec.lossless:
        raise DataError("this tokenizer loses text; name the text files to score instead")

    def read() -> Iterator[bytes]:
        stream = ids(tokens)
        whole = stream.slice(0, len(stream))
        starts = [*(whole == codec.start).nonzero()[0].tolist(), len(whole)]
        if starts[0]:  # as files of others may begin
            starts.insert(0, -1)
        for begin, end in itertools.pairwise(starts):
            document = codec.decode(whole[begin + 1 : end])
            if document or not linked:
                yield document

    return Text(tokens.text or f"{tokens.split} split {tokens.fingerprint}", read)
