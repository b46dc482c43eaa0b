"""Every rule of a track, broken one at a time."""

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpt.config.base import canonical, decode, encode
from segpt.leaderboard.check import agrees, check, check_all
from segpt.leaderboard.entry import Entry, Link, Record, Run, ScoreLine, Verification, figure
from segpt.leaderboard.track import PolicyKind, Track
from tests.leaderboard import entries

ARTIFACT, SECOND, TEXT, OTHER = "a" * 64, "e" * 64, entries.TEXT, "c" * 64

TRACK = Track(
    name="large",
    about="",
    bytes=1_000_000,
    parameters=2_000_000,
    text=TEXT,
    seconds=10.0,
    policies=("frozen", "sgd"),
)


def line(nats: float = 6000.0, kind: str = "frozen", **changes: Any) -> ScoreLine:
    conditions = {"causal": "by construction", "overlap": "none", "beyond": False, "text": TEXT}
    return entries.line(nats, kind, **({"conditions": conditions} | changes))


def record(*scores: ScoreLine, **changes: Any) -> Record:
    return entries.record(scores=scores or (line(),), **changes)


def runs(*seeds: int | None, **changes: Any) -> tuple[Run, ...]:
    """Runs that are alike in all but their seed and artifact."""
    return tuple(
        Run(
            artifact=f"{place:064x}",
            bytes=987_654,
            seed=seed,
            scores=(line(model=f"{place:064x}", **changes),),
        )
        for place, seed in enumerate(seeds, 1)
    )


def found(*given: Entry, tracks: tuple[Track, ...] = (TRACK,)) -> list[str]:
    links, _ = entries.chained(*given)
    return check_all(tracks, links)


@pytest.mark.parametrize(
    ("policies", "findings"), [(("sgd", "ngram"), 0), (("sgd",), 1), (("frozen", "ngram"), 1)]
)
def test_a_mixture_needs_both_of_its_kinds(policies: tuple[PolicyKind, ...], findings: int) -> None:
    mixed = record(line(policy={"kind": "sgd", "ngram": {"keep": 0.9}}))
    assert len(check(dataclasses.replace(TRACK, policies=policies), mixed)) == findings
    assert figure(mixed.runs).policy == "sgd+ngram"


def test_sound_entries_have_no_findings() -> None:
    sound = record(line(), line(5500.0, "sgd"))
    assert check(TRACK, sound) == []
    assert found(sound, entries.claim(), entries.baseline(), entries.verification(sound)) == []


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (record(parameters=2_000_001), "1 over the budget of 2,000,000 of large"),
        (record(bytes=987_655), "bytes is 987,655, but its largest artifact has 987,654"),
        (record(sections={"codes": 987_653}), "its sections sum to 987,653 bytes, but its first"),
        (record(bpb=1.0), "bpb is 1.0, but its scores give 1.73"),
        (record(line(bpb=1.7)), "scores[0]: bpb is 1.7, but 6000.0 nats over 5,000 bytes"),
        (record(line(model=OTHER)), "is of model 'cccccccccccc', not of the artifact"),
        (record(line(model="0123456789abcdef")), "score the packed file itself"),
        (record(line(kind="oracle")), "policy 'oracle' is not allowed on large"),
        (
            record(line(policy={"kind": "sgd", "ngram": {"keep": 0.9}})),
            "policy 'sgd+ngram' is not allowed on large; allowed: frozen, sgd",
        ),
        (record(line(denominator="pieces")), "the denominator is 'pieces'"),
        (record(line(conditions={"overlap": "unchecked: no list"})), "'overlap' is not proved"),
        (record(line(conditions={"contest": "failed: a wrong"})), "'contest' is not proved"),
        (record(line(conditions={})), "names no conditions"),
        (record(line(conditions={"text": OTHER})), "but its conditions name 'cccccccccccc'"),
        (record(line(seconds=10.5)), "took 10.5 s, where large allows 10 s"),
        (record(line(), line()), "scores: two have the same policy and the same seed"),
        (
            record(line(), line(seed=2, policy={"kind": "frozen", "x": 1})),
            "its scores under the policy 'frozen' differ in their settings",
        ),
        (
            record(runs=runs(1, 1)),
            "two of its runs have the same seed, or none that is known",
        ),
        (record(runs=runs(None, None)), "or none that is known"),
        (entries.claim(bytes=1_000_001), "1,000,001 bytes, 1 over the budget of 1,000,000"),
        (entries.claim(value=1.5, values=(1.4, 1.5)), "value is 1.5, but its values average 1.45"),
        (entries.baseline(text=OTHER), "is of text 'cccccccccccc'; large scores 'dddddddddddd'"),
    ],
)
def test_a_broken_rule_is_the_only_finding(broken: Record, words: str) -> None:
    (finding,) = check(TRACK, broken)
    assert words in finding


