"""What a record claims beside its figures, derived again from its artifacts and their scores.

A forger can write any number into a record and make the chain anew, so nothing that a record says
is believed that can be derived. What cannot be is listed in :data:`UNVERIFIABLE`, with the reason.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segpt.artifact import container
from segpt.artifact.reader import open_artifact
from segpt.atomic import write_file
from segpt.config.layout import parameters
from segpt.config.model import ModelSpec
from segpt.data.text import UNLISTED, trained_on
from segpt.errors import DataError
from segpt.values import Artifact, Quantized, Score, Text, documents_digest

from .check import MEASURED_ON
from .compressors import CompressedSize
from .entry import Baseline, Claim, Link, Record, Run, ScoreLine, Verification

DOCUMENTS = "documents"  # the directory of a leaderboard with lists of training documents
LARGEST_LIST = 1 << 20  # bytes of a list that a leaderboard keeps
NONE_SHARED = "none"

_CHOSEN = "the author's choice"
_WORDS = "the author's words"
_DAY = "known to its author alone; a day in the future is refused"
_MACHINE = "depends on the machine"
_PUBLISHED = "published elsewhere; nothing of it is at hand"

# Every field that nothing at hand can prove, with the reason. All others are derived.
UNVERIFIABLE: Mapping[type, Mapping[str, str]] = {
    Record: {
        "name": _CHOSEN,
        "track": f"{_CHOSEN}; the limits of the track are held against what is derived",
        "authors": _WORDS,
        "date": _DAY,
        "about": _WORDS,
        "segpt": "the version that added the record; no file holds it",
        "recipe": "its commands make the artifact again with --remake only",
    },
    Run: {},
    ScoreLine: {"seconds": f"{_MACHINE}; what it says is held against the limit of the track"},
    Baseline: {
        "name": _CHOSEN,
        "track": f"{_CHOSEN}; the text of the track is the one that is compressed",
        "date": _DAY,
        "version": f"{_MACHINE}; another version may leave another number of bytes",
    },
    Claim: dict.fromkeys(
        (
            *("name", "track", "authors", "date", "about"),
            *("source", "value", "values", "bytes", "parameters"),
        ),
        _PUBLISHED,
    ),
    Verification: {
        "name": _CHOSEN,
        "date": f"{_DAY}, and a day before that of the record too",
        "authors": _WORDS,
        "state": "who verified says so: verify again",
        "conditions": _MACHINE,
    },
    Link: {},
}


class Fact(NamedTuple):
    """A field that an entry claims, and the same derived again."""

    field: str
    claimed: Any
    derived: Any
    agrees: bool
    remedy: str = ""

    @classmethod
    def exact(cls, field: str, claimed: Any, derived: Any, remedy: str = "") -> "Fact":
        """A fact that agrees where both are the same JSON value."""
        return cls(field, claimed, derived, _same(claimed, derived), remedy)

    @classmethod
    def near(cls, field: str, claimed: Any, derived: float, tolerance: float) -> "Fact":
        """A fact of a sum that another machine may round otherwise: ``tolerance`` is relative."""
        agrees = type(claimed) in (int, float) and math.isclose(claimed, derived, rel_tol=tolerance)
        return cls(field, claimed, derived, agrees)


@dataclass(frozen=True)
class Derived:
    """What an artifact says of itself.

    ``model`` names weights and tokenizer, whatever else the header says, and ``tokenizer`` the
    tokenizer alone.
    """

    artifact: str
    bytes: int
    parameters: int
    seed: int | None
    origin: Mapping[str, str]
    sections: Mapping[str, int]
    architecture: ModelSpec
    tokenizer: str
    model: str


def derive(artifact: Artifact, held: Quantized) -> Derived:
    """Everything that a record may claim of an artifact, which holds the model ``held``.

    Raises:
        ArtifactError: if the artifact is damaged.
    """
    seed = held.origin.get("seed", "")
    return Derived(
        artifact=artifact.digest,
        bytes=artifact.size,
        parameters=parameters(held.spec),
        seed=int(seed) if seed.isdecimal() and len(seed) < 20 else None,
        origin=dict(held.origin),
        sections={section.name: section.bytes for section in container.sections(artifact)},
        architecture=held.spec,
        tokenizer=held.tokenizer.fingerprint,
        model=held.fingerprint,
    )


def run_facts(place: str, run: Run, derived: Derived) -> Iterator[Fact]:
    """What a run says of its artifact; ``place`` opens the names of fields."""
    yield Fact.exact(f"{place}artifact", run.artifact, derived.artifact)
    yield Fact.exact(f"{place}bytes", run.bytes, derived.bytes)
    yield Fact.exact(f"{place}seed", run.seed, derived.seed)


def line_facts(
    place: str, line: ScoreLine, score: Score, derived: Derived, tolerance: float
) -> Iterator[Fact]:
    """What a score in a record says beside bits per byte, against the same scored again.

    ``tolerance`` is that of the track, relative. Conditions that an older segpt did not know may
    be absent; one that scoring does not find may not be there.
    """
    again = score.plain()
    yield Fact.exact(f"{place}seed", line.seed, derived.seed)
    yield Fact.exact(f"{place}model", line.model, derived.artifact)
    yield Fact.exact(f"{place}text", line.text, again["conditions"]["text"])
    for name in ("policy", "bytes", "tokens", "denominator"):
        yield Fact.exact(f"{place}{name}", getattr(line, name), again[name])
    yield Fact.near(f"{place}nats", line.nats, again["nats"], tolerance)
    conditions = again["conditions"]
    for name in sorted(line.conditions.keys() | {"overlap"}):
        field = f"{place}conditions.{name}"
        claimed, derived_value = line.conditions.get(name), conditions.get(name)
        if name in MEASURED_ON:
            continue
        if name == "boundary_nats" and derived_value is not None:
            yield Fact.near(field, claimed, derived_value, tolerance)
        else:
            remedy = _remedy(derived) if name == "overlap" else ""
            yield Fact.exact(field, claimed, derived_value, remedy)


def record_facts(record: Record, runs: Mapping[int, Derived]) -> Iterator[Fact]:
    """What a record says of its artifacts, of which those at hand are ``runs`` by their number."""
    if len(runs) == len(record.runs):
        yield Fact.exact("bytes", record.bytes, max(each.bytes for each in runs.values()))
    if 0 in runs:
        yield Fact.exact("parameters", record.parameters, runs[0].parameters)
        yield from _by_key("origin", record.origin, runs[0].origin)
        yield from _by_key("sections", record.sections, runs[0].sections)


def run_findings(runs: Mapping[int, Derived]) -> Iterator[str]:
    """Why artifacts are not runs of one recipe that differ in their seed."""
    first: dict[str, int] = {}
    for number, each in runs.items():
        before = first.setdefault(each.model, number)
        if before != number:
            yield (
                f"runs[{number}].seed: claimed to be another run than runs[{before}], but the "
                f"weights of both are the same model {each.model}"
            )
    whole = list(runs.items())
    for number, each in whole[1:]:
        start, other = whole[0]
        for what in ("architecture", "tokenizer"):
            if getattr(each, what) != getattr(other, what):
                yield (
                    f"runs[{number}].artifact: claimed to be runs[{start}] with another seed, but "
                    f"its {what} is another"
                )


def baseline_facts(baseline: Baseline, text: str, again: CompressedSize) -> Iterator[Fact]:
    """What a baseline says, against compressing the text again; ``text`` is its digest."""
    yield Fact.exact("text", baseline.text, text)
    yield Fact.exact("bytes", baseline.bytes, again.bytes)
    if baseline.version == again.version:
        yield Fact.exact("compressed", baseline.compressed, again.compressed)


def with_documents(artifact: Artifact, directory: Path) -> Artifact:
    """The artifact with its list of training documents, if a leaderboard keeps that.

    The list may lie beside the artifact, which reading it has taken up then, or in ``documents``
    of the leaderboard under the digest that the header of the artifact names.

    Raises:
        DataError: if the file is there and is not the list that its name says.
    """
    if artifact.documents is not None:
        return artifact
    path = documents_file(directory, artifact)
    if path is None or not path.is_file():
        return artifact
    raw = path.read_bytes()
    documents = np.frombuffer(raw[: len(raw) // 8 * 8], "<u8").astype(np.uint64)
    if len(raw) % 8 or documents_digest(documents) != path.stem:
        raise DataError(f"{path} is not the list of documents that its name says; remove it")
    return Artifact(artifact.data, documents)


def documents_file(directory: Path, artifact: Artifact) -> Path | None:
    """Where a leaderboard keeps the list of an artifact; None if its header names none."""
    named = open_artifact(artifact).header.origin.get("documents", "")
    sound = len(named) == 16 and set(named) <= set("0123456789abcdef")
    return directory / DOCUMENTS / f"{named}.documents" if sound else None


def keep_documents(directory: Path, artifact: Artifact) -> Path | None:
    """Keep the list of training documents of an artifact with a leaderboard, for others.

    Returns:
        The file; None if there is no list at hand, or one of more than ``LARGEST_LIST`` bytes.
    """
    path = documents_file(directory, artifact)
    if path is None or artifact.documents is None or 8 * len(artifact.documents) > LARGEST_LIST:
        return None
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_file(path, artifact.documents.astype("<u8").tobytes())
    return path


def overlap(artifact: Artifact, text: Text) -> str:
    """Whether the documents that an artifact was trained on and those of a text share any.

    ``none`` is said only where a list proves it, and a list that names no document proves nothing.
    """
    counts = trained_on(text, artifact.documents)
    if counts is None:
        return UNLISTED
    shared, count = counts
    return f"{shared:,} of the {count:,} documents" if shared else NONE_SHARED


def _remedy(derived: Derived) -> str:
    named = derived.origin.get("documents", "")
    if not named:
        return "the artifact names no list of training documents, so nothing can prove it"
    return (
        f"put its list of training documents beside it as FILE.documents, or into {DOCUMENTS} of "
        f"the leaderboard as {named[:16]}.documents"
    )


def _by_key(field: str, claimed: Mapping[str, Any], derived: Mapping[str, Any]) -> Iterator[Fact]:
    for key in sorted(claimed.keys() | derived.keys()):
        yield Fact.exact(f"{field}.{key}", claimed.get(key), derived.get(key))


def _same(claimed: Any, derived: Any) -> bool:
    """Whether two JSON values are the same; True is not 1, but a list is a tuple."""
    if isinstance(claimed, Mapping) and isinstance(derived, Mapping):
        return claimed.keys() == derived.keys() and all(
            _same(claimed[key], derived[key]) for key in claimed
        )
    if isinstance(claimed, Sequence) and isinstance(derived, Sequence):
        if isinstance(claimed, str) or isinstance(derived, str):
            return bool(claimed == derived)
        return len(claimed) == len(derived) and all(map(_same, claimed, derived))
    if isinstance(claimed, bool) or isinstance(derived, bool):
        return claimed is derived
    return bool(claimed == derived)
