"""What is wrong with entries, found without artifacts and texts: limits, sums and digests."""

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from statistics import fmean
from typing import assert_never

from segpt.config.base import canonical, nearest
from segpt.config.conditions import READING
from segpt.errors import SpecError

from .entry import Baseline, Claim, Entry, Link, Record, Run, ScoreLine, Verification, figure
from .track import Track

TOLERANCE = 1e-9  # relative, of bits per byte
AHEAD = timedelta(days=1)  # by how much the day may be ahead of UTC, somewhere on earth
ROUNDING = 1e-3  # relative, of a mean that others published
UNPROVED = ("failed", "unchecked")  # how a condition begins that scoring could not prove

# The conditions that say where a text was scored: no other machine can find them again.
MEASURED_ON = ("device", "processes", "threads", "versions")


def check(track: Track, entry: Entry) -> list[str]:
    """Everything about ``entry`` that the rules of ``track`` do not allow; empty if sound."""
    match entry:
        case Record():
            return [*_check_record(track, entry)]
        case Claim():
            return [*_check_claim(track, entry)]
        case Baseline():
            return [*_check_baseline(track, entry)]
        case Verification():
            return []
        case _:
            assert_never(entry)


def check_all(
    tracks: Iterable[Track], links: Iterable[Link], today: date | None = None
) -> list[str]:
    """The findings about all entries, by the names of their files.

    Args:
        tracks: the tracks, with their limits.
        links: the entries, in any order.
        today: the day in UTC after which no entry can have been made; by default that of the
            clock.
    """
    latest = (today or datetime.now(UTC).date()) + AHEAD
    by_name = {track.name: track for track in tracks}
    entries = {link.file: link.entry for link in sorted(links, key=lambda link: link.number)}
    findings = []
    for file, entry in entries.items():
        if entry.track in by_name:
            own = check(by_name[entry.track], entry)
            findings += [f"{file}: {finding}" for finding in own]
        else:
            hint = nearest(entry.track, by_name)
            findings.append(f"{file}: unknown track {entry.track!r}; {hint}")
        if date.fromisoformat(entry.date) > latest:
            findings.append(
                f"{file}: date is {entry.date}, which is in the future: by the clock of this "
                f"machine today is {latest - AHEAD}"
            )
    names = [(file, entry.name) for file, entry in entries.items()]
    findings += [f"{b}: has the same name as {a}" for a, b in _repeated(names)]
    artifacts = [
        (file, (entry.track, digest))
        for file, entry in entries.items()
        if isinstance(entry, Record)
        for digest in dict.fromkeys(run.artifact for run in entry.runs)
    ]
    findings += [f"{b}: has the same artifact as {a}" for a, b in _repeated(artifacts)]
    return [*findings, *_check_verifications(by_name, entries)]


def _check_record(track: Track, record: Record) -> Iterator[str]:
    if track.metric != "bpb":
        yield f"{track.name} ranks by {track.metric}, which no score gives; add a claim"
    yield from _check_limits(track, record.bytes, record.parameters)
    if record.bytes != (largest := max(run.bytes for run in record.runs)):
        yield f"bytes is {record.bytes:,}, but its largest artifact has {largest:,}"
    if (total := sum(record.sections.values())) != (size := record.runs[0].bytes):
        yield f"its sections sum to {total:,} bytes, but its first artifact has {size:,}"
    try:
        if record.bpb != (counted := figure(record.runs)).bpb:
            yield f"bpb is {record.bpb}, but its scores give {counted.bpb}"
    except SpecError as error:
        yield str(error)
    lines = [line for run in record.runs for line in run.scores]
    if len({(line.text, line.bytes) for line in lines}) > 1:
        yield "its scores are of different texts"
    if len({run.artifact for run in record.runs}) < len(record.runs):
        yield "two of its runs have the same artifact"
    if len({run.seed for run in record.runs}) < len(record.runs):
        yield "two of its runs have the same seed, or none that is known"
    for kind in sorted({line.policy_kind for line in lines}):
        if len({_method(line) for line in lines if line.policy_kind == kind}) > 1:
            yield f"its scores under the policy {kind!r} differ in their settings"
    several = len(record.runs) > 1
    for number, run in enumerate(record.runs):
        for finding in _check_run(track, run):
            yield f"runs[{number}].{finding}" if several else finding


def _check_run(track: Track, run: Run) -> Iterator[str]:
    if len({(line.policy_kind, line.seed) for line in run.scores}) < len(run.scores):
        yield "scores: two have the same policy and the same seed"
    for number, line in enumerate(run.scores):
        for finding in _check_line(track, run, line):
            yield f"scores[{number}]: {finding}"


