"""Every way to score: the same nats however it is batched, interrupted or looked at."""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.config.score import Frozen, InPlace, LowRank, Mode, Phased, ScoreSpec, Sgd
from segpt.errors import ScoreError
from segpt.eval.ledger import EncodedText
from segpt.eval.tally import ScoreProgress, Tally
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.stages.unfinished import read_scoring, save_scoring
from segpt.values import Arrays
from tests.eval.one_tally import lines

MakeModel = Callable[..., Model]
MakeLedger = Callable[..., EncodedText]
Tallied = Callable[..., Tally]
Able = Callable[[ScoreSpec], Model]
State = dict[str, NDArray[Any]]

# Documents longer than a window and than a chunk, and one of a single token.
TARGETS, STARTS = 110, (0, 14, 15, 40, 81, 85)


class StopError(Exception):
    """Ends a score between two rounds."""


def bits(found: Tally, ledger: EncodedText) -> float:
    return math.fsum(found.nats) / math.log(2) / ledger.bytes


def after(count: int, taken: list[State]) -> Callable[[Callable[[], State]], None]:
    """A pause that takes the state after so many rounds and ends the score."""
    rounds = iter(range(1, 1_000_000))

    def pause(take: Callable[[], State]) -> None:
        if next(rounds) == count:
            taken.append(take())
            raise StopError

    return pause


@pytest.mark.slow
def test_batches_do_not_change_the_score(
    combination: ScoreSpec, able: Able, ledger: MakeLedger, tallied: Tallied
) -> None:
    model, whole = able(combination), ledger(TARGETS, STARTS)
    found = {
        batch: bits(tallied(model, whole, replace(combination, batch=batch)), whole)
        for batch in (1, 3, 32)
    }
    assert max(found.values()) - min(found.values()) < 1e-6
    again = tallied(model, whole, replace(combination, batch=3))
    assert bits(again, whole) == found[3]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["strided", "rolling"])
@pytest.mark.parametrize("policy", [Frozen(), Sgd(chunk=64, rate=0.2), LowRank(rank=2, chunk=32)])
def test_threads_do_not_change_the_score(
    able: Able,
    ledger: MakeLedger,
    tallied: Tallied,
    threads: Callable[[int], None],
    mode: Mode,
    policy: Frozen | Sgd | LowRank,
) -> None:
    spec = ScoreSpec(mode=mode, boundaries="document", stride=8, policy=policy)
    whole, found = ledger(TARGETS, STARTS), []
    for count in (1, 2):
        threads(count)
        found.append(bits(tallied(able(spec), whole, spec), whole))
    assert abs(found[0] - found[1]) < 1e-6


