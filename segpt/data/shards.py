"""Token shards of the field as a text to score: ids, and the bytes that each one stands for.

A shard is 256 little-endian int32 (magic, version, count, then whatever) and ``count`` ids:
uint16 under version 1, uint32 under version 2. A *byte sidecar* is another such file, of version
1, that says for each token of a shard how many bytes of the original text it stands for, where
the pieces of the tokenizer do not say. ``fineweb_val_bytes_000000.bin`` is the sidecar of
``fineweb_val_000000.bin``.
"""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from segpt.config.base import canonical
from segpt.config.parameter_golf import truncated
from segpt.errors import DataError
from segpt.values import Shard, Tokenizer

from . import modelproto
from .modelproto import Kind
from .shard_file import CHUNK, HEADER, MAGIC
from .tokenizer import Codec, load

SIDECAR: Final = "_bytes_"

_DTYPES: Final[Mapping[int, np.dtype[np.unsignedinteger]]] = {
    1: np.dtype("<u2"),
    2: np.dtype("<u4"),
}
_AGAIN: Final = "fetch it again, or write it anew"


@dataclass(frozen=True, eq=False)
class Shards:
    """Documents as one stream of tokens, each after a start token.

    Attributes:
        ids: uint32 (targets + 1,). Target t is ``ids[t + 1]``.
        sizes: int64 (targets,), the bytes that each target stands for.
        starts: int64 (documents,), where the start token of each document is in ``ids``.
        raw: the bytes of the documents themselves; 0 where the shards cannot tell.
        denominator: what ``sizes`` counts: the ``bytes`` of the text under a lossless tokenizer,
            the ``pieces`` of any other, or what a ``sidecar`` says.
        dropped: how many targets were cut off the end.
        shards: the files of tokens, in order.
        sidecars: the files of bytes, one for each of them, or none.
        digest: SHA-256 of ``ids`` and ``sizes``, however they are cut into files.
    """

    ids: NDArray[np.uint32] = field(repr=False)
    sizes: NDArray[np.int64] = field(repr=False)
    starts: NDArray[np.int64] = field(repr=False)
    raw: int
    denominator: Literal["bytes", "pieces", "sidecar"]
    dropped: int
    shards: tuple[Shard, ...]
    sidecars: tuple[Shard, ...]
    digest: str

    @property
    def name(self) -> str:
        """What the shards are called, for people."""
        more = "" if len(self.shards) == 1 else f" and {len(self.shards) - 1} more"
        return self.shards[0].path.name + more

    @property
    def targets(self) -> int:
        return len(self.sizes)

    @property
    def bytes(self) -> int:
        return int(self.sizes.sum())


def read_shards(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    *,
    vocab: int | None = None,
    sequence: int | None = None,
) -> Shards:
    """Read shards, in the order given, as the contest counts their bytes.

    Sidecars among ``paths`` are known by their names, so that a pattern may match both kinds;
    bytes then come from them. Ids from the tokenizer's vocabulary up to ``vocab`` stand for no
    bytes, and no space counts after them.

    Args:
        paths: files of tokens, and either no sidecars or one for each of them.
        tokenizer: what the tokens are of.
        vocab: of the model, if it is larger than the tokenizer's.
        sequence: cut the stream to whole sequences of so many targets, as the contest's loader
            does; None scores all of it.

    Raises:
        DataError: naming the file that is missing, damaged, of another tokenizer or without its
            sidecar; or if there is nothing to score.
    """
    if sequence is not None and sequence < 1:
        raise DataError(f"a sequence has at least 1 target, not {sequence}")
    codec = load(tokenizer)
    vocab = codec.vocab if vocab is None else vocab
    if vocab < codec.vocab:
        raise DataError(
            f"the tokenizer has {codec.vocab:,} tokens, the model {vocab:,}; they do not belong "
            "together"
        )
    files = [_File.read(path) for path in paths]
    sidecars = _beside(files)
    shards = [file for file in files if file not in sidecars]
    ids = _joined(shards, vocab, codec.start)
    if sidecars:
        sizes = _charged(sidecars, ids, codec.start)
    else:
        _check_operators(shards[0].path, ids, tokenizer)
        sizes = _spelt(codec, ids)
    kept = len(ids) if sequence is None else truncated(len(ids), sequence)
    whole = Shards(
        ids=ids[:kept],
        sizes=sizes[: kept - 1],
        starts=np.flatnonzero(ids[:kept] == codec.start),
        raw=int(sizes[: kept - 1].sum()) if codec.lossless and not sidecars else 0,
        denominator="sidecar" if sidecars else "bytes" if codec.lossless else "pieces",
        dropped=len(ids) - kept,
        shards=tuple(file.shard for file in shards),
        sidecars=tuple(file.shard for file in sidecars),
        digest=_digest(ids[:kept], sizes[: kept - 1]),
    )
    if not whole.targets or not whole.bytes:
        raise DataError(
            f"{shards[0].path}: {whole.targets:,} targets of {whole.bytes:,} bytes leave nothing "
            "to score; give more shards, or cut to shorter sequences"
        )
    return whole


