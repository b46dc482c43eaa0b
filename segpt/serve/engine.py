"""One model and the requests that share it: a thread gives each a token in turn."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from segpt.config.precision import Precision, of_measuring
from segpt.errors import SegptError
from segpt.kernels.precision import computing
from segpt.stages.answer import Answer, Finish, SpelledToken
from segpt.stages.threads import one_thread

from .limits import Limits, RequestError


class Progress(NamedTuple):
    """What came of an answer since the last time.

    Attributes:
        text: the next piece.
        spelled: the next tokens, where their probabilities were asked for.
        finish: why the answer ended, if it did.
        tokens: how many have come in all.
        error: what went wrong instead.
    """

    text: str = ""
    spelled: tuple[SpelledToken, ...] = ()
    finish: Finish | None = None
    tokens: int = 0
    error: str | None = None


class AnswerJob:
    """A request at work. ``notify`` gets its progress, from the thread of the engine."""

    def __init__(self, answer: Answer, notify: Callable[[Progress], None]) -> None:
        self.answer, self.notify = answer, notify
        self.cancelled = False
        self._sent = 0

    def advance(self) -> bool:
        """One step; whether there is more to do."""
        if self.cancelled:
            return False
        try:
            piece = self.answer.advance()
        except (SegptError, RuntimeError, MemoryError) as error:
            self.fail(str(error) or type(error).__name__)
            return False
        spelled = tuple(self.answer.spelled[self._sent :])
        self._sent += len(spelled)
        finish = self.answer.finish
        if piece or spelled or finish:
            self._notify(Progress(piece, spelled, finish, self.answer.tokens))
        return finish is None

    def fail(self, reason: str) -> None:
        """Say that there will be no answer."""
        self._notify(Progress(error=reason))

    def _notify(self, progress: Progress) -> None:
        try:
            self.notify(progress)
        except RuntimeError:  # the loop that waited for it is closed
            self.cancelled = True


class Engine:
    """Works on ``limits.parallel`` requests by turns; as many as ``limits.waiting`` wait."""

    def __init__(self, limits: Limits, device: str, precision: Precision) -> None:
        self.limits, self.device, self.precision = limits, device, precision
        self._changed = threading.Condition()
        self._waiting: deque[AnswerJob] = deque()
        self._active: deque[AnswerJob] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="segpt-engine", daemon=True)

    def start(self) -> None:
        """Begin to work on what is submitted."""
        self._thread.start()

    @property
    def busy(self) -> tuple[int, int]:
        """How many requests the model works on, and how many wait."""
        with self._changed:
            return len(self._active), len(self._waiting)

    def check_room(self) -> None:
        """Refuse a request early where it would be turned away later.

        Raises:
            RequestError: if no more can wait.
        """
        with self._changed:
            self._check_room()

    def submit(self, job: AnswerJob) -> None:
        """Let a job take its turn.

        Raises:
            RequestError: if no more can wait.
        """
        with self._changed:
            self._check_room()
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: AnswerJob) -> None:
        """Stop the work for a job whose client has gone; its place is free at once."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)

    def close(self) -> None:
        """Stop after the step that is under way."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _check_room(self) -> None:
        room = self.limits.parallel + self.limits.waiting
        if self._closed:
            raise RequestError(503, "the server is stopping", code="stopping", retry=5)
        if len(self._active) + len(self._waiting) >= room:
            raise RequestError(
                503,
                f"{room} requests are at work or wait; try again later",
                code="overloaded",
                retry=1,
            )

    def _next(self) -> AnswerJob | None:
        """The job whose turn it is; waits for one, and is None at the end."""
        with self._changed:
            while not (self._closed or self._active or self._waiting):
                self._changed.wait()
            self._expire()
            if self._closed:
                return None
            while self._waiting and len(self._active) < self.limits.parallel:
                self._active.append(self._waiting.popleft())
            return self._active[0] if self._active else None

    def _expire(self) -> None:
        """Turn away who has waited for longer than an answer may take."""
        now = time.monotonic()
        late = [job for job in self._waiting if now > job.answer.deadline]
        for job in late:
            self._waiting.remove(job)
            job.fail("waited")

    def _work(self) -> None:
        with one_thread(self.device), computing(of_measuring(self.precision), self.device):
            while True:
                job = self._next()
                if job is None:
                    if self._closed:
                        return
                    continue
                goes_on = job.advance()
                with self._changed:
                    self._active.popleft()
                    if goes_on and not job.cancelled:
                        self._active.append(job)  # behind the others