@pytest.mark.slow
def test_a_score_goes_on_exactly_from_where_it_stopped(
    combination: ScoreSpec, able: Able, ledger: MakeLedger, tallied: Tallied, tmp_path: Path
) -> None:
    combination = replace(combination, batch=2)
    model, whole = able(combination), ledger(TARGETS, STARTS)
    rounds: list[Callable[[], State]] = []
    probes = np.array([3, 13, 14, 15, 103])
    whole_way: list[ScoreProgress] = []
    plain = tallied(
        model, whole, combination, report=whole_way.append, probes=probes, pause=rounds.append
    )
    origin = {"what": "a test"}
    resume: Arrays | None = None
    passed = 0
    seen: list[ScoreProgress] = []
    for count in sorted({1, len(rounds) // 2, len(rounds)} - {0} if rounds else ()):
        taken: list[State] = []
        legs: dict[str, Any] = {"report": seen.append, "probes": probes, "resume": resume}
        with pytest.raises(StopError):
            tallied(model, whole, combination, pause=after(count - passed, taken), **legs)
        save_scoring(tmp_path / "scoring", taken[0], origin)
        resume, passed = read_scoring(tmp_path / "scoring", origin), count
        assert seen[-1].done == int(taken[0]["frontier|counts"].sum())
    found = tallied(model, whole, combination, report=seen.append, probes=probes, resume=resume)
    assert np.array_equal(found.nats, plain.nats)
    assert np.array_equal(found.rows, plain.rows)
    assert found.ledger == plain.ledger
    assert found.updates == plain.updates
    assert seen[-1].done == whole.targets
    assert [at.done for at in seen] == [at.done for at in whole_way]


@pytest.mark.slow
def test_what_a_pause_takes_is_not_changed_by_going_on(
    combination: ScoreSpec, able: Able, ledger: MakeLedger, tallied: Tallied
) -> None:
    taken: list[State] = []
    copies: list[State] = []

    def pause(take: Callable[[], State]) -> None:
        taken.append(take())
        copies.append({name: array.copy() for name, array in taken[-1].items()})

    tallied(able(combination), ledger(TARGETS, STARTS), replace(combination, batch=2), pause=pause)
    for state, copy in zip(taken, copies, strict=True):
        assert all(np.array_equal(copy[name], array) for name, array in state.items())


@pytest.mark.slow
def test_rows_are_distributions_and_hold_the_nats(
    combination: ScoreSpec, able: Able, ledger: MakeLedger, tallied: Tallied
) -> None:
    model, whole = able(combination), ledger(TARGETS, STARTS)
    probes = np.array([0, 1, 13, 14, 15, 16, 40, 41, 70, 84, 85, 109])
    found = tallied(model, whole, combination, probes=probes)
    assert found.rows.shape == (len(probes), 32)
    assert np.abs(np.exp(found.rows).sum(1) - 1).max() < 1e-5
    wanted = found.rows[np.arange(len(probes)), whole.ids[probes + 1]]
    assert np.abs(found.nats[probes] + wanted).max() < 1e-5
    assert np.array_equal(found.nats, tallied(model, whole, combination).nats)


def test_frozen_rows_are_a_direct_softmax(
    tiny: MakeModel, ledger: MakeLedger, tallied: Tallied
) -> None:
    model, whole, probes = tiny(), ledger(TARGETS, STARTS), np.array([0, 7, 16, 70, 109])
    for mode, boundaries in (("strided", "stream"), ("rolling", "document")):
        spec = ScoreSpec(mode=mode, boundaries=boundaries, stride=1)  # type: ignore[arg-type]
        found = tallied(model, whole, spec, probes=probes)
        for target, row in zip(probes.tolist(), found.rows, strict=True):
            first = max(0, target - 15)
            if boundaries == "document":
                first = int(whole.starts[whole.starts <= target].max())
            tokens = torch.from_numpy(whole.ids[first : target + 1].astype(np.int64))[None]
            with torch.no_grad():
                hidden = model.hidden(tokens, window=16 if mode == "rolling" else None).x
                expected = model.logits(hidden)[0, -1].double().log_softmax(-1).numpy()
            assert np.abs(row - expected).max() < 1e-5


@pytest.mark.slow
def test_no_target_depends_on_a_later_token(
    combination: ScoreSpec, able: Able, ledger: MakeLedger, tallied: Tallied
) -> None:
    """One window, document and chunk at a time, so that sums do not move with the batch."""
    policy = combination.policy
    if isinstance(policy, LowRank):
        policy = replace(policy, documents=1)
    if isinstance(policy, Phased):
        policy = replace(policy, adapters=replace(policy.adapters, documents=1))
    spec = replace(combination, batch=1, policy=policy)
    model, whole = able(spec), ledger(70, (0, 15, 16, 36))
    plain = tallied(model, whole, spec).nats
    generator = np.random.default_rng(0)
    reached = 0
    for part in range(1, 71, 10):
        where = part + int(generator.integers(10))
        if where in whole.starts:
            continue
        ids = whole.ids.copy()
        ids[where] = 1 + (ids[where] + generator.integers(0, 30)) % 31
        changed = replace(whole, ids=ids)
        nats = tallied(model, changed, spec).nats
        # Token j is target j - 1, the first whose nats may change.
        assert np.array_equal(nats[: where - 1], plain[: where - 1])
        reached += not np.array_equal(nats[where:], plain[where:])
    assert reached > 4


@pytest.mark.slow
def test_each_lesson_comes_after_its_targets_in_the_ledger(
    combination: ScoreSpec, able: Able, ledger: MakeLedger, tallied: Tallied
) -> None:
    found = tallied(able(combination), ledger(TARGETS, STARTS), combination)
    scored = np.zeros(TARGETS, np.int64)
    for event, _, _, first, stop in found.ledger:
        if event == "score":
            scored[first:stop] += 1
        else:
            assert (scored[first:stop] == 1).all()
    assert (scored == 1).all()
    assert (found.counts == 1).all()
    learns = not isinstance(combination.policy, Frozen | InPlace)
    assert (found.updates > 0) == learns
    assert any(entry.event == "learn" for entry in found.ledger) == learns


@pytest.mark.slow
def test_the_model_of_the_caller_is_left_alone(
    combination: ScoreSpec, able: Able, ledger: MakeLedger, tallied: Tallied
) -> None:
    model = able(combination)
    before = [weight.tensor.detach().clone() for weight in weights(model)]
    versions = [weight.tensor._version for weight in weights(model)]
    tallied(model, ledger(TARGETS, STARTS), combination)
    assert all(torch.equal(x, w.tensor) for x, w in zip(before, weights(model), strict=True))
    assert versions == [weight.tensor._version for weight in weights(model)]
    assert all(getattr(weight.param, "view", None) is None for weight in weights(model))


@pytest.mark.slow
def test_every_policy_changes_what_it_should(
    combination: ScoreSpec, able: Able, ledger: MakeLedger, tallied: Tallied
) -> None:
    """Nothing before the first update, nearly everything after it."""
    # In most of the text there must have been an update, which comes after a window.
    starts = (0, 20, 21, 50, 110, 117)
    model, whole = able(combination), ledger(160, starts)
    plain = tallied(model, whole, replace(combination, policy=Frozen(), ngram=None)).nats
    nats = tallied(model, whole, combination).nats
    match combination.policy:
        case Frozen():
            first = 0 if combination.ngram else 160
        case Sgd(chunk=chunk):
            first = chunk if combination.boundaries == "stream" else starts[1]
        case LowRank(chunk=chunk) | Phased(adapters=LowRank(chunk=chunk)):
            first = chunk
        case InPlace():
            first = 4
    if combination.ngram is None:
        assert np.allclose(nats[:first], plain[:first], atol=1e-5)
    assert first == 160 or np.mean(~np.isclose(nats[first:], plain[first:])) > 0.5


@pytest.mark.slow
def test_a_report_can_end_the_score(
    combination: ScoreSpec, able: Able, ledger: MakeLedger, tallied: Tallied
) -> None:
    def report(progress: ScoreProgress) -> None:
        raise ScoreError(f"{progress.done} of {progress.total}")

    with pytest.raises(ScoreError, match=f"of {TARGETS}"):
        tallied(able(combination), ledger(TARGETS, STARTS), combination, report=report)


def test_fast_weights_are_needed_to_adapt_in_place(
    tiny: MakeModel, ledger: MakeLedger, tallied: Tallied
) -> None:
    with pytest.raises(ScoreError, match=r"without fast weights.*train with feed\.fast"):
        tallied(tiny(), ledger(TARGETS, STARTS), ScoreSpec(stride=6, policy=InPlace()))


def test_other_policies_run_a_model_without_its_fast_weights(
    able: Able, ledger: MakeLedger, tallied: Tallied
) -> None:
    spec = ScoreSpec(stride=6)
    fast = able(replace(spec, policy=InPlace()))
    frozen = tallied(fast, ledger(TARGETS, STARTS), spec).nats
    assert np.array_equal(
        frozen, tallied(fast, ledger(TARGETS, STARTS), replace(spec, policy=InPlace(rate=0.0))).nats
    )
    assert not np.array_equal(
        frozen, tallied(fast, ledger(TARGETS, STARTS), replace(spec, policy=InPlace())).nats
    )


@pytest.mark.slow
def test_a_fresh_process_finds_the_same_to_the_last_bit() -> None:
    script = Path(__file__).with_name("one_tally.py")
    found = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    ).stdout.splitlines()
    assert len(found) > 15
    assert found == lines()