def test_an_artifact_over_the_budget_is_found() -> None:
    whole = Run(artifact=ARTIFACT, bytes=1_000_001, seed=1, scores=(line(),))
    (finding,) = check(TRACK, record(runs=(whole,), bytes=1_000_001, sections={"codes": 1_000_001}))
    assert finding == "1,000,001 bytes, 1 over the budget of 1,000,000 of large"


def test_findings_of_several_runs_name_the_run() -> None:
    first, second = runs(1, 2)
    other = dataclasses.replace(second, scores=(line(model="f" * 64),))
    (finding,) = check(TRACK, record(runs=(first, other)))
    assert finding.startswith("runs[1].scores[0]: is of model 'ffffffffffff'")


def test_runs_have_artifacts_of_their_own() -> None:
    first, second = runs(1, 2)
    same = dataclasses.replace(second, artifact=first.artifact, scores=first.scores)
    findings = check(TRACK, record(runs=(first, same)))
    assert findings == ["two of its runs have the same artifact"]


def test_runs_are_scored_in_the_same_way() -> None:
    first, second = runs(1, 2)
    other = line(model=second.artifact, conditions={"causal": "so", "stride": 8})
    changed = dataclasses.replace(second, scores=(other,))
    (finding,) = check(TRACK, record(runs=(first, changed)))
    assert finding == "its scores under the policy 'frozen' differ in their settings"
    unlike = dataclasses.replace(second, scores=(line(kind="sgd", model=second.artifact),))
    (finding,) = check(TRACK, record(runs=(first, unlike), bpb=1.0))
    assert finding == "no policy scored every run; score each artifact with the same --ttt"


def test_scores_of_two_texts_do_not_compare_even_where_any_text_may_be_scored() -> None:
    free = dataclasses.replace(TRACK, text=None)
    elsewhere: dict[str, Any] = {"text": OTHER, "conditions": {"causal": "so"}}
    assert check(free, record(line(**elsewhere))) == []
    (finding,) = check(free, record(line(), line(kind="sgd", **elsewhere)))
    assert "different texts" in finding
    (finding,) = check(TRACK, record(line(**elsewhere)))
    assert finding.endswith("is of text 'cccccccccccc'; large scores 'dddddddddddd'")


def test_seeds_are_averaged_so_that_the_best_of_many_does_not_count() -> None:
    scores = [line(nats, seed=seed) for seed, nats in enumerate((5000.0, 6000.0, 7000.0))]
    whole = record(*scores)
    assert whole.bpb == pytest.approx(line(6000.0).bpb)
    assert check(TRACK, whole) == []
    (finding,) = check(TRACK, dataclasses.replace(whole, bpb=scores[0].bpb))
    assert "but its scores give" in finding


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


def test_entries_belong_to_a_metric() -> None:
    tokens = dataclasses.replace(TRACK, metric="tokens")
    (finding,) = check(tokens, record())
    assert finding == "large ranks by tokens, which no score gives; add a claim"
    (finding,) = check(tokens, entries.baseline())
    assert finding == "large ranks by tokens, which no compressor gives"
    core = dataclasses.replace(TRACK, metric="core")
    assert check(core, entries.claim(value=0.3)) == []
    assert check(core, entries.claim(value=30.2)) == ["value is 30.2, where CORE is a share of 1"]


