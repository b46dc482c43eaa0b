"""Every target once, with the context that the stride promises."""

import numpy as np
import pytest

from segpt.eval.windows import Spans, batched, plan


def coverage(windows: Spans, targets: int) -> list[int]:
    """How often each target is scored."""
    times = np.zeros(targets, dtype=np.int64)
    for start, end in zip(windows.start.tolist(), windows.end.tolist(), strict=True):
        times[start:end] += 1
    return times.tolist()


@pytest.mark.slow
def test_each_target_once_with_its_context() -> None:
    generator = np.random.default_rng(0)
    short = 0
    for _ in range(5_000):
        context = int(generator.integers(1, 65))
        stride = int(generator.integers(1, context + 1))
        targets = int(generator.integers(1, 300))
        windows = plan(targets, context, stride)
        assert coverage(windows, targets) == [1] * targets
        assert windows.first == 0
        assert windows.end[0] == min(context, targets)
        for begin, start, end in zip(windows.begin, windows.start, windows.end, strict=True):
            assert 0 <= begin <= start < end <= targets
            assert end - begin <= context
            if start > 0:
                assert end - start <= stride
                assert start - begin + 1 > context - stride
        short += targets <= context - stride
    assert short > 100


def test_the_tail_of_a_stream_is_scored() -> None:
    # What scores only the last stride of each window leaves 960 of these targets out, and what
    # truncates to whole windows another 51.
    targets = 1024 * 3 + 51
    windows = plan(targets, context=1024, stride=64)
    assert int((windows.end - windows.start).sum()) == targets
    assert windows.stop == targets
    assert windows.start[-1] < windows.stop


def test_batches_are_runs_of_one_shape() -> None:
    for targets in (1, 7, 16, 17, 100, 101, 160):
        windows = plan(targets, context=16, stride=3)
        batches = list(batched(windows, 4))
        assert all(1 <= len(batch) <= 4 for batch in batches)
        assert all(len(np.unique(batch.shapes, axis=0)) == 1 for batch in batches)
        assert np.concatenate([b.start for b in batches]).tolist() == windows.start.tolist()
        assert np.concatenate([b.end for b in batches]).tolist() == windows.end.tolist()
        full = [len(b) for b in batches if b.shapes[0].tolist() == [16, 3]]
        assert full[:-1] == [4] * (len(full) - 1)


def test_windows_that_do_not_overlap_make_one_shape() -> None:
    batches = list(batched(plan(64, context=16, stride=16), 8))
    assert [len(batch) for batch in batches] == [4]


def test_where_a_window_begins_is_known_before_the_text_ends() -> None:
    generator = np.random.default_rng(1)
    for _ in range(2_000):
        context = int(generator.integers(1, 65))
        stride = int(generator.integers(1, context + 1))
        targets = int(generator.integers(2, 300))
        floor = int(generator.integers(0, 50))
        first = floor + int(generator.integers(0, 50))
        longer = plan(targets, context, stride, first, floor)
        shorter = plan(int(generator.integers(1, targets)), context, stride, first, floor)
        assert np.array_equal(longer.begin[: len(shorter)], shorter.begin)
        assert np.array_equal(longer.start[: len(shorter)], shorter.start)
        assert np.array_equal(longer.end[: len(shorter) - 1], shorter.end[:-1])


def test_windows_of_a_part_read_what_lies_before_it() -> None:
    windows = plan(20, context=16, stride=4, first=100, floor=90)
    assert windows.first == 100
    assert windows.stop == 120
    assert windows.begin.tolist() == [90, 92, 96, 100, 104]
    assert windows.start.tolist() == [100, 104, 108, 112, 116]
    assert plan(20, context=16, stride=4, first=100, floor=100).end.tolist() == [116, 120]
