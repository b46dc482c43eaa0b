"""What is wrong with a record, found without its artifact: limits, sums and digests."""

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping

from segpt.spec.base import nearest
from segpt.spec.track import Record, ScoreLine, Track, figure

TOLERANCE = 1e-9  # relative, of bits per byte
UNPROVED = ("failed", "unchecked")  # how a condition begins that scoring could not prove


def check(track: Track, record: Record) -> list[str]:
    """Everything about ``record`` that the rules of ``track`` do not allow; empty if sound."""
    findings = []
    if record.bytes > track.bytes:
        findings.append(
            f"{record.bytes:,} bytes, {record.bytes - track.bytes:,} over the budget of "
            f"{track.bytes:,} of {track.name}"
        )
    if record.bpb != (counted := figure(record.scores)).bpb:
        findings.append(f"bpb is {record.bpb}, but its scores give {counted.bpb}")
    if len({(line.text, line.bytes) for line in record.scores}) > 1:
        findings.append("its scores are of different texts")
    if len({(line.policy_kind, line.seed) for line in record.scores}) < len(record.scores):
        findings.append("two of its scores have the same policy and the same seed")
    for index, line in enumerate(record.scores):
        findings += [f"scores[{index}]: {finding}" for finding in _check(track, record, line)]
    return findings


def check_all(tracks: Iterable[Track], records: Mapping[str, Record]) -> list[str]:
    """The findings about all records, which are given by the names of their files."""
    by_name = {track.name: track for track in tracks}
    findings = []
    for file, record in sorted(records.items()):
        if file != record.file:
            findings.append(f"{file}: a file with this date and name is called {record.file}")
        if record.track in by_name:
            found = check(by_name[record.track], record)
            findings += [f"{file}: {finding}" for finding in found]
        else:
            hint = nearest(record.track, by_name)
            findings.append(f"{file}: unknown track {record.track!r}; {hint}")
    names = {file: record.name for file, record in records.items()}
    artifacts = {file: (record.track, record.artifact) for file, record in records.items()}
    findings += [f"{b}: has the same name as {a}" for a, b in _repeated(names)]
    return findings + [f"{b}: has the same artifact as {a}" for a, b in _repeated(artifacts)]


def _check(track: Track, record: Record, line: ScoreLine) -> Iterator[str]:
    if line.model != record.artifact:
        yield (
            f"is of model {line.model[:12]!r}, not of the artifact {record.artifact[:12]!r}; "
            "score the packed file itself"
        )
    if not set(line.policy_kind.split("+")) <= set(track.policies):
        allowed = ", ".join(track.policies)
        yield f"policy {line.policy_kind!r} is not allowed on {track.name}; allowed: {allowed}"
    bpb = line.nats / (math.log(2) * line.bytes)
    if not math.isclose(line.bpb, bpb, rel_tol=TOLERANCE):
        yield f"bpb is {line.bpb}, but {line.nats} nats over {line.bytes:,} bytes are {bpb}"
    if line.denominator != "bytes":
        yield f"the denominator is {line.denominator!r}, where the bytes of the text count"
    if track.text is not None and line.text != track.text:
        yield f"is of text {line.text[:12]!r}; {track.name} scores {track.text[:12]!r}"
    if not line.conditions:
        yield "names no conditions"
    for name, state in sorted(line.conditions.items()):
        if isinstance(state, str) and state.startswith(UNPROVED):
            yield f"condition {name!r} is not proved: {state[:100]!r}"
    if track.seconds is not None and line.seconds > track.seconds:
        yield f"took {line.seconds:.1f} s, where {track.name} allows {track.seconds:g} s"


def _repeated(keys: Mapping[str, Hashable]) -> Iterator[tuple[str, str]]:
    """Each file whose key an earlier file has, with that file."""
    first: dict[Hashable, str] = {}
    for file, key in sorted(keys.items()):
        if (earlier := first.setdefault(key, file)) != file:
            yield earlier, file