def test_findings_across_entries() -> None:
    first = record()
    moved = runs(7)
    other = record(name="other", runs=moved)
    assert found(first, other) == []
    (finding,) = found(first, dataclasses.replace(other, name="tiny"))
    assert finding == "0002-tiny.json: has the same name as 0001-tiny.json"
    (finding,) = found(first, entries.claim("tiny"))
    assert finding == "0002-tiny.json: has the same name as 0001-tiny.json"
    (finding,) = found(first, record(name="copied"))
    assert finding == "0002-copied.json: has the same artifact as 0001-tiny.json"
    (finding,) = found(dataclasses.replace(first, track="larg"))
    assert "unknown track 'larg'; did you mean 'large'?" in finding


def test_the_same_artifact_may_stand_on_two_tracks() -> None:
    wide = dataclasses.replace(TRACK, name="wide")
    assert found(record(), record(name="also", track="wide"), tracks=(TRACK, wide)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"record": "nobody"}, "verifies 'nobody', which is no record or baseline before it"),
        ({"record": "said"}, "verifies 'said', which is no record or baseline before it"),
        ({"track": "small"}, "is on small, but tiny is on large"),
        ({"date": "2025-02-28"}, "is of 2025-02-28, before tiny, which is of 2025-03-01"),
        ({"artifact": OTHER}, "is of another artifact than tiny"),
        ({"artifact": None}, "is of another artifact than tiny"),
        ({"bpb": 1.74}, "found 1.74 bits per byte, which are not the 1.73"),
        ({"bpb": 1.74, "state": "reproduced"}, "found 1.74 bits per byte"),
    ],
)
def test_a_verification_fits_what_it_verifies(changes: dict[str, Any], words: str) -> None:
    sound = record()
    small = dataclasses.replace(TRACK, name="small")
    broken: Verification = entries.verification(sound, **changes)
    (finding,) = found(sound, entries.claim(), broken, tracks=(TRACK, small))
    assert finding.startswith("0003-again.json: ")
    assert words in finding


def test_a_verification_stands_behind_its_record() -> None:
    sound = record()
    (finding,) = found(entries.verification(sound), sound)
    assert finding.startswith("0001-again.json: verifies 'tiny'")


def test_what_was_made_anew_may_differ_by_the_margin() -> None:
    loose = dataclasses.replace(TRACK, margin=0.01)
    sound = record()
    anew: dict[str, Any] = {"state": "reproduced", "artifact": OTHER}
    for bpb, findings in ((sound.bpb + 0.0099, 0), (sound.bpb - 0.0099, 0), (sound.bpb + 0.011, 1)):
        again = entries.verification(sound, bpb=bpb, **anew)
        assert len(found(sound, again, tracks=(loose,))) == findings
    assert len(found(sound, entries.verification(sound, bpb=sound.bpb + 0.0099))) == 1


def test_a_reproduction_is_held_against_the_first_run() -> None:
    first, second = runs(1, 2)
    worse = dataclasses.replace(second, scores=(line(7000.0, model=second.artifact),))
    both = (first, worse)
    sound = record(runs=both, bpb=figure(both).bpb)
    again = entries.verification(sound, state="reproduced", bpb=line().bpb)
    assert found(sound, again) == []
    (finding,) = found(sound, dataclasses.replace(again, state="checked"))
    assert "which are not the" in finding


def test_a_baseline_is_verified_without_an_artifact() -> None:
    sound = entries.baseline()
    again = Verification(
        name="again",
        track="large",
        date="2025-04-01",
        record="xz",
        authors=("Barbara",),
        state="checked",
        bpb=sound.value,
        conditions={},
    )
    assert found(sound, again) == []
    (finding,) = found(sound, dataclasses.replace(again, state="reproduced"))
    assert "xz was not trained" in finding


def test_a_tolerance_is_relative() -> None:
    assert agrees(TRACK, 2.0, 2.0002)
    assert not agrees(TRACK, 2.0, 2.00021)
    assert not agrees(TRACK, 2.0, 1.9997)


def test_entries_survive_json() -> None:
    kept = record(line(), line(5500.0, "sgd", seed=3), recipe="segpt demo")
    for entry in (kept, entries.claim(), entries.baseline(), entries.verification(kept)):
        link = Link(number=1, previous=OTHER, entry=entry)
        assert decode(Link, encode(link)) == link
        assert canonical(decode(Link, encode(link))) == canonical(link)
