"""The values that pass between stages: frozen, numpy at most, each named by a fingerprint.

``origin`` maps the kind of each input to its fingerprint, so that a record can be walked back
to its text.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpt import trellis
from segpt.config.base import canonical, encode, fingerprint
from segpt.config.conditions import Conditions
from segpt.config.model import ModelSpec
from segpt.config.quant_report import QuantReport
from segpt.config.run_about import RunAbout

Origin = Mapping[str, str]


@dataclass(frozen=True)
class Text:
    """Documents as raw bytes. Reading again gives the same documents."""

    name: str
    read: Callable[[], Iterator[bytes]]

    def __iter__(self) -> Iterator[bytes]:
        return self.read()


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer as data; ``segpt.data.tokenizer.load`` makes it encode and decode.

    ``kind`` is ``bytes`` (empty payload), ``merges`` (our lossless BPE as a merge table),
    ``sentencepiece`` (a foreign ``.model`` file), ``bpe`` (a foreign byte-level BPE) or
    ``byte_fallback`` (a foreign BPE of characters that spells the others as bytes).
    """

    kind: str
    vocab: int
    payload: bytes = b""

    @cached_property
    def fingerprint(self) -> str:
        head = canonical({"kind": self.kind, "vocab": self.vocab})
        return hashlib.sha256(head + b"\0" + self.payload).hexdigest()[:16]


@dataclass(frozen=True)
class IdLayout:
    """How ids of a numpy type lie in a linked file; ``mtime`` (nanoseconds) is of the linking."""

    ids: str
    offset: int
    size: int
    mtime: int


@dataclass(frozen=True)
class Shard:
    """A file of tokens: 256 int32, then uint16 or uint32 ids; or, with a ``link``, as that says."""

    path: Path
    tokens: int
    sha256: str
    link: IdLayout | None = None


@dataclass(frozen=True)
class Tokens:
    """A tokenized text on disk: memory-mapped shards and what they were made from.

    ``bytes`` counts the UTF-8 bytes of the documents; ``count`` the tokens, each document's
    start token included. ``documents`` holds the first 8 bytes of the SHA-256 of each document,
    as sorted uint64. ``digest`` names the tokens; ``text`` is the name of what was tokenized and
    ``text_digest`` names that, under whatever tokenizer. ``folder`` is the directory of this split.

    Where a tokenizer that loses text made the files of another program, ``comparable`` is false:
    ``documents`` then holds hashes of ids, which cannot be compared with those of texts.
    """

    tokenizer: Tokenizer
    split: str
    count: int
    bytes: int
    documents: NDArray[np.uint64] = field(repr=False)
    shards: tuple[Shard, ...]
    digest: str
    text: str = field(default="", compare=False)
    text_digest: str = field(default="", compare=False)
    folder: Path = field(default=Path(), compare=False)
    comparable: bool = field(default=True, compare=False)

    @property
    def fingerprint(self) -> str:
        return self.digest[:16]


Arrays = Mapping[str, NDArray[Any]]