@dataclass(frozen=True, eq=False)
class _File:
    """A shard or a sidecar in memory."""

    path: Path
    values: NDArray[np.unsignedinteger]
    shard: Shard

    @staticmethod
    def read(path: Path) -> "_File":
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from error
        head = np.frombuffer(data[:12].ljust(12, b"\0"), "<i4").tolist()
        magic, version, count = head
        if len(data) < HEADER or magic != MAGIC or version not in _DTYPES or count < 0:
            raise DataError(
                f"{path}: not a shard of tokens (magic, version and count are {head}); {_AGAIN}"
            )
        dtype = _DTYPES[version]
        if len(data) != HEADER + count * dtype.itemsize:
            raise DataError(f"{path}: {len(data):,} bytes are not {count:,} tokens; {_AGAIN}")
        shard = Shard(path, count, hashlib.sha256(data).hexdigest())
        return _File(path, np.frombuffer(data, dtype, offset=HEADER), shard)


def _beside(files: Sequence[_File]) -> list[_File]:
    """The sidecars among ``files``, in the order of their shards: all of these, or none."""
    sidecars = {f.path.with_name(_plain(f.path)): f for f in files if _plain(f.path) != f.path.name}
    shards = {file.path: file for file in files if file not in sidecars.values()}
    if len({file.shard.sha256 for file in shards.values()}) + len(sidecars) < len(files):
        raise DataError("two of the shards given are the same; give each file once")
    for path, sidecar in sidecars.items():
        if path not in shards:
            raise DataError(f"{sidecar.path}: bytes without their tokens; give {path} too")
        sizes, tokens = sidecar.values, len(shards[path].values)
        if sizes.dtype != _DTYPES[1] or len(sizes) != tokens:
            raise DataError(
                f"{sidecar.path}: {len(sizes):,} sizes of {sizes.itemsize} bytes are no sidecar of "
                f"{tokens:,} tokens; {_AGAIN}"
            )
    if not shards:
        raise DataError("no shards of tokens given; name at least one file")
    if sidecars and (alone := sorted(shards.keys() - sidecars.keys())):
        raise DataError(f"{alone[0]}: has no sidecar, where others have one; give it too")
    return [sidecars[path] for path in shards] if sidecars else []


def _plain(path: Path) -> str:
    """The name of the shard that a sidecar of this name is of; any other name as it is."""
    return path.name.replace(SIDECAR, "_", 1)


def _joined(shards: Sequence[_File], vocab: int, start: int) -> NDArray[np.uint32]:
    for shard in shards:
        if shard.values.size and (largest := int(shard.values.max())) >= vocab:
            raise DataError(
                f"{shard.path}: id {largest:,} is outside the vocabulary of {vocab:,}; give the "
                "tokenizer that made the shards"
            )
    ids = np.concatenate([shard.values for shard in shards]).astype(np.uint32, copy=False)
    if not ids.size or ids[0] != start:
        raise DataError(
            f"{shards[0].path}: does not begin with {start}, the start of a document; give the "
            "shards from the first on, and the tokenizer that made them"
        )
    return ids


def _charged(sidecars: Sequence[_File], ids: NDArray[np.uint32], start: int) -> NDArray[np.int64]:
    """What sidecars say of the targets; they lie if they charge a start token."""
    sizes = np.concatenate([sidecar.values for sidecar in sidecars]).astype(np.int64)
    if charged := int(np.count_nonzero(sizes[ids == start])):
        raise DataError(
            f"{sidecars[0].path}: gives bytes to {charged:,} start tokens, which have none; it is "
            f"not the sidecar of these tokens; {_AGAIN}"
        )
    return sizes[1:]


def _check_operators(path: Path, ids: NDArray[np.uint32], tokenizer: Tokenizer) -> None:
    """Refuse pieces for signs that no text holds: what these stand for only a sidecar knows."""
    if tokenizer.kind != "sentencepiece":
        return
    operators = [
        i
        for i, piece in enumerate(modelproto.read(tokenizer.payload).pieces)
        if piece.kind is Kind.USER_DEFINED
        and all(unicodedata.category(character) == "Co" for character in piece.text)
    ]
    if used := sorted(set(operators) & set(np.unique(ids).tolist())):
        raise DataError(
            f"{path}: token {used[0]} is an operator, which stands for no bytes though its piece "
            "has some; give the sidecar of the shards too"
        )


def _spelt(codec: Codec, ids: NDArray[np.uint32]) -> NDArray[np.int64]:
    """What the pieces of the targets spell; an id beyond them acts as the start token does."""
    sizes = np.empty(len(ids) - 1, np.int64)
    for first in range(0, len(sizes), CHUNK):
        part = ids[first : first + CHUNK + 1]
        part = np.where(part < codec.vocab, part, np.uint32(codec.start))
        sizes[first : first + CHUNK] = codec.piece_bytes(part[:-1], part[1:])
    return sizes


def _digest(ids: NDArray[np.uint32], sizes: NDArray[np.int64]) -> str:
    digest = hashlib.sha256(canonical({"targets": len(sizes)}))
    digest.update(ids.astype("<u4", copy=False).data)
    digest.update(sizes.astype("<i8", copy=False).data)
    return digest.hexdigest()
