"""A model and the CORE bundle to CORE: 22 tasks, or some of them under another name."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from segpt.errors import ScoreError, SegptError

from .continuations import continuations
from .core import TASKS, Baselines, Item, Task, centred, combined, core, standard_error
from .core import task as task_of
from .core_bundle import Bundle, Source, read_items
from .prompts import arrange, example
from .subject import Subject

EXAMPLES = 256  # that are held as tokens at once


class CoreProgress(NamedTuple):
    """Examples of a task that this process has done, of how many; and tasks that are through."""

    task: str
    done: int
    total: int
    through: int
    tasks: int


@dataclass(frozen=True)
class TaskResult:
    """What a model makes of one task.

    Attributes:
        right: examples answered right, of ``items`` asked.
        baseline: the accuracy of guessing, in percent.
        cropped: examples that are longer than the context, so that the beginning was lost.
        moved: examples whose scored tokens are not those of the rule, see
            :mod:`segpt.tasks.prompts`.
        seconds: that asking took.
        source: the file of the items.
    """

    task: Task
    right: int
    items: int
    baseline: float
    cropped: int
    moved: int
    seconds: float
    source: Source

    @property
    def accuracy(self) -> float:
        return self.right / self.items

    @property
    def centred(self) -> float:
        return centred(self.accuracy, self.baseline)

    @property
    def error(self) -> float:
        """The standard error of the centred accuracy."""
        return standard_error(self.accuracy, self.baseline, self.items)

    @property
    def rate(self) -> float:
        """Examples per second, of all processes together."""
        return self.items / self.seconds

    def plain(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "accuracy": self.accuracy,
            "centred": self.centred,
            "standard_error": self.error,
            "baseline": self.baseline,
            "right": self.right,
            "items": self.items,
            "shots": self.task.shots,
            "cropped": self.cropped,
            "moved": self.moved,
            "seconds": self.seconds,
            "examples_per_second": self.rate,
            "source": self.source.plain(),
        }


@dataclass(frozen=True)
class CoreResult:
    """What a model makes of some or all tasks, centred by a table of baselines."""

    tasks: tuple[TaskResult, ...]
    baselines: Baselines
    max_per_task: int
    processes: int

    @cached_property
    def core(self) -> float | None:
        """CORE; None unless all 22 tasks were run."""
        if len(self.tasks) < len(TASKS):
            return None
        return core({each.task.label: each.accuracy for each in self.tasks}, self.baselines)

    @property
    def name(self) -> str:
        """What the mean is: CORE, or not."""
        return "CORE" if self.core is not None else f"CORE-{len(self.tasks)} (not CORE)"

    @property
    def mean(self) -> float:
        """The mean of the centred accuracies, whatever tasks these are of."""
        return math.fsum(each.centred for each in self.tasks) / len(self.tasks)

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return combined(each.error for each in self.tasks)

    @property
    def seconds(self) -> float:
        return math.fsum(each.seconds for each in self.tasks)

    def plain(self) -> dict[str, Any]:
        """The result as JSON values; CORE is only there if it is CORE."""
        whole = {"core": self.core, "standard_error": self.error}
        partial = {"name": self.name, "mean": self.mean, "standard_error": self.error}
        return {
            **(partial if self.core is None else whole),
            "baselines": self.baselines,
            "max_per_task": self.max_per_task,
            "verbatim": all(each.source.verbatim for each in self.tasks),
            "seconds": self.seconds,
            "processes": self.processes,
            "tasks": {each.task.label: each.plain() for each in self.tasks},
        }


def choose(labels: str) -> tuple[Task, ...]:
    """The tasks that a comma-separated list names, in the order of CORE; ``all`` is all 22.

    Raises:
        SpecError: if one is unknown.
    """
    if labels == "all":
        return TASKS
    chosen = {task_of(label.strip()).label for label in labels.split(",")}
    return tuple(task for task in TASKS if task.label in chosen)


def evaluate(
    subject: Subject,
    bundle: Bundle,
    tasks: Sequence[Task] = TASKS,
    *,
    max_per_task: int = -1,
    baselines: Baselines | None = None,
    batch: int | None = None,
    report: Callable[[CoreProgress], None] = lambda _: None,
) -> CoreResult:
    """Ask a model the items of some tasks.

    If torch.distributed is initialised, the processes share the examples of each task and return
    the same.

    Args:
        subject: the model and its tokenizer; it does not learn.
        bundle: where the items are.
        tasks: which ones, each once.
        max_per_task: items of each that are asked and drawn from; all if not positive.
        baselines: which table of baselines; the one of the bundle if None.
        batch: tokens that run at once; by the device if None.
        report: told about progress.

    Raises:
        ScoreError: if the bundle has neither table and none is named, or a number is not finite.
        DataError: if items are missing or damaged, or the tokenizer cannot spell them.
        SpecError: if so few items are asked that the solved ones cannot be drawn.
    """
    table = baselines or bundle.baselines
    if table is None:
        raise ScoreError(
            f"{bundle.place}: its baselines are of no table that is known; name v1 or v2"
        )
    if not tasks:
        raise ScoreError("no task to run; name at least one")
    asker = _Asker(subject, bundle, max_per_task, batch, report)
    results = [asker.result(task, table, through, len(tasks)) for through, task in enumerate(tasks)]
    return CoreResult(tuple(results), table, max_per_task, asker.processes)


class _Asker:
    """Asks a model the tasks of a bundle, as one of the processes that share their examples."""

    def __init__(
        self,
        subject: Subject,
        bundle: Bundle,
        max_per_task: int,
        batch: int | None,
        report: Callable[[CoreProgress], None],
    ) -> None:
        self.subject, self.bundle, self.max_per_task = subject, bundle, max_per_task
        self.batch, self.report = batch, report
        self.rank, self.processes = 0, 1
        if _shared():
            self.rank, self.processes = dist.get_rank(), dist.get_world_size()

    def result(self, task: Task, table: Baselines, through: int, tasks: int) -> TaskResult:
        """What all processes together make of a task, after ``through`` of the ``tasks``."""
        counts, failure = [math.nan] * 4, None  # which tells the other processes
        try:
            items, source = read_items(self.bundle, task)
            asked = arrange(items, self.max_per_task)
            mine = range(self.rank, len(asked), self.processes)
            begun = time.perf_counter()  # reading the file is not asking
            progress = CoreProgress(task.label, 0, len(mine), through, tasks)
            counts = self.counts(task, asked, mine, progress)
        except SegptError as error:
            failure = error
        counts = _sum(counts, self.subject.device)
        if failure is not None:
            raise failure
        if math.isnan(counts[0]):
            raise ScoreError("another process could not do its part of CORE; see its message")
        right, cropped, moved, done = map(int, counts)
        if done != len(asked):
            raise ScoreError(f"{task.label}: {done:,} of {len(asked):,} examples were asked")
        seconds = time.perf_counter() - begun
        baseline = task.baseline(table)
        return TaskResult(task, right, done, baseline, cropped, moved, seconds, source)

    def counts(
        self, task: Task, items: Sequence[Item], mine: range, progress: CoreProgress
    ) -> list[float]:
        """How many of some examples are right, cropped, moved and done."""
        counts, subject = [0.0] * 4, self.subject
        for first in range(0, len(mine), EXAMPLES):
            examples = [example(task, items, i, subject) for i in mine[first : first + EXAMPLES]]
            requests = [each.requests for each in examples]
            scores = continuations(subject, requests, batch=self.batch)
            for each, answers in zip(examples, scores, strict=True):
                facts = (each.answered(answers), each.cropped(subject.context), each.moved, True)
                counts = [count + fact for count, fact in zip(counts, facts, strict=True)]
            self.report(progress._replace(done=int(counts[-1])))
        return counts


def _shared() -> bool:
    return dist.is_available() and dist.is_initialized()


def _sum(counts: Sequence[float], device: torch.device) -> list[float]:
    """The sum over processes."""
    place = device if _shared() and dist.get_backend() == "nccl" else torch.device("cpu")
    shared = torch.tensor(counts, dtype=torch.float64, device=place)
    if _shared():
        dist.all_reduce(shared)
    return shared.tolist()


def core_lines(result: CoreResult) -> list[str]:
    """The result for people: a line for each task, and what they come to."""
    width = max(len(each.task.label) for each in result.tasks)
    head = f"{'task':<{width}}  shots  accuracy  centred  std.err.   items  cropped      s   ex/s"
    lines = [head]
    lines += [
        f"{each.task.label:<{width}}  {each.task.shots:>5}  {each.accuracy:>8.4f}  "
        f"{each.centred:>7.4f}  {each.error:>8.4f}  {each.items:>6,}  {each.cropped:>7,}  "
        f"{each.seconds:>5.1f}  {each.rate:>5.1f}"
        for each in result.tasks
    ]
    lines.append(
        f"{result.name}: {result.mean:.4f} ± {result.error:.4f} (centred by baselines "
        f"{result.baselines}; {result.seconds:.1f} s)"
    )
    if result.max_per_task > 0:
        lines.append(
            f"at most {result.max_per_task:,} items per task, from which solved items were drawn"
        )
    if moved := sum(each.moved for each in result.tasks):
        where = ", ".join(
            f"{each.task.label} {each.moved:,}" for each in result.tasks if each.moved
        )
        lines.append(f"{moved:,} examples in which the scored tokens had to move: {where}")
    if others := [each for each in result.tasks if not each.source.verbatim]:
        where = ", ".join(each.task.label for each in others)
        lines.append(f"not from the original files: {where}")
    return lines