def arrays_digest(arrays: Arrays) -> str:
    """SHA-256 over names, dtypes, shapes and contents, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = np.array(arrays[name], order="C")
        digest.update(f"{name}|{value.dtype.str}|{value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def documents_digest(documents: NDArray[np.uint64]) -> str:
    """Sixteen hex digits that name a sorted list of document hashes."""
    return hashlib.sha256(documents.astype("<u8").tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Checkpoint:
    """A model at one step of training.

    ``weights`` are the float32 weights to use: the average, if the run keeps one. ``state``
    holds what resuming needs beside them: raw weights, optimizer moments, generator states.
    ``documents`` are the hashes of the documents trained on, as in :class:`Tokens`, or None if what
    it was trained on is not known.
    ``about`` says what the run was up to there.
    """

    spec: ModelSpec
    weights: Arrays
    tokenizer: Tokenizer
    step: int
    progress: float
    documents: NDArray[np.uint64] | None
    origin: Origin
    state: Arrays | None = None
    about: RunAbout = field(default=RunAbout())

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint([encode(self.spec), arrays_digest(self.weights)])

    @property
    def trained_elsewhere(self) -> bool:
        """Whether it is not known what it was trained on, as of models that are imported."""
        return self.documents is None and "tokens" not in self.origin


@dataclass(frozen=True, eq=False)
class UniformWeight:
    """A weight on a uniform grid: ``codes[i, j] * scales[i, j // group]``.

    Codes are int8 in [-Q, Q] with Q = 2^(bits - 1) - 1. ``scales`` is float16 (rows, groups)
    and each of its columns covers ``ceil(columns / groups)`` columns of the codes.
    """

    bits: int
    codes: NDArray[np.int8]
    scales: NDArray[np.float16]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def decoded(self) -> NDArray[np.float32]:
        """One rounding per weight: bit-identical on every machine."""
        columns, groups = self.codes.shape[1], self.scales.shape[1]
        wide = np.repeat(self.scales.astype(np.float32), -(-columns // groups), axis=1)
        return self.codes.astype(np.float32) * wide[:, :columns]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, UniformWeight)
            and self.bits == other.bits
            and np.array_equal(self.codes, other.codes)
            and np.array_equal(self.scales.view(np.uint16), other.scales.view(np.uint16))
        )

    __hash__ = None  # type: ignore[assignment]


# 2^(k/8), rounded to float32: all that the size of a step needs beside powers of two.
OCTAVE = np.array([2.0 ** (k / 8) for k in range(8)], np.float32)
EXPONENTS = 8  # per octave
FARTHEST_EXPONENT = 120  # of a row or of a column
STEPPED_ARRAYS = ("codes", "rows", "columns", "centre", "stored", "shared")


@dataclass(frozen=True, eq=False)
class TrellisWeight:
    """A weight in steps that differ by row and by column, in eighths of an octave.

    ``points[i, j] * (step * 2^((rows[i] + columns[j]) / 8)) + centre[j]``, where the points are
    those of the codes under a machine with ``states``, see :mod:`segpt.trellis`.

    Attributes:
        states: of the machine; 1 is a uniform grid.
        codes: int8 (stored rows, columns), not -128.
        step: a float32, as the Python number that equals it.
        rows: int8 (stored rows,), and columns: int8 (columns,), each within 120 of 0.
        centre: float16 (columns,), added to every stored row, or None.
        stored: bool (all rows,), or None if all rows are stored.
        shared: float16 (columns,), what every row holds that is not stored; None if none is.
    """

    states: int
    codes: NDArray[np.int8]
    step: float
    rows: NDArray[np.int8]
    columns: NDArray[np.int8]
    centre: NDArray[np.float16] | None = None
    stored: NDArray[np.bool_] | None = None
    shared: NDArray[np.float16] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        height = len(self.codes) if self.stored is None else len(self.stored)
        return height, self.codes.shape[1]

    def steps(self) -> NDArray[np.float32]:
        """The step of every stored weight (stored rows, columns): one rounding each."""
        least = int(self.rows.min(initial=0)) + int(self.columns.min(initial=0))
        most = int(self.rows.max(initial=0)) + int(self.columns.max(initial=0))
        exponents = np.arange(least, most + 1)
        sizes = np.ldexp(np.float32(self.step) * OCTAVE[exponents & 7], exponents >> 3)
        return sizes[self.rows[:, None].astype(np.int16) + self.columns - least]

    def decoded(self) -> NDArray[np.float32]:
        """One rounding per step, product and sum: bit-identical on every machine."""
        kept = trellis.points(self.codes, self.states).astype(np.float32) * self.steps()
        if self.centre is not None:
            kept += self.centre.astype(np.float32)
        if self.stored is None or self.shared is None:
            return kept
        whole = np.empty(self.shape, np.float32)
        whole[self.stored], whole[~self.stored] = kept, self.shared.astype(np.float32)
        return whole

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything but ``states`` and ``step``, by name, what is None left out."""
        return {name: a for name in STEPPED_ARRAYS if (a := getattr(self, name)) is not None}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TrellisWeight):
            return False
        mine, its = self.arrays(), other.arrays()
        return (
            (self.states, self.step, list(mine)) == (other.states, other.step, list(its))
            and all(a.dtype == its[name].dtype for name, a in mine.items())
            and all(a.tobytes() == its[name].tobytes() for name, a in mine.items())
            and self.shape == other.shape
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Float16Weight:
    """A weight kept as float16."""

    values: NDArray[np.float16]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def decoded(self) -> NDArray[np.float32]:
        return self.values.astype(np.float32)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Float16Weight) and np.array_equal(
            self.values.view(np.uint16), other.values.view(np.uint16)
        )

    __hash__ = None  # type: ignore[assignment]


