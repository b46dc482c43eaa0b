"""Fewer threads while other programs want the same cores, and all of them again afterwards.

Threads that share a product wait for each other by spinning. Where another program has taken a
core, they wait for a thread that does not run, in every product: training falls to a third of its
speed beside one busy program, and to a hundredth beside several. On one thread nobody waits.
Sleeping instead (``OMP_WAIT_POLICY=PASSIVE``) avoids that too, but costs a quarter of the speed on
a machine with nothing else to do.
"""

import os
import time
from collections.abc import Callable, Mapping

import torch

WINDOW = 0.5  # seconds of steps, at least, before a judgement
CROWDED = 0.85  # of the processor time that all threads would have: others took the rest
PATIENCE = 10.0  # seconds before more threads are tried again; twice as long after each failure
LONGEST = 160.0
_SIDE, _PRODUCTS = 256, 40  # of the trial: some 20 ms on one thread
_WORTH = 0.9  # of the time on one thread, which more threads must stay below

Clock = Callable[[], float]


class Threads:
    """The threads of this process on a CPU, which :meth:`step` adjusts after every step.

    A number that the user sets (``OMP_NUM_THREADS``) is kept, and so is one.
    """

    def __init__(
        self,
        device: str,
        environment: Mapping[str, str] = os.environ,
        wall: Clock = time.perf_counter,
        processor: Clock = time.process_time,
    ) -> None:
        """Begin with the threads that torch has.

        Args:
            device: where the model computes, e.g. ``cpu``.
            environment: where the user may have fixed the number.
            wall: seconds that pass.
            processor: seconds of all threads of this process on any core.
        """
        self.most = self.fewest = self.count = torch.get_num_threads()
        self.fixed = device != "cpu" or self.most == 1 or "OMP_NUM_THREADS" in environment
        self.notice: Callable[[str], None] = lambda _: None
        self._wall, self._processor = wall, processor
        self._patience, self._retry = PATIENCE, 0.0
        self._told = False
        self.restart()

    def start(self) -> None:
        """Try the threads before the first step, which could take very long on too many."""
        if not self.fixed and not self._worth():
            self._leave(1)
        self.restart()

    def restart(self) -> None:
        """Measure from now on: something else than steps has taken time."""
        self._since = self._wall(), self._processor()

    def step(self) -> None:
        """Look at the time since the last judgement, and use fewer threads, or more again."""
        if self.fixed:
            return
        now = self._wall()
        seconds, busy = now - self._since[0], self._processor() - self._since[1]
        if seconds < WINDOW:
            return
        if self.count > 1 and busy < CROWDED * seconds * self.count:
            self._leave(max(1, min(self.count - 1, int(busy / seconds))))
        elif self.count == self.most:
            self._patience = PATIENCE
        elif now >= self._retry:
            self._use(self.most)
            if not self._worth():
                self._leave(1)
        self.restart()

    def release(self) -> None:
        """Give the process back the threads that it had."""
        if not self.fixed:
            self._use(self.most)

    def _worth(self) -> bool:
        """Whether products are faster on all threads than on one, as they are when nobody waits."""
        factor = torch.ones(_SIDE, _SIDE)
        self._use(1)
        alone = self._time(factor, float("inf"))
        self._use(self.most)
        return self._time(factor, alone) < _WORTH * alone

    def _time(self, factor: torch.Tensor, limit: float) -> float:
        """Seconds of a few products, of which no more begins after the limit."""
        factor @ factor  # threads are made at the first product
        started, seconds = self._wall(), 0.0
        for _ in range(_PRODUCTS):
            factor @ factor
            seconds = self._wall() - started
            if seconds > limit:
                break
        return seconds

    def _leave(self, count: int) -> None:
        """Compute on fewer threads, and look again after a while."""
        self._use(count)
        self.fewest = min(self.fewest, count)
        self._retry = self._wall() + self._patience
        self._patience = min(LONGEST, 2 * self._patience)
        if not self._told:
            self._told = True
            self.notice(
                f"other programs want these cores too: computing on {count} of {self.most} "
                f"threads while they do; OMP_NUM_THREADS={self.most} keeps all of them"
            )

    def _use(self, count: int) -> None:
        self.count = count
        torch.set_num_threads(count)
