"""Quantized models to artifacts and back, bit for bit, and what each byte of a file is for.

``artifacts/README.md`` describes the format for those who want to read it without this package.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from segpt.errors import ArtifactError, CheckError
from segpt.spec.layout import Role
from segpt.values import Artifact, Coded, Grid, Half, Quantized, Tokenizer

from . import codec, contexts, frame, header, rans, tables
from .codec import Stored
from .contexts import Contexts
from .header import Entry, Header

T = TypeVar("T", bound=np.generic)

MOST_TOKENIZER_BYTES = 1 << 24
MOST_STEPS = 1 << 18  # of the decoder: what bounds its time

_LANES = struct.Struct("<H")
_FEWEST_LANES, _USUAL_LANES = 16, 512
_BYTES_PER_LANE = 8000  # a lane costs up to 4 bytes: 0.05 percent of this
_MOST_TABLE_BYTES = 1 + contexts.MOST_CLASSES * (2 + rans.SYMBOLS)


class Section(NamedTuple):
    """A run of bytes in a file: its name, size, unpacked size, and how it is stored."""

    name: str
    bytes: int
    unpacked: int
    codec: str


class Usage(NamedTuple):
    """What the weights of one role take of the sections that hold weights."""

    role: Role
    weights: int
    parameters: int
    bytes: float

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.parameters


def pack(quantized: Quantized) -> Artifact:
    """The file that holds ``quantized``; the same bytes for the same model, everywhere.

    Raises:
        ArtifactError: if a weight is not one of the spec, has a code beyond its bits or a value
            that is not finite, or the model is beyond the caps of the format.
    """
    head = header.describe(quantized)
    entries = head.entries
    coded = [quantized.weights[entry.weight.name] for entry in entries]
    for entry, weight in zip(entries, coded, strict=True):
        _check(entry, weight)
    if len(quantized.tokenizer.payload) > MOST_TOKENIZER_BYTES:
        raise ArtifactError(f"the tokenizer is larger than {MOST_TOKENIZER_BYTES:,} bytes")
    grids = [np.ascontiguousarray(c.codes) for c in coded if isinstance(c, Grid)]
    fit = contexts.choose(grids)
    classes, found = contexts.write(fit.contexts)
    plain = {
        "header": header.write(head),
        "tokenizer": quantized.tokenizer.payload,
        "classes": classes,
        "tables": found,
        "scales": _shuffle([c.scales for c in coded if isinstance(c, Grid)]),
        "halves": _shuffle([c.values for c in coded if isinstance(c, Half)]),
    }
    stored = {name: codec.squeeze(data) for name, data in plain.items()}
    return Artifact(frame.join(stored | {"codes": codec.verbatim(_encode(grids, fit))}))


def unpack(artifact: Artifact) -> Quantized:
    """The model in a file: the inverse of :func:`pack`.

    Raises:
        ArtifactError: if the file is not a valid artifact, before anything larger than its
            declared and capped contents is allocated.
    """
    opened = _open(artifact)
    codes = _split(_decode(opened).view(np.int8), [e.shape for e in opened.grids])
    scales = _split(
        _unshuffle(opened.section("scales")), [(e.shape[0], e.groups) for e in opened.grids]
    )
    halves = _split(_unshuffle(opened.section("halves")), [e.weight.shape for e in opened.halves])
    weights: dict[str, Coded] = {}
    for entry in opened.entries:
        coded = Half(next(halves)) if entry.half else Grid(entry.bits, next(codes), next(scales))
        _check(entry, coded)
        weights[entry.weight.name] = coded
    head = opened.header
    return Quantized(
        spec=head.model,
        weights=weights,
        tokenizer=Tokenizer(head.tokenizer, head.vocab, opened.section("tokenizer")),
        origin=head.origin,
    )


def sections(artifact: Artifact) -> tuple[Section, ...]:
    """What every byte of the file is for: the sizes add up to the size of the file.

    Raises:
        ArtifactError: if the file is damaged or of an unknown format.
    """
    stored = frame.split(artifact.data)
    named = [(name, len(s.data), s.size, s.codec.name.lower()) for name, s in stored.items()]
    framing = (("prefix", frame.OVERHEAD), ("digest", frame.DIGEST))
    first, last = ((name, size, size, "stored") for name, size in framing)
    return tuple(Section(*fields) for fields in (first, *named, last))


def usage(artifact: Artifact) -> tuple[Usage, ...]:
    """How the sections ``classes``, ``codes``, ``scales`` and ``halves`` divide among the roles.

    The code stream divides by the ideal length of each code, the others by unpacked size.

    Raises:
        ArtifactError: if the file is not a valid artifact.
    """
    opened = _open(artifact)
    bytes_of: dict[Entry, float] = dict.fromkeys(opened.entries, 0.0)
    for name, entries, shares in (
        ("classes", opened.grids, opened.contexts.sizes),
        ("codes", opened.grids, _lengths(opened)),
        ("scales", opened.grids, [e.shape[0] * e.groups for e in opened.grids]),
        ("halves", opened.halves, [e.weight.size for e in opened.halves]),
    ):
        rate = len(opened.stored[name].data) / max(1, sum(shares))
        for entry, share in zip(entries, shares, strict=True):
            bytes_of[entry] += rate * share
    by_role = {role: [e for e in bytes_of if e.weight.role is role] for role in Role}
    return tuple(
        Usage(
            role,
            len(entries),
            sum(e.weight.size for e in entries),
            sum(bytes_of[e] for e in entries),
        )
        for role, entries in by_role.items()
        if entries
    )


def load(path: Path) -> Artifact:
    """Read an artifact from disk and check its frame and digest.

    Raises:
        ArtifactError: naming the file, if it is missing, too large, damaged or something else.
    """
    try:
        if (size := path.stat().st_size) > frame.MOST_BYTES:
            raise ArtifactError(
                f"{path}: {size:,} bytes; an artifact has at most {frame.MOST_BYTES:,}"
            )
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"cannot read {path}: {error.strerror}; make an artifact with: segpt pack"
        ) from None
    try:
        frame.check(data)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    return Artifact(data)


def budget(artifact: Artifact, limit: int) -> None:
    """Check that the file takes at most ``limit`` bytes.

    Raises:
        CheckError: if it takes more, with the overshoot and what to do about it.
    """
    if artifact.size > limit:
        raise CheckError(
            f"the artifact takes {artifact.size:,} bytes, {artifact.size - limit:,} over the "
            f"budget of {limit:,}; quantize to fewer --bits or with a larger clip, or train a "
            "smaller model"
        )


class _Opened(NamedTuple):
    """A file whose header, sizes and contexts are known to fit each other."""

    header: Header
    entries: tuple[Entry, ...]
    stored: dict[str, Stored]
    contexts: Contexts

    @property
    def grids(self) -> list[Entry]:
        return [e for e in self.entries if not e.half]

    @property
    def halves(self) -> list[Entry]:
        return [e for e in self.entries if e.half]

    def section(self, name: str) -> bytes:
        return codec.unpack(self.stored[name], name)


def _open(artifact: Artifact) -> _Opened:
    stored = frame.split(artifact.data)
    _check_size("header", stored["header"], 0, header.MOST_BYTES)
    head = header.read(codec.unpack(stored["header"], "header"))
    entries = head.entries
    shapes = [e.shape for e in entries if not e.half]
    count = sum(map(math.prod, shapes))
    scales = 2 * sum(e.shape[0] * e.groups for e in entries if not e.half)
    halves = 2 * sum(e.weight.size for e in entries if e.half)
    stream = _LANES.size + 4 * rans.MOST_LANES + 2 * count
    _check_size("tokenizer", stored["tokenizer"], 0, MOST_TOKENIZER_BYTES)
    _check_size("classes", stored["classes"], 0, len(shapes) + sum(map(sum, shapes)))
    _check_size("tables", stored["tables"], 0, _MOST_TABLE_BYTES)
    _check_size("codes", stored["codes"], _LANES.size, stream)
    _check_size("scales", stored["scales"], scales, scales)
    _check_size("halves", stored["halves"], halves, halves)
    classes, found = (codec.unpack(stored[name], name) for name in ("classes", "tables"))
    return _Opened(head, entries, stored, contexts.read(classes, found, shapes))


def _check_size(name: str, stored: Stored, least: int, most: int) -> None:
    if not least <= stored.size <= most:
        raise ArtifactError(f"{name}: {stored.size:,} bytes, where {least:,} to {most:,} belong")


def _check(entry: Entry, coded: Coded) -> None:
    """Refuse what the format cannot hold, on writing and on reading alike."""
    name, shape = entry.weight.name, entry.weight.shape
    match coded:
        case Grid(codes=codes, scales=values):
            if codes.shape != shape or values.shape != (shape[0], entry.groups):
                raise ArtifactError(
                    f"{name}: codes {codes.shape} and scales {values.shape} for a weight {shape}"
                )
            if codes.dtype != np.int8 or max(-int(codes.min()), int(codes.max())) > entry.limit:
                raise ArtifactError(
                    f"{name}: codes of {entry.bits} bits are int8 from -{entry.limit} to "
                    f"{entry.limit}; these are {codes.dtype} from {codes.min()} to {codes.max()}"
                )
        case Half(values=values):
            if values.shape != shape:
                raise ArtifactError(f"{name}: {values.shape} values for a weight {shape}")
    if values.dtype != np.float16 or not np.isfinite(values).all():
        raise ArtifactError(f"{name}: scales and values are finite float16; these are not")


def _encode(grids: Sequence[NDArray[np.int8]], fit: contexts.Fit) -> bytes:
    symbols = np.concatenate([np.empty(0, np.uint8), *(g.view(np.uint8).ravel() for g in grids)])
    lanes = _lanes(len(symbols), fit.bits // 8)
    selected = fit.contexts.selected([(g.shape[0], g.shape[1]) for g in grids])
    return _LANES.pack(lanes) + rans.encode(symbols, selected, fit.contexts.tables, lanes)


def _lanes(count: int, size: int) -> int:
    """As many lanes as speed asks for and the bytes they cost allow; a power of two."""
    lanes = _FEWEST_LANES
    while lanes < _USUAL_LANES and 2 * lanes * _BYTES_PER_LANE <= size:
        lanes *= 2
    while lanes * MOST_STEPS < count:
        lanes *= 2
    return lanes


def _decode(opened: _Opened) -> NDArray[np.uint8]:
    data = opened.section("codes")
    (lanes,) = _LANES.unpack_from(data)
    shapes = [e.shape for e in opened.grids]
    count = sum(map(math.prod, shapes))
    if not 1 <= lanes <= rans.MOST_LANES or count > lanes * MOST_STEPS:
        raise ArtifactError(f"codes: {lanes} lanes for {count:,} codes")
    selected = opened.contexts.selected(shapes)
    return rans.decode(data[_LANES.size :], selected, opened.contexts.tables, lanes)


def _lengths(opened: _Opened) -> list[int]:
    """The ideal length of each tensor's codes, in 1/4096 bit, and 1 more per code."""
    shapes = [e.shape for e in opened.grids]
    prices = tables.costs(opened.contexts.tables).ravel() + 1
    selected, symbols = opened.contexts.selected(shapes), _decode(opened)
    tensors = zip(_split(selected, shapes), _split(symbols, shapes), strict=True)
    return [int(prices[table.astype(np.int64) * rans.SYMBOLS + s].sum()) for table, s in tensors]


def _split(values: NDArray[T], shapes: Sequence[tuple[int, ...]]) -> Iterator[NDArray[T]]:
    """Consecutive pieces of ``values`` (count,), in these shapes."""
    cuts = np.cumsum([0, *map(math.prod, shapes)]).tolist()
    for shape, (begin, end) in zip(shapes, pairwise(cuts), strict=True):
        yield values[begin:end].reshape(shape)


def _shuffle(arrays: Sequence[NDArray[np.float16]]) -> bytes:
    """The low bytes of all values, then the high bytes: signs and exponents lie together."""
    values = np.concatenate([np.empty(0, np.float16), *(a.ravel() for a in arrays)])
    return values.astype("<f2").view(np.uint8).reshape(-1, 2).T.tobytes()


def _unshuffle(data: bytes) -> NDArray[np.float16]:
    planes = np.frombuffer(data, np.uint8).reshape(2, -1)
    return np.ascontiguousarray(planes.T).view("<f2").ravel().astype(np.float16)
