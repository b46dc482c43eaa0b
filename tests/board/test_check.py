"""Every rule of a track, broken one at a time."""

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpt.board.check import check, check_all
from segpt.spec.base import canonical, decode, encode
from segpt.spec.track import PolicyKind, Record, ScoreLine, Track, figure

ARTIFACT, TEXT, OTHER = "a" * 64, "b" * 64, "c" * 64
BYTES = 5000

TRACK = Track(
    name="small", about="", bytes=1000, text=TEXT, seconds=10.0, policies=("frozen", "sgd")
)


def line(nats: float = 6000.0, kind: str = "frozen", **changes: Any) -> ScoreLine:
    fields: dict[str, Any] = {
        "policy": {"kind": kind},
        "bpb": nats / (math.log(2) * BYTES),
        "nats": nats,
        "bytes": BYTES,
        "tokens": 2000,
        "seconds": 3.0,
        "model": ARTIFACT,
        "text": TEXT,
        "denominator": "bytes",
        "conditions": {"causal": "by construction", "overlap": "none", "beyond": False},
    }
    return ScoreLine(**(fields | changes))


def record(*scores: ScoreLine, **changes: Any) -> Record:
    scores = scores or (line(),)
    fields: dict[str, Any] = {
        "name": "tiny",
        "track": "small",
        "authors": ("Ada Lovelace",),
        "date": "2025-03-01",
        "artifact": ARTIFACT,
        "bytes": 1000,
        "parameters": 1234,
        "bpb": min(score.bpb for score in scores),
        "scores": scores,
        "origin": {"tokens": "0123456789abcdef"},
        "segpt": "0.1.0",
    }
    return Record(**(fields | changes))


@pytest.mark.parametrize(
    ("policies", "findings"), [(("sgd", "ngram"), 0), (("sgd",), 1), (("frozen", "ngram"), 1)]
)
def test_a_mixture_needs_both_of_its_kinds(policies: tuple[PolicyKind, ...], findings: int) -> None:
    mixed = record(line(policy={"kind": "sgd", "ngram": {"keep": 0.9}}))
    assert len(check(dataclasses.replace(TRACK, policies=policies), mixed)) == findings
    assert figure(mixed.scores).policy == "sgd+ngram"


def test_a_sound_record_has_no_findings() -> None:
    sound = record(line(), line(5500.0, "sgd"))
    assert check(TRACK, sound) == []
    assert check_all([TRACK], {"2025-03-01-tiny.json": sound}) == []


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (record(bytes=1001), "1 over the budget of 1,000"),
        (record(bpb=1.0), "bpb is 1.0, but its scores give 1.73"),
        (record(line(bpb=1.7)), "scores[0]: bpb is 1.7, but 6000.0 nats over 5,000 bytes"),
        (record(line(model=OTHER)), "is of model 'cccccccccccc', not of the artifact"),
        (record(line(model="0123456789abcdef")), "score the packed file itself"),
        (record(line(text=OTHER)), "is of text 'cccccccccccc'; small scores 'bbbbbbbbbbbb'"),
        (record(line(kind="oracle")), "policy 'oracle' is not allowed on small"),
        (
            record(line(policy={"kind": "sgd", "ngram": {"keep": 0.9}})),
            "policy 'sgd+ngram' is not allowed on small; allowed: frozen, sgd",
        ),
        (record(line(denominator="pieces")), "the denominator is 'pieces'"),
        (record(line(conditions={"overlap": "unchecked: no list"})), "'overlap' is not proved"),
        (record(line(conditions={})), "names no conditions"),
        (record(line(seconds=10.5)), "took 10.5 s, where small allows 10 s"),
        (record(line(), line()), "the same policy and the same seed"),
    ],
)
def test_a_broken_rule_is_the_only_finding(broken: Record, words: str) -> None:
    (finding,) = check(TRACK, broken)
    assert words in finding


def test_scores_of_two_texts_do_not_compare_even_where_any_text_may_be_scored() -> None:
    free = dataclasses.replace(TRACK, text=None)
    assert check(free, record(line(text=OTHER))) == []
    (finding,) = check(free, record(line(), line(kind="sgd", text=OTHER)))
    assert "different texts" in finding


def test_seeds_are_averaged_so_that_the_best_of_many_does_not_count() -> None:
    scores = [line(nats, seed=seed) for seed, nats in enumerate((5000.0, 6000.0, 7000.0))]
    (finding,) = check(TRACK, record(*scores))
    assert "but its scores give" in finding
    assert figure(scores).bpb == pytest.approx(line(6000.0).bpb)
    assert check(TRACK, record(*scores, bpb=figure(scores).bpb)) == []


@settings(deadline=None, derandomize=True)
@given(st.floats(1.0, 1e9), st.integers(0, 6), st.integers(1, 9), st.booleans())
def test_one_changed_digit_of_the_figure_is_found(
    nats: float, place: int, shift: int, inner: bool
) -> None:
    scored = line(nats)
    exponent = math.floor(math.log10(scored.bpb))
    changed = scored.bpb + shift * 10.0 ** (exponent - place)
    edited = (
        record(dataclasses.replace(scored, bpb=changed), bpb=scored.bpb)
        if inner
        else record(scored, bpb=changed)
    )
    assert any("bpb is" in finding for finding in check(TRACK, edited))


def test_findings_across_records() -> None:
    first, other = record(), record(name="other", artifact=OTHER, scores=(line(model=OTHER),))
    assert check_all([TRACK], {r.file: r for r in (first, other)}) == []
    renamed = {"2025-03-02-tiny.json": first}
    (finding,) = check_all([TRACK], renamed)
    assert finding.startswith("2025-03-02-tiny.json: ")
    assert "2025-03-01-tiny.json" in finding
    again = dataclasses.replace(other, name="tiny", date="2025-04-01")
    (finding,) = check_all([TRACK], {r.file: r for r in (first, again)})
    assert finding == "2025-04-01-tiny.json: has the same name as 2025-03-01-tiny.json"
    copied = record(name="copied")
    (finding,) = check_all([TRACK], {r.file: r for r in (first, copied)})
    assert finding == "2025-03-01-tiny.json: has the same artifact as 2025-03-01-copied.json"
    (finding,) = check_all([TRACK], {first.file: dataclasses.replace(first, track="smal")})
    assert "unknown track 'smal'; did you mean 'small'?" in finding


def test_the_same_artifact_may_stand_on_two_tracks() -> None:
    wide = dataclasses.replace(TRACK, name="large", bytes=5000)
    both = (record(), record(name="also-large", track="large"))
    assert check_all([TRACK, wide], {r.file: r for r in both}) == []


def test_a_record_survives_json() -> None:
    kept = record(line(), line(5500.0, "sgd", seed=3), recipe="demo")
    assert decode(Record, encode(kept)) == kept
    assert canonical(decode(Record, encode(kept))) == canonical(kept)
