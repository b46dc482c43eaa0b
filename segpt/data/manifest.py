"""What a directory of tokens says about itself, strictly read: no key too many, none too few."""

import base64
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Final

from segpt.config.base import ADDED, canonical, decode, encode, spec
from segpt.errors import DataError, SpecError
from segpt.values import Tokenizer

NAME: Final = "manifest.json"
LIMIT: Final = 2**31  # of tokens in a shard, since its header counts in int32
AGAIN: Final = "run `segpt data prepare` again"
_MOST_BYTES: Final = 2**63
SPLIT: Final = re.compile(r"\w[\w.-]*")
_LINKED_LIMIT: Final = 2**48  # of tokens in a file of another program
_ID_TYPE: Final = re.compile(r"[<>|][iu][1248]")


@spec
class Part:
    """A file beside the manifest: how many entries it has, and its SHA-256."""

    count: int
    sha256: str


@spec
class LinkedFile:
    """A file of another program that is read where it lies.

    ``form`` is whose it is, ``ids`` the type of its ids as numpy writes it, ``offset`` where they
    begin, and ``mtime`` when the file was changed last, in nanoseconds.
    """

    path: str
    form: str
    ids: str
    offset: int
    size: int
    mtime: int


@spec
class Encoding:
    """A tokenizer as JSON, its payload in base 64."""

    form: str
    vocab: int
    payload: str

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.form, self.vocab, base64.b64decode(self.payload, validate=True))


def encoding(tokenizer: Tokenizer) -> Encoding:
    payload = base64.b64encode(tokenizer.payload).decode()
    return Encoding(form=tokenizer.kind, vocab=tokenizer.vocab, payload=payload)


@spec
class Manifest:
    """What a directory of tokens holds.

    ``segpt`` is the version that wrote it and ``text`` the name of the text; ``digest`` is over
    everything else, so that it names the content. If there are ``sources``, they are the shards,
    one for one, and their places and times are no content.
    """

    segpt: str
    text: str
    split: str
    tokenizer: Encoding
    count: int
    bytes: int
    text_digest: str
    documents: Part
    shards: tuple[Part, ...]
    sources: tuple[LinkedFile, ...] = dataclasses.field(default=(), metadata=ADDED)
    digest: str = ""

    def __post_init__(self) -> None:
        if not SPLIT.fullmatch(self.split):
            raise SpecError(f"{self.split!r} cannot name a split")
        if not 1 <= self.tokenizer.vocab <= 2**32:
            raise SpecError(f"{self.tokenizer.vocab} ids are not a vocabulary")
        limit = _LINKED_LIMIT if self.sources else LIMIT
        if not all(1 <= shard.count < limit for shard in self.shards):
            raise SpecError(f"a shard holds 1 to {limit - 1} tokens")
        if self.sources:
            _check_sources(self.sources, self.shards)
        if sum(shard.count for shard in self.shards) != self.count:
            raise SpecError("the shards do not add up")
        if not 0 <= self.bytes < _MOST_BYTES or not 0 <= self.documents.count <= self.count:
            raise SpecError("it counts bytes or documents that no text has")


def _check_sources(sources: tuple[LinkedFile, ...], shards: tuple[Part, ...]) -> None:
    if len(sources) != len(shards):
        raise SpecError(f"{len(sources)} linked files are not {len(shards)} shards")
    for source, shard in zip(sources, shards, strict=True):
        if not _ID_TYPE.fullmatch(source.ids):
            raise SpecError(f"{source.ids!r} is no type of ids")
        if source.offset < 0 or source.size != source.offset + shard.count * int(source.ids[-1]):
            raise SpecError(f"{source.path}: {source.size} bytes are not {shard.count} tokens")


def write(folder: Path, manifest: Manifest) -> None:
    """Put ``manifest`` into ``folder``, with its digest."""
    sealed = dataclasses.replace(manifest, digest=_digest(manifest))
    (folder / NAME).write_text(json.dumps(encode(sealed), indent=1) + "\n")


def read(folder: Path) -> tuple[Manifest, Tokenizer]:
    """The manifest of ``folder`` and the tokenizer in it.

    Raises:
        DataError: if there is none, or not as it was written.
    """
    path = folder / NAME
    try:
        manifest = decode(Manifest, json.loads(path.read_bytes()))
        tokenizer = manifest.tokenizer.tokenizer
        sound = manifest.digest == _digest(manifest)
    except (OSError, ValueError, RecursionError, SpecError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {AGAIN}") from error
    if not sound:
        raise DataError(f"{path}: changed since it was written; {AGAIN}")
    return manifest, tokenizer


def _digest(manifest: Manifest) -> str:
    sources = tuple(dataclasses.replace(s, path="", mtime=0) for s in manifest.sources)
    content = dataclasses.replace(manifest, segpt="", text="", digest="", sources=sources)
    return hashlib.sha256(canonical(content)).hexdigest()
