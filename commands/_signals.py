"""Signals that end a command: what was done is kept, and the process does end.

SIGINT (Ctrl-C), SIGTERM (``kill``, a scheduler) and SIGHUP (a closed terminal) are treated alike:
the command unwinds, or, where it asks :class:`Signals`, finishes its step and saves. The exit code
is 128 plus the number of the signal, as shells have it: 130, 143 and 129.

Python runs handlers only between its own instructions, which a computation in C may keep it from
for minutes. So a thread is told of each signal as well, and ends the process where nothing can be
lost and nothing else does.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import ClassVar, Self

from . import _report

NUMBERS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP"):
    NUMBERS.append(signal.SIGHUP)
PATIENCE = 8.0  # seconds that a command has to unwind
GRACE = 2.0  # seconds that it has after a second signal
SAME = 1.0  # seconds within which a repetition is not a second signal: `timeout` sends two


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Watch:
    """Within the block a signal raises :class:`Interrupted`, and the process ends in any case."""

    now: ClassVar["Watch | None"] = None

    def __init__(self) -> None:
        self.number: int | None = None  # of the last signal
        self.patient = False  # a step is under way, which will be saved
        self.first: dict[int, float] = {}  # when each signal came for the first time

    @property
    def exit_code(self) -> int:
        """Of a command that a signal ended."""
        return 128 + (self.number or signal.SIGINT)

    def __enter__(self) -> Self:
        self.active = threading.current_thread() is threading.main_thread() and Watch.now is None
        if not self.active:
            return self
        Watch.now = self
        self.before = {number: signal.getsignal(number) for number in NUMBERS}
        for number, handler in self.before.items():
            # `nohup` has SIGHUP ignored, and means it.
            if number not in (signal.SIGINT, signal.SIGTERM) and handler == signal.SIG_IGN:
                continue
            signal.signal(number, self._handle)
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.writing, False)
        self.wakeup = signal.set_wakeup_fd(self.writing, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(self.reading,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.active:
            return
        Watch.now = None
        signal.set_wakeup_fd(self.wakeup)
        for number, handler in self.before.items():
            signal.signal(number, handler)
        os.close(self.writing)  # the thread sees the end

    def repeated(self, number: int) -> bool:
        """Note that a signal came; whether it is a second one of its kind."""
        self.number = number
        return time.monotonic() - self.first.setdefault(number, time.monotonic()) > SAME

    def _handle(self, number: int, frame: FrameType | None) -> None:
        _let_go_of_closed_terminals()
        self.number = number
        raise Interrupted(number)

    def _listen(self, reading: int) -> None:
        counts: dict[int, float] = {}
        while byte := os.read(reading, 1):
            number = byte[0]
            if number not in self.before:
                continue
            now = time.monotonic()
            if number not in counts:
                counts[number] = now
                threading.Thread(target=self._expect, args=(number,), daemon=True).start()
            elif now - counts[number] > SAME:
                threading.Timer(GRACE, self._leave, (number, "at once")).start()
        os.close(reading)

    def _expect(self, number: int) -> None:
        time.sleep(PATIENCE)
        if Watch.now is self and not self.patient:
            self._leave(number, "in the middle of a long computation")

    def _leave(self, number: int, moment: str) -> None:
        """End the process from outside the main thread; files are whole whenever that happens."""
        line = f"segpt: ended by {signal.Signals(number).name} {moment}; what was saved stays\n"
        try:
            os.write(2, line.encode())
        finally:
            os._exit(128 + number)


@contextlib.contextmanager
def handled(number: signal.Signals, handler: Callable[[], None]) -> Iterator[None]:
    """Within the block a signal means what the command says, and ends nothing by itself."""
    watch = Watch.now
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watched = watch.before.pop(number, None) if watch is not None else None
    before = signal.signal(number, lambda *_: handler())
    try:
        yield
    finally:
        signal.signal(number, before)
        if watch is not None and watched is not None:
            watch.before[number] = watched


class Signals:
    """Within the block, a signal asks for a stop after the step; a second one stops at once.

    Before the first step is over there is nothing to save, so the first signal stops at once too.
    """

    def __enter__(self) -> Callable[[], bool]:
        self.asked = self.begun = False
        self.watch = Watch.now or Watch()
        self.before: dict[signal.Signals, object] = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {
                number: signal.signal(number, self._ask)
                for number in NUMBERS
                if number in (signal.SIGINT, signal.SIGTERM)
                or signal.getsignal(number) != signal.SIG_IGN
            }
        return self._asked

    def __exit__(self, *_: object) -> None:
        self.watch.patient = False
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _asked(self) -> bool:
        self.begun = True
        self.watch.patient = True
        return self.asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        _let_go_of_closed_terminals()
        repeated = self.watch.repeated(number)
        if repeated or not self.begun:
            raise Interrupted(number)
        if not self.asked:
            _report.notice("stopping after this step; the run saves itself")
        self.asked = True


def _let_go_of_closed_terminals() -> None:
    """Write no more to a terminal that is gone: each try would be an error in place of a line."""
    for stream in (sys.stdout, sys.stderr):
        try:
            descriptor = stream.fileno()
            os.write(descriptor, b"")
        except (AttributeError, ValueError):
            continue  # there is none, or it is no file
        except OSError:
            _report.silence(descriptor)