def _check_line(track: Track, run: Run, line: ScoreLine) -> Iterator[str]:
    if line.model != run.artifact:
        yield (
            f"is of model {line.model[:12]!r}, not of the artifact {run.artifact[:12]!r}; "
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
    if (text := line.conditions.get("text", line.text)) != line.text:
        yield f"is of text {line.text[:12]!r}, but its conditions name {str(text)[:12]!r}"
    for name, state in sorted(line.conditions.items()):
        if isinstance(state, str) and state.startswith(UNPROVED):
            yield f"condition {name!r} is not proved: {state[:100]!r}"
    if track.seconds is not None and line.seconds > track.seconds:
        yield f"took {line.seconds:.1f} s, where {track.name} allows {track.seconds:g} s"


def _check_claim(track: Track, claim: Claim) -> Iterator[str]:
    yield from _check_limits(track, claim.bytes, claim.parameters)
    if claim.values and not math.isclose(
        mean := fmean(claim.values), claim.value, rel_tol=ROUNDING
    ):
        yield f"value is {claim.value}, but its values average {mean}"
    if track.metric == "core" and claim.value > 1:
        yield f"value is {claim.value}, where CORE is a share of 1"


def _check_baseline(track: Track, baseline: Baseline) -> Iterator[str]:
    if track.metric != "bpb":
        yield f"{track.name} ranks by {track.metric}, which no compressor gives"
    if track.text is not None and baseline.text != track.text:
        yield f"is of text {baseline.text[:12]!r}; {track.name} scores {track.text[:12]!r}"


def _check_limits(track: Track, size: int | None, parameters: int | None) -> Iterator[str]:
    for what, limit, count in (
        ("bytes", track.bytes, size),
        ("parameters", track.parameters, parameters),
    ):
        if limit is not None and count is not None and count > limit:
            over = count - limit
            yield f"{count:,} {what}, {over:,} over the budget of {limit:,} of {track.name}"


def _check_verifications(
    tracks: Mapping[str, Track], entries: Mapping[str, Entry]
) -> Iterator[str]:
    """What only the entry that was verified tells: entries are in the order of the chain."""
    earlier: dict[str, Record | Baseline] = {}
    for file, entry in entries.items():
        if isinstance(entry, Record | Baseline):
            earlier.setdefault(entry.name, entry)
        if not isinstance(entry, Verification):
            continue
        if entry.record not in earlier:
            yield f"{file}: verifies {entry.record!r}, which is no record or baseline before it"
        elif entry.track in tracks:
            for finding in _check_verification(tracks[entry.track], entry, earlier[entry.record]):
                yield f"{file}: {finding}"


def _check_verification(
    track: Track, verification: Verification, entry: Record | Baseline
) -> Iterator[str]:
    if verification.track != entry.track:
        yield f"is on {verification.track}, but {entry.name} is on {entry.track}"
    if verification.date < entry.date:
        yield f"is of {verification.date}, before {entry.name}, which is of {entry.date}"
    artifact = entry.artifact if isinstance(entry, Record) else None
    if verification.state == "checked" and verification.artifact != artifact:
        yield f"is of another artifact than {entry.name}; making it anew is called reproduced"
    if verification.state == "reproduced" and not isinstance(entry, Record):
        yield f"{entry.name} was not trained: compressing the text again is called checked"
    anew = verification.state == "reproduced"
    claimed = _first(entry) if anew else entry.value
    if not agrees(track, claimed, verification.bpb, anew=anew):
        yield f"found {verification.bpb} bits per byte, which are not the {claimed} of {entry.name}"


def agrees(track: Track, claimed: float, measured: float, *, anew: bool = False) -> bool:
    """Whether a figure that was derived again is that of an entry.

    Artifacts that were made ``anew`` may differ by the track's margin.
    """
    apart = abs(claimed - measured)
    return apart <= max(track.tolerance * claimed, track.margin if anew else 0.0)


def _first(entry: Record | Baseline) -> float:
    """The figure of the artifact that is submitted."""
    try:
        return figure(entry.runs).by_run[0] if isinstance(entry, Record) else entry.value
    except SpecError:  # which is a finding about the record itself
        return entry.value


def _method(line: ScoreLine) -> bytes:
    """All that a score depends on but for the model and the text."""
    reading = (line.conditions.get(name) for name in (*READING, "precision"))
    return canonical([line.policy, *reading])


def _repeated(keys: Iterable[tuple[str, Hashable]]) -> Iterator[tuple[str, str]]:
    """Each file whose key an earlier file has, with that file."""
    first: dict[Hashable, str] = {}
    for file, key in keys:
        if (earlier := first.setdefault(key, file)) != file:
            yield earlier, file
