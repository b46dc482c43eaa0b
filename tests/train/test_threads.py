"""Threads are given up while other programs want their cores, and taken back afterwards."""

import itertools
from collections.abc import Iterator

import pytest
import torch

from segpt.train import threads
from segpt.train.threads import LONGEST, PATIENCE, Threads


class Machine:
    """A clock, and how much of ``cores`` the process gets while it steps."""

    def __init__(self) -> None:
        self.now = self.spent = 0.0
        self.free = 4.0

    def run(self, seconds: float, count: int) -> None:
        """Let time pass while ``count`` threads are computing."""
        self.now += seconds
        self.spent += seconds * min(count, self.free)


@pytest.fixture
def four() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine(four: None, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(Threads, "_worth", lambda self: self._use(4) or machine.free >= 4)
    return machine


def made(machine: Machine, **environment: str) -> Threads:
    return Threads("cpu", environment, lambda: machine.now, lambda: machine.spent)


def steps(machine: Machine, threads: Threads, count: int) -> None:
    for _ in range(count):
        machine.run(0.2, threads.count)
        threads.step()


def test_alone_all_threads_stay(machine: Machine) -> None:
    used = made(machine)
    steps(machine, used, 100)
    assert (used.count, used.fewest) == (4, 4)


def test_beside_another_program_fewer_compute_until_it_ends(machine: Machine) -> None:
    used = made(machine)
    said: list[str] = []
    used.notice = said.append
    machine.free = 2.5
    steps(machine, used, 3)
    assert used.count == torch.get_num_threads() == 2
    steps(machine, used, 400)  # they are tried again, and it is no better
    assert used.count == 1
    assert len(said) == 1
    assert "OMP_NUM_THREADS=4 keeps all" in said[0]
    machine.free = 4.0
    steps(machine, used, int(LONGEST / 0.2) + 3)
    assert used.count == torch.get_num_threads() == 4
    assert used.fewest == 1


def test_trials_become_rarer(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    used = made(machine)
    machine.free = 1.0
    trials: list[float] = []

    def worth(self: Threads) -> bool:
        trials.append(machine.now)
        return False

    monkeypatch.setattr(Threads, "_worth", worth)
    steps(machine, used, 4000)
    between = [round(b - a, 3) for a, b in itertools.pairwise(trials)]
    assert between == sorted(between)
    assert between[0] >= 2 * PATIENCE
    assert between[-1] == pytest.approx(LONGEST, abs=1)


def test_time_that_is_no_step_does_not_count(machine: Machine) -> None:
    used = made(machine)
    for _ in range(50):
        steps(machine, used, 2)
        machine.run(5.0, 1)  # a validation that computes little
        used.restart()
    assert used.fewest == 4


def test_a_number_that_the_user_sets_is_kept(machine: Machine) -> None:
    used = made(machine, OMP_NUM_THREADS="4")
    machine.free = 1.0
    used.start()
    steps(machine, used, 100)
    assert used.count == torch.get_num_threads() == 4
    gpu = Threads("cuda", {}, lambda: machine.now, lambda: machine.spent)
    steps(machine, gpu, 100)
    assert gpu.count == 4


def test_the_first_step_already_runs_on_the_right_number(machine: Machine) -> None:
    used = made(machine)
    machine.free = 1.0
    used.start()
    assert used.count == torch.get_num_threads() == 1
    used.release()
    assert torch.get_num_threads() == 4


def test_the_trial_compares_one_thread_with_all(
    four: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products of a fixed size, timed on one thread first; a stall ends the trial early."""
    for slow, worth in ((0.5, True), (5.0, False)):
        now = 0.0

        def wall(slow: float = slow) -> float:
            nonlocal now
            now += slow if torch.get_num_threads() == 4 else 1.0
            return now

        used = Threads("cpu", {}, wall, lambda: 0.0)
        began = now
        assert used._worth() is worth
        assert now - began < 3 * threads._PRODUCTS
