"""Bytes that kernels and plain torch move, counted in the interpreter."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.slow

from bench.kernel_scenarios import (  # noqa: E402 - needs Triton
    at_full_size,
    at_small_size,
    scenarios,
    whole_tensors,
)
from bench.kernel_traffic import LINE, Moved, Operations, Traffic, interpreted  # noqa: E402
from segpt.kernels.launch import Launch  # noqa: E402
from tests.kernels.planted import copied  # noqa: E402


def copy(count: int, programs: int, **constants: Any) -> Traffic:
    x, y = torch.ones(count), torch.empty(32 * programs)
    constants = {"BLOCK": 32, "TIMES": 1, "MASKED": True} | constants
    return interpreted(Launch(copied, (programs,), {"x": x, "y": y, "count": count}, constants))


def test_loads_and_stores_are_counted_without_masked_lanes() -> None:
    traffic = copy(70, 3)
    assert traffic.kernel == "kernels.copied"
    assert traffic.read == {"x": Moved(280, 280)}
    assert traffic.written == {"y": Moved(280, 280)}
    assert (traffic.requested, traffic.distinct, traffic.flops) == (560, 560, 0)
    lines = [[access.lines.tolist() for access in program] for program in traffic.programs]
    assert lines == [[[0], [3]], [[1], [4]], [[2], [5]]]  # x takes the lines up to 2


def test_a_planted_double_read_is_seen() -> None:
    traffic = copy(128, 4, TIMES=2)
    assert traffic.read == {"x": Moved(1024, 512)}
    assert traffic.written == {"y": Moved(512, 512)}
    # One program after the other, a line is still there when it is read again. Side by side, with
    # room for two lines, none is.
    assert traffic.through_cache(2 * LINE, 1) == 8 * LINE
    assert traffic.through_cache(2 * LINE, 4) == 12 * LINE
    assert traffic.through_cache(64 * LINE, 4) == 8 * LINE


def test_a_dropped_mask_is_seen() -> None:
    with pytest.raises(IndexError, match="outside"):
        copy(70, 3, MASKED=False)
    assert copy(96, 3, MASKED=False).distinct == 768


def test_operations_of_torch_are_counted_by_their_tensors() -> None:
    a, b, out = torch.ones(4, 8), torch.ones(8, 2), torch.empty(4, 2)
    index = torch.zeros(4, 1, dtype=torch.int64)
    expected: dict[str, tuple[Callable[[], Any], int]] = {
        "views": (lambda: a.view(2, 16).T.unsqueeze(0), 0),
        "memory that is handed out": (lambda: torch.empty_like(a), 0),
        "a product": (lambda: a @ b, 128 + 64 + 32),
        "into a tensor": (lambda: torch.mm(a, b, out=out), 128 + 64 + 32),
        "in place": (lambda: a.mul_(2.0), 128 + 128),
        "the same twice": (lambda: a * a, 128 + 128),
        "expanded": (lambda: a * b[0, :1].expand(4, 8), 128 + 4 + 128),
        "overwritten": (out.zero_, 32),
        "copied": (lambda: out.copy_(a[:, :2]), 32 + 32),
        "another type": (a.half, 128 + 64),
        "picked": (lambda: a.gather(1, index), 16 + 32 + 16),
        "scattered": (lambda: a.scatter_add_(1, index, a[:, :1]), 16 + 16 + 32 + 16),
    }  # fmt: skip
    for name, (work, moved) in expected.items():
        with Operations() as operations:
            work()
        assert operations.moved == moved, name


@pytest.mark.parametrize("name", scenarios())
def test_fused_paths_move_few_bytes(name: str) -> None:
    scenario = scenarios()[name]
    # Bytes follow the tensors exactly, at sizes no tile divides, so they do at any size.
    whole = whole_tensors(scenario)
    for sizes in scenario.small[:2]:
        counted, _ = at_small_size(scenario, sizes)
        assert counted == at_full_size(scenario, sizes, whole)
    assert at_full_size(scenario, scenario.full, whole).ratio <= scenario.bound
    assert at_small_size(scenario, scenario.small[0])[0].ratio < 1
