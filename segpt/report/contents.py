"""What a page tells of a run, part by part, as data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from .chart import Pair

_BITS_PER_NAT = 1.4426950408889634


class Logged(NamedTuple):
    """A line of the metrics; None is what it does not say, or no finite number."""

    step: int
    loss: float | None
    bpb: float | None
    validation_loss: float | None
    validation_bpb: float | None
    rate: float | None
    gradient_norm: float | None


@dataclass(frozen=True)
class Training:
    """What is known of the training of a run.

    ``rates`` are the learning rates of the recipe by what they are for, which the logged
    multiplier of the schedule scales. ``unfit`` counts losses that are no finite numbers and
    ``repeated`` lines whose steps were taken again. ``by_set`` holds the bits per byte over steps
    of each held-out text, where a run is measured on several.
    """

    lines: tuple[Logged, ...] = ()
    unfit: int = 0
    repeated: int = 0
    rates: Mapping[str, float] = field(default_factory=dict)
    parameters: int | None = None
    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    by_set: Mapping[str, Sequence[Pair]] = field(default_factory=dict)


class CodedRow(NamedTuple):
    """A role, a layer or a weight after quantization; ``error`` is squared and relative."""

    name: str
    kind: str
    parameters: int
    bits: float
    error: float | None
    damage: float | None


@dataclass(frozen=True)
class Quantization:
    """The report of a quantized model.

    ``layers`` has a row for all that lies outside of them. ``curve`` holds bits per weight and
    KL of the model at other rates, ``here`` of the model as it is, both on the same tokens.
    """

    bits: float
    bpb_before: float
    bpb_after: float
    kl_mean: float
    kl_p99: float
    top1: float
    tokens: int
    roles: tuple[CodedRow, ...]
    layers: tuple[CodedRow, ...]
    weights: tuple[CodedRow, ...]
    curve: tuple[tuple[float, float], ...] = ()
    here: tuple[float, float] | None = None
    curve_tokens: int = 0


class Share(NamedTuple):
    """What a role or a section of a packed file takes of it; sections hold no weights."""

    name: str
    bytes: float
    parameters: int | None = None


@dataclass(frozen=True)
class Packed:
    """A packed file, to the byte."""

    file: str
    bytes: int
    budget: int | None
    digest: str
    parameters: int
    roles: tuple[Share, ...]
    sections: tuple[Share, ...]


@dataclass(frozen=True)
class ReportedScore:
    """A score of the text that ``digest`` names.

    ``documents`` are the nats and bytes of each document in the order they came.
    """

    file: str
    policy: str
    adapts: bool
    bpb: float
    tokens: int
    bytes: int
    seconds: float
    text: str
    digest: str
    conditions: tuple[tuple[str, str], ...]
    documents: tuple[tuple[float, float], ...] = ()

    def running(self) -> list[Pair]:
        """Bits per byte of the text so far, over its bytes so far."""
        sums = accumulate(self.documents, lambda a, b: (a[0] + b[0], a[1] + b[1]))
        return [(size, nats / size * _BITS_PER_NAT) for nats, size in sums if size]


class ReportRow(NamedTuple):
    """A line of the table that ``segpt demo`` prints."""

    step: str
    bytes: int | None
    bpb: float
    what: str


class Sample(NamedTuple):
    """A prompt and how the model went on."""

    prompt: str
    text: str


@dataclass(frozen=True)
class Report:
    """Everything that a page tells, each part empty where the run has nothing of it yet.

    ``missing`` maps the parts that are to the command that adds them, and ``notices`` are what a
    reader has to know first.
    """

    name: str
    about: str = ""
    training: Training | None = None
    quantization: Quantization | None = None
    packed: Packed | None = None
    scores: tuple[ReportedScore, ...] = ()
    rows: tuple[ReportRow, ...] = ()
    samples: tuple[Sample, ...] = ()
    sampled: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    lineage: tuple[tuple[str, str], ...] = ()
    recipe: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @property
    def plain(self) -> ReportedScore | None:
        """The score that learns nothing, and that others are compared with."""
        return next((score for score in self.scores if not score.adapts), None)

    @property
    def adapted(self) -> ReportedScore | None:
        """The score that learns as it goes."""
        return next((score for score in self.scores if score.adapts), None)
