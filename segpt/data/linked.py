"""Files of ids that other programs wrote, as a directory of tokens that refers to them in place."""

import hashlib
import os
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from segpt import __version__
from segpt.errors import DataError
from segpt.values import Tokenizer

from . import manifest as manifests
from .manifest import LinkedFile, Manifest, Part, encoding
from .shard_file import sha256_of
from .token_files import TokenFile, open_token_file
from .tokenizer import Codec, load

_CHUNK: Final = 2**20  # ids that are looked at together

Report = Callable[[int], None]  # is told how many bytes of the files are read


def link_tokens(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    split: str,
    id_type: str | None = None,
    report: Report | None = None,
) -> None:
    """Write the manifest of files of ids, and the hashes of their documents, into ``folder``.

    The files are read once: hashed, their ids compared with the vocabulary, and their documents
    counted. A document ends where the next start id is; an empty one does not count.

    Args:
        paths: The files, in the order in which their ids follow each other.
        tokenizer: What the ids are of.
        folder: An empty directory.
        split: What the text is, for example ``train``.
        id_type: What the ids of a file without a header are.
        report: Called after each part of a file.

    Raises:
        DataError: naming the file that is damaged, or of another tokenizer; or if there is no
            document.
    """
    codec = load(tokenizer)
    documents = _Documents(codec)
    shards, sources = [], []
    for path in paths:
        shard, source = _read(open_token_file(path, id_type), documents, codec.vocab, report)
        shards.append(shard)
        sources.append(source)
    documents.end()
    if not documents.hashes:
        raise DataError(f"{paths[0]}: no documents, only start ids; give files that hold text")
    listed = folder / "documents.bin"
    hashes = np.sort(np.array(documents.hashes, dtype=np.uint64))
    listed.write_bytes(hashes.astype("<u8").tobytes())
    more = "" if len(paths) == 1 else f" and {len(paths) - 1:,} more"
    manifest = Manifest(
        segpt=__version__,
        text=paths[0].name.encode("utf-8", "backslashreplace").decode() + more,
        split=split,
        tokenizer=encoding(tokenizer),
        count=sum(shard.count for shard in shards),
        bytes=documents.bytes,
        text_digest=documents.digest.hexdigest(),
        documents=Part(count=len(hashes), sha256=sha256_of(listed)),
        shards=tuple(shards),
        sources=tuple(sources),
    )
    manifests.write(folder, manifest)


def _read(
    file: TokenFile, documents: "_Documents", vocab: int, report: Report | None
) -> tuple[Part, LinkedFile]:
    """Read a file once, from its first byte to its last."""
    path = file.path
    digest = hashlib.sha256()
    with path.open("rb") as raw:
        before = os.fstat(raw.fileno())
        if before.st_size != file.offset + file.ids.nbytes:
            raise DataError(f"{path}: something follows its {len(file.ids):,} ids; write it anew")
        digest.update(raw.read(file.offset))
        while data := raw.read(_CHUNK * file.ids.itemsize):
            digest.update(data)
            ids = np.frombuffer(data, file.ids.dtype)
            least, most = int(ids.min()), int(ids.max())
            if least < 0 or most >= vocab:
                raise DataError(
                    f"{path}: id {least if least < 0 else most:,} is outside the vocabulary of "
                    f"{vocab:,}; name the tokenizer that made the file"
                )
            documents.add(ids.astype(np.int64))
            if report:
                report(len(data))
        after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(f"{path}: changed while it was being read; link it when that is done")
    source = LinkedFile(
        path=str(path.resolve()),
        form=file.form,
        ids=file.ids.dtype.str,
        offset=file.offset,
        size=before.st_size,
        mtime=before.st_mtime_ns,
    )
    return Part(count=len(file.ids), sha256=digest.hexdigest()), source


class _Documents:
    """The documents of a stream of ids that comes in parts.

    A tokenizer that loses nothing spells the documents, and their hashes are those of the text;
    of any other the ids themselves are hashed, as little-endian uint32.

    Attributes:
        bytes: What all ids so far spell.
        hashes: The first 8 bytes of the SHA-256 of each document that ended.
        digest: SHA-256 over the SHA-256 of each document.
    """

    def __init__(self, codec: Codec) -> None:
        self.bytes, self.hashes, self.digest = 0, array("Q"), hashlib.sha256()
        self._codec = codec
        self._previous = codec.start
        self._document, self._size = hashlib.sha256(), 0

    def add(self, ids: NDArray[np.int64]) -> None:
        """Go on with the next ids, (ids,), at least one."""
        codec = self._codec
        previous = np.concatenate([[self._previous], ids[:-1]])
        self._previous = int(ids[-1])
        self.bytes += int(codec.piece_bytes(previous, ids).sum())
        if codec.lossless:
            content, sizes = codec.decode(ids), codec.sizes[ids]
        else:
            content, sizes = ids.astype("<u4").tobytes(), np.full(len(ids), 4)
        ends = np.concatenate([[0], np.cumsum(sizes)])
        starts = np.flatnonzero(ids == codec.start)
        begin = 0
        for end, after in zip(ends[starts].tolist(), ends[starts + 1].tolist(), strict=True):
            self._extend(content[begin:end])
            self.end()
            begin = after
        self._extend(content[begin:])

    def end(self) -> None:
        """The document that is being read is over."""
        if self._size:
            whole = self._document.digest()
            self.digest.update(whole)
            self.hashes.append(int.from_bytes(whole[:8], "big"))
        self._document, self._size = hashlib.sha256(), 0

    def _extend(self, content: bytes) -> None:
        self._document.update(content)
        self._size += len(content)
