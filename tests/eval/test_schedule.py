"""The plan of a score, held against what it promises for random texts, windows and policies."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segpt.config.score import Frozen, InPlace, LowRank, Phased, Policy, ScoreSpec, Sgd
from segpt.errors import ScoreError
from segpt.eval.schedule import BASE, Round, Segment, schedule, window_of
from segpt.eval.score_order import ScoreOrderGuard
from segpt.eval.windows import Spans, plan

Groups = Sequence[Sequence[Round]]


@dataclass(frozen=True)
class Case:
    """What a plan is made from."""

    starts: NDArray[np.int64]
    targets: int
    context: int
    spec: ScoreSpec
    reach: int | None
    processes: int

    def groups(self) -> Groups:
        return schedule(
            self.starts, self.targets, self.context, self.spec, self.reach, self.processes
        )

    def until(self, targets: int) -> "Case":
        """The same text, ending earlier."""
        return replace(self, targets=targets, starts=self.starts[self.starts <= targets])


def drawn(seed: int) -> Case:
    """A random case, always the same for a seed."""
    generator = np.random.default_rng(seed)

    def number(low: int, high: int) -> int:
        return int(generator.integers(low, high + 1))

    targets, context = number(1, 250), number(1, 40)
    rows = number(0, min(12, targets))
    starts = np.unique([0, *generator.integers(0, targets + 1, rows).tolist()])
    chunk = number(1, 60)
    adapters = LowRank(chunk=chunk, documents=number(1, 5))
    fractions = tuple(sorted({round(float(f), 2) for f in generator.uniform(0.01, 0.99, 3)}))
    policies: list[Policy] = [
        Frozen(),
        InPlace(),
        Sgd(chunk=chunk),
        adapters,
        Phased(adapters=adapters, fractions=fractions),
    ]
    policy = policies[number(0, 4)]
    rolling, document = bool(number(0, 1)), bool(number(0, 1))
    spec = ScoreSpec(
        mode="rolling" if rolling else "strided",
        boundaries=(
            "document"
            if document or (rolling and isinstance(policy, LowRank | Phased))
            else "stream"
        ),
        stride=number(1, context),
        batch=number(1, 9),
        policy=policy,
    )
    reach = None if isinstance(policy, InPlace) else number(0, 3 * context)
    return Case(starts, targets, context, spec, reach, number(1, 4))


def check_spans(
    case: Case, spans: Spans, segments: Sequence[Segment], ends: dict[int, int]
) -> None:
    """Spans of a batch stay within their segments, and read what the mode says they do."""
    strided, spec = case.spec.mode == "strided", case.spec
    places = np.stack([spans.segment, spans.begin, spans.start, spans.end], 1)
    for row, begin, start, end in places.tolist():
        segment = segments[row]
        assert segment.floor <= segment.begin <= segment.first < segment.stop
        if strided:
            assert segment.floor <= begin <= start < end <= segment.stop
            assert end - begin <= case.context
            assert begin == segment.floor or start - begin + 1 > case.context - spec.stride
        else:
            assert begin == ends.get(row, segment.begin) < end <= segment.stop
            assert start == min(max(begin, segment.first), end)
        ends[row] = end
    if not strided:
        # In lock-step, and those that are still read come first, so that no state moves.
        assert spans.segment.tolist() == list(range(len(spans)))
        assert len({int(b) - segments[i].begin for i, b in enumerate(spans.begin)}) == 1
        lengths = spans.shapes[:, 0]
        for row, length in enumerate(lengths.tolist()):
            assert length == lengths.max() or ends[row] == segments[row].stop


def check(case: Case, groups: Groups) -> None:
    """Every target once, and nothing is learnt from before it was scored, or scored after."""
    counts = np.zeros(case.targets, np.int64)
    persists = isinstance(case.spec.policy, Sgd | Frozen | InPlace)
    guard = ScoreOrderGuard(np.zeros(case.targets + 1, np.uint32))
    base = 0
    for group in groups:
        assert group[0].segments
        segments, ends, learnt = group[0].segments, dict[int, int](), dict[int, int]()
        rows = len(segments)
        for index, one in enumerate(group):
            assert index == 0 or not one.segments
            if one.segments:
                guard.open((), persists=persists)
            for spans in one.batches:
                check_spans(case, spans, segments, ends)
                if case.spec.mode == "rolling":
                    assert len(spans) <= rows
                    rows = len(spans)
                else:
                    assert len(spans) <= case.spec.batch
                for row, start, end in zip(spans.segment, spans.start, spans.end, strict=True):
                    assert end == start or max(base, learnt.get(int(row), 0)) <= start
                    counts[start:end] += 1
                guard.score(spans)
            for update in one.updates:
                assert (counts[update.first : update.stop] == 1).all()
                assert update.stop < case.targets
                if update.segment == BASE:
                    base = max(base, update.stop)
                else:
                    assert segments[update.segment].first <= update.first < update.stop
                    assert update.stop <= segments[update.segment].stop
                    learnt[update.segment] = update.stop
                guard.update(update)
        if persists:
            base = max([base, *learnt.values()])
        for row, end in ends.items():
            if case.spec.mode == "rolling":
                assert end == segments[row].stop
    assert (counts == 1).all()
    guard.finish(guard.counts)


def parts(usual: int, every: int) -> list[Any]:
    """Parts of the random cases: the ``usual`` ones, and what only ``make campaigns`` runs."""
    more = [pytest.param(part, marks=pytest.mark.campaign) for part in range(usual, every)]
    return [*range(usual), *more]


@pytest.mark.slow
@pytest.mark.parametrize("part", parts(4, 10))
def test_every_target_once_and_lessons_only_of_what_was_scored(part: int) -> None:
    for seed in range(400 * part, 400 * (part + 1)):
        case = drawn(seed)
        check(case, case.groups())


def origins(groups: Groups, mode: str) -> dict[int, tuple[int, int]]:
    """For each target, the token that its window begins with, and the first that it scores."""
    found: dict[int, tuple[int, int]] = {}
    for group in groups:
        for one in group:
            for spans in one.batches:
                for row, begin, start, end in zip(
                    spans.segment, spans.begin, spans.start, spans.end, strict=True
                ):
                    segment = group[0].segments[row]
                    origin = (begin, start) if mode == "strided" else (segment.begin, segment.first)
                    found |= dict.fromkeys(range(start, end), origin)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("part", parts(2, 4))
def test_no_window_depends_on_where_the_text_ends(part: int) -> None:
    """Nor where it is cut into segments: whoever has not seen the rest plans the same."""
    generator = np.random.default_rng(part)
    for seed in range(250 * part, 250 * (part + 1)):
        case = replace(drawn(seed), processes=1)
        if case.targets == 1:
            continue
        shorter = case.until(int(generator.integers(1, case.targets)))
        whole = origins(case.groups(), case.spec.mode)
        early = origins(shorter.groups(), case.spec.mode)
        assert early == {target: whole[target] for target in range(shorter.targets)}


@pytest.mark.slow
def test_lessons_of_a_stream_do_not_depend_on_where_it_ends() -> None:
    for seed in range(300):
        case = drawn(seed)
        case = replace(case, spec=replace(case.spec, policy=Sgd(chunk=1 + seed % 50)))
        longer = [x for group in case.groups() for one in group for x in one.updates]
        shorter = case.until(max(1, case.targets - seed % 90))
        for x in (x for group in shorter.groups() for one in group for x in one.updates):
            assert x in longer


@pytest.mark.parametrize("chunk", [1, 10, 16, 24, 1000])
def test_chunks_do_not_change_the_windows(chunk: int) -> None:
    targets, context, stride = 203, 16, 6
    windows = plan(targets, context, stride)
    spec = ScoreSpec(stride=stride, batch=4, policy=Sgd(chunk=chunk))
    (group,) = schedule(np.zeros(1, np.int64), targets, context, spec)
    flat = [batch for one in group for batch in one.batches]
    assert np.concatenate([b.start for b in flat]).tolist() == windows.start.tolist()
    assert np.concatenate([b.end for b in flat]).tolist() == windows.end.tolist()
    homes = [{int(s) // chunk for b in one.batches for s in b.start} for one in group]
    assert all(len(home) == 1 for home in homes)
    assert len(set.union(*homes)) == len(group)


def test_frozen_weights_need_one_round() -> None:
    assert len(schedule(np.zeros(1, np.int64), 203, 16, ScoreSpec(stride=6))) == 1


def test_the_window_of_a_target_is_the_one_that_is_planned() -> None:
    generator = np.random.default_rng(2)
    for _ in range(500):
        context = int(generator.integers(1, 40))
        stride = int(generator.integers(1, context + 1))
        first = int(generator.integers(0, 30))
        floor = first if generator.random() < 0.5 else int(generator.integers(0, first + 1))
        segment = Segment(first, first, first + int(generator.integers(1, 150)), floor)
        windows = plan(segment.stop - first, context, stride, first, floor)
        for start, end in zip(windows.start, windows.end, strict=True):
            for target in range(start, end):
                assert window_of(target, segment, context, stride) == start


def test_processes_share_a_stream_in_stretches_that_warm_up() -> None:
    spec = ScoreSpec(mode="rolling", batch=2)
    groups = schedule(np.zeros(1, np.int64), 1000, 16, spec, reach=30, processes=3)
    assert [group[0].segments for group in groups] == [
        [Segment(0, 0, 334)],
        [Segment(304, 334, 668)],
        [Segment(638, 668, 1000)],
    ]
    assert spec.policy.resets
    alone = schedule(np.zeros(1, np.int64), 1000, 16, spec, reach=30)
    assert [group[0].segments for group in alone] == [[Segment(0, 0, 1000)]]


def test_a_stride_beyond_the_context_is_refused() -> None:
    with pytest.raises(ScoreError, match="stride of 64 leaves gaps between windows of 32"):
        schedule(np.zeros(1, np.int64), 100, 32, ScoreSpec(stride=64))
    assert schedule(np.zeros(1, np.int64), 100, 32, ScoreSpec(stride=64, mode="rolling"))


@pytest.mark.parametrize("policy", [LowRank(), Phased()])
def test_adapters_of_documents_do_not_roll_over_their_borders(policy: Policy) -> None:
    spec = ScoreSpec(mode="rolling", policy=policy)
    with pytest.raises(ScoreError, match=r"cannot roll over .* choose document boundaries"):
        schedule(np.zeros(1, np.int64), 100, 32, spec)
