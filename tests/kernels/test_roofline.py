"""The least time of a kernel: bytes and operations of launches that never run."""

import json
from collections.abc import Callable, Sequence

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.slow

from bench import kernel_page  # noqa: E402
from bench.kernel_roofline import DEVICES, Effort, effort, over_all  # noqa: E402
from bench.kernel_scenarios import scenarios  # noqa: E402
from bench.kernel_traffic import counted, interpreted  # noqa: E402
from segpt.kernels.launch import Launch  # noqa: E402


@pytest.mark.parametrize("name", scenarios())
def test_what_is_predicted_is_what_is_counted(name: str) -> None:
    scenario = scenarios()[name]
    seen = []

    def launched(launch: Launch) -> int:
        traffic = interpreted(launch)
        seen.append((effort(launch), Effort(traffic.distinct, traffic.flops)))
        return 0

    counted(lambda: scenario.fused(scenario.small[0], "cpu", torch.float16), launched)
    assert len(seen) >= 2
    for predicted, real in seen:
        assert predicted == real


@pytest.mark.parametrize(
    ("grid", "of"),
    [
        ((5, 7), lambda p: 3),
        ((9,), lambda p: p[0] + 1),
        ((6, 4), lambda p: min(p[0], 2)),
        ((5, 5, 3), lambda p: int(p[1] <= p[0])),
        ((1, 1, 8), lambda p: 2),
    ],
)
def test_few_programs_stand_for_all(
    grid: tuple[int, ...], of: Callable[[Sequence[int]], int]
) -> None:
    every = torch.cartesian_prod(*(torch.arange(n) for n in grid)).view(-1, len(grid)).tolist()
    ran = []

    def noted(program: Sequence[int]) -> int:
        ran.append(tuple(program))
        return of(program)

    assert over_all(grid, noted) == sum(of(program) for program in every)
    assert len(ran) == len(set(ran)) <= len(every)


def test_the_slower_of_memory_and_cores_decides() -> None:
    device = DEVICES["H100"]
    assert Effort(3_350_000, 0).seconds(device, False) == pytest.approx(1e-6)
    assert Effort(1, 989_400_000).seconds(device, False) == pytest.approx(1e-6)
    assert Effort(1, 66_900_000).seconds(device, True) == pytest.approx(1e-6)


def test_the_page_shows_the_results() -> None:
    result = json.loads(kernel_page.RESULTS.read_text("utf-8"))
    section = kernel_page.section(result)
    assert section in kernel_page.PAGE.read_text("utf-8")
