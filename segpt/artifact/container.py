"""Quantized models to artifacts and back, bit for bit, and what each byte of a file is for.

``artifacts/README.md`` describes the format for those who want to read it without this package.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpt import trellis
from segpt.config.layout import Role
from segpt.errors import ArtifactError, CheckError
from segpt.values import (
    Artifact,
    Float16Weight,
    Quantized,
    QuantizedWeight,
    Tokenizer,
    TrellisWeight,
    UniformWeight,
)

from . import codec, context_search, frame, header, stream
from .check import check
from .contexts import Tensor
from .header import StoredWeight
from .reader import MOST_TOKENIZER_BYTES, open_artifact, split, uniform, unshuffle


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


def validate(quantized: Quantized) -> header.Header:
    """The header of the file that will hold ``quantized``.

    Raises:
        ArtifactError: if the format cannot hold its weights, or they are not those of its spec.
    """
    head = header.describe(quantized)
    for entry in head.entries:
        check(entry, quantized.weights[entry.weight.name])
    return head


def pack(quantized: Quantized, lanes: int | None = None) -> Artifact:
    """The file that holds ``quantized``; the same bytes for the same model, everywhere.

    ``lanes`` of its code stream are as many as its size asks for where nothing is said; a file is
    made again with those that it has (:func:`lanes_of`).

    Raises:
        ArtifactError: if a weight is not one of the spec, has a code beyond its bits or a value
            that is not finite, or the model is beyond the caps of the format.
    """
    head = validate(quantized)
    weights = [quantized.weights[entry.weight.name] for entry in head.entries]
    if len(quantized.tokenizer.payload) > MOST_TOKENIZER_BYTES:
        raise ArtifactError(f"the tokenizer is larger than {MOST_TOKENIZER_BYTES:,} bytes")
    coded = [w for w in weights if not isinstance(w, Float16Weight)]
    stepped = [w for w in weights if isinstance(w, TrellisWeight)]
    codes = [np.ascontiguousarray(w.codes) for w in coded]
    grids = [_grids(w) for w in coded]
    fit = context_search.choose(codes, grids, [_tensor(w) for w in coded])
    if lanes is None:
        lanes = stream.choose_lanes([(c.shape[0], c.shape[1]) for c in codes], fit.bits // 8)
    plain = {
        "header": header.write(head),
        "tokenizer": quantized.tokenizer.payload,
        "classes": fit.classes,
        "tables": fit.tables,
        "steps": _shuffle([np.array([w.step for w in stepped], "<f4")], "<f4"),
        "rows": b"".join(w.rows.tobytes() for w in stepped),
        "columns": b"".join(w.columns.tobytes() for w in stepped),
        "stored": b"".join(
            np.packbits(w.stored, bitorder="little").tobytes()
            for w in stepped
            if w.stored is not None
        ),
        "scales": _shuffle([w.scales for w in coded if isinstance(w, UniformWeight)], "<f2"),
        "halves": _shuffle([half for w in weights for half in _halves(w)], "<f2"),
    }
    stored = {name: codec.squeeze(data) for name, data in plain.items()}
    codes_section = codec.verbatim(stream.encode(codes, grids, fit.contexts, lanes))
    artifact = Artifact(frame.join(stored | {"codes": codes_section}))
    header.check_size(head, len(artifact.data))
    return artifact


def unpack(artifact: Artifact) -> Quantized:
    """The model in a file: the inverse of :func:`pack`.

    Raises:
        ArtifactError: if the file is not a valid artifact, before anything larger than its
            declared and capped contents is allocated.
    """
    opened = open_artifact(artifact)
    weights: dict[str, QuantizedWeight] = {}
    codes, halves = iter(opened.codes()), opened.halves()
    grids = [(e.shape[0], e.groups) for e in opened.entries if e.bits and not e.half]
    scales = split(unshuffle(opened.section("scales"), "<f2"), grids)
    steps = iter(unshuffle(opened.section("steps"), "<f4").tolist() if opened.stepped else ())
    stepped = iter(opened.stepped)
    for entry in opened.entries:
        name = entry.weight.name
        if entry.half:
            weights[name] = Float16Weight(next(halves))
        elif not entry.stepped:
            weights[name] = UniformWeight(entry.bits, next(codes), next(scales))
        else:
            rows, columns, stored = next(stepped)
            weights[name] = TrellisWeight(
                states=entry.states,
                codes=next(codes),
                step=next(steps),
                rows=rows,
                columns=columns,
                centre=next(halves) if entry.centred else None,
                stored=stored,
                shared=next(halves) if entry.partial else None,
            )
        check(entry, weights[name])
    head = opened.header
    return Quantized(
        spec=head.model,
        weights=weights,
        tokenizer=Tokenizer(head.tokenizer, head.vocab, opened.section("tokenizer")),
        origin=head.origin,
    )


def lanes_of(artifact: Artifact) -> int:
    """How many lanes the code stream of a file has.

    Raises:
        ArtifactError: if the file is not a valid artifact.
    """
    (lanes,) = stream.LANES.unpack_from(open_artifact(artifact).section("codes"))
    return int(lanes)


def sections(artifact: Artifact) -> tuple[Section, ...]:
    """What every byte of the file is for: the sizes add up to the size of the file.

    Raises:
        ArtifactError: if the file is damaged or of an unknown format.
    """
    version, stored = frame.split(artifact.data)
    named = [(name, len(s.data), s.size, s.codec.name.lower()) for name, s in stored.items()]
    framing = (("prefix", frame.overhead(version)), ("digest", frame.DIGEST))
    before, after = ((name, size, size, "stored") for name, size in framing)
    return tuple(Section(*fields) for fields in (before, *named, after))


def usage(artifact: Artifact, model: Quantized | None = None) -> tuple[Usage, ...]:
    """How the sections that hold weights divide among the roles: all but the first two and tables.

    The code stream divides by the ideal length of each code, the others by unpacked size. Who has
    unpacked the file passes its ``model``, so that the codes are not decoded a second time.

    Raises:
        ArtifactError: if the file is not a valid artifact.
    """
    opened = open_artifact(artifact)
    bytes_of: dict[StoredWeight, float] = dict.fromkeys(opened.entries, 0.0)
    codes = opened.codes() if model is None else _codes(model, opened.coded)
    for name, shares in opened.shares(codes).items():
        rate = len(opened.stored[name].data) / max(1, sum(shares.values()))
        for entry, share in shares.items():
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
            f"budget of {limit:,}; quantize with --budget {limit}, or train a smaller model"
        )


def _codes(model: Quantized, entries: Sequence[StoredWeight]) -> list[NDArray[np.int8]]:
    """The codes of the weights that have any."""
    weights = [model.weights[entry.weight.name] for entry in entries]
    return [weight.codes for weight in weights if not isinstance(weight, Float16Weight)]


def _halves(coded: QuantizedWeight) -> list[NDArray[np.float16]]:
    match coded:
        case UniformWeight():
            return []
        case Float16Weight(values=values):
            return [values]
        case TrellisWeight(centre=centre, shared=shared):
            return [half for half in (centre, shared) if half is not None]


def _tensor(coded: UniformWeight | TrellisWeight) -> Tensor:
    match coded:
        case UniformWeight(codes=codes):
            return uniform(codes.shape)
        case TrellisWeight(states=states, rows=rows, columns=columns):
            return Tensor(states, rows, columns)


def _grids(coded: UniformWeight | TrellisWeight) -> NDArray[np.uint8] | None:
    if isinstance(coded, UniformWeight) or coded.states == 1:
        return None
    return trellis.grids(coded.codes, coded.states)


def _shuffle(arrays: Sequence[NDArray[Any]], dtype: str) -> bytes:
    """The lowest bytes of all values, then the next: signs and exponents lie together."""
    values = np.concatenate([np.empty(0, dtype), *(a.ravel() for a in arrays)]).astype(dtype)
    return values.view(np.uint8).reshape(-1, values.itemsize).T.tobytes()