QuantizedWeight = UniformWeight | TrellisWeight | Float16Weight


@dataclass(frozen=True)
class Quantized:
    """A model whose every weight is coded: what the artifact stores, bit for bit.

    ``weights`` has one entry per weight of ``segpt.config.layout.layout(spec)``, in that order.
    ``report`` says what coding cost, None of what an artifact holds, and ``documents`` are the
    hashes of the documents the model saw; neither is part of the artifact.
    """

    spec: ModelSpec
    weights: Mapping[str, QuantizedWeight]
    tokenizer: Tokenizer
    origin: Origin
    report: QuantReport | None = field(default=None, compare=False)
    documents: NDArray[np.uint64] | None = field(default=None, compare=False, repr=False)

    @cached_property
    def fingerprint(self) -> str:
        arrays: dict[str, NDArray[Any]] = {}
        for name, coded in self.weights.items():
            match coded:
                case UniformWeight():
                    arrays[f"{name}|codes|{coded.bits}"] = coded.codes
                    arrays[f"{name}|scales"] = coded.scales
                case TrellisWeight():
                    about = f"{name}|stepped|{coded.states}|{coded.step.hex()}"
                    arrays |= {f"{about}|{part}": a for part, a in coded.arrays().items()}
                case Float16Weight():
                    arrays[f"{name}|half"] = coded.values
        return fingerprint([encode(self.spec), self.tokenizer.fingerprint, arrays_digest(arrays)])


@dataclass(frozen=True)
class QuantizeProgress:
    """Quantization after some of its parts: enough to go on exactly where it stopped.

    ``weights`` are those of the tuned model by name, ``coded`` what is coded by then, ``planned``
    the bits that were planned for each part, and ``drift`` by how many the parts exceeded that.
    ``dampings`` are what GPTQ needed. A ``scale`` of 0 means that nothing has begun.
    """

    done: int = 0
    scale: float = 0.0
    weights: Arrays = field(default_factory=dict)
    coded: Mapping[str, QuantizedWeight] = field(default_factory=dict)
    multipliers: Mapping[str, float] = field(default_factory=dict)
    planned: tuple[float, ...] = ()
    drift: float = 0.0
    dampings: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """The packed file. Everything needed to score it is inside.

    ``documents`` are the hashes of the documents the model saw, if the list that lies beside the
    file is at hand; it is not part of the file.
    """

    data: bytes
    documents: NDArray[np.uint64] | None = field(default=None, compare=False, repr=False)

    @property
    def size(self) -> int:
        return len(self.data)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Score:
    """What scoring found, and which conditions it proved. Sums are float64.

    ``denominator`` is ``bytes`` when ``bytes`` counts the raw UTF-8 of the text, and ``pieces``
    when a foreign tokenizer loses text and it counts what the tokens spell, and ``sidecar`` when
    it counts what a file of sizes says. ``policy`` is that of the spec as
    :func:`segpt.config.conditions.stored_policy` makes it. ``seed`` is that of the training run,
    if known.
    ``by_document`` holds the nats and bytes of each document with the start after it, and
    ``by_target`` the nats of each target (targets,).
    """

    nats: float
    bytes: int
    tokens: int
    seconds: float
    model: str
    text: str
    denominator: str
    policy: Mapping[str, Any]
    conditions: Conditions
    origin: Origin
    seed: int | None = None
    by_document: Mapping[str, Sequence[float]] = field(default_factory=dict, repr=False)
    by_target: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)

    @property
    def bpb(self) -> float:
        return self.nats / (float(np.log(2.0)) * self.bytes)

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    def plain(self) -> dict[str, Any]:
        """The score as JSON values, without the figures of documents and targets."""
        names = [name for name in self.__dataclass_fields__ if not name.startswith("by_")]
        fields = {name: getattr(self, name) for name in names}
        table = {"bpb": self.bpb, "nats_per_token": self.nats_per_token} | fields
        return json.loads(json.dumps(encode(table)))
