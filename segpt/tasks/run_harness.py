"""A model to its results on tasks of lm-evaluation-harness, offline and in silence."""

import contextlib
import dataclasses
import difflib
import fnmatch
import importlib.util
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from segpt.config.base import encode
from segpt.config.precision import Computed
from segpt.errors import ScoreError, SegptError
from segpt.stages.environment import versions
from segpt.values import Artifact, Checkpoint, Quantized

# A task's data comes from files or the local cache; HF_HUB_OFFLINE=0 allows downloads.
_OFFLINE: Final = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
_QUIET: Final = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DISABLE_MULTIPROC": "1",  # or the bootstrap forks a process with threads
    "TOKENIZERS_PARALLELISM": "false",
}

RESAMPLES: Final = 1000  # of the bootstrap, for metrics without a standard error in closed form


@dataclass(frozen=True)
class Evaluation:
    """What lm-evaluation-harness found.

    ``results`` maps each task or group to its metrics, named as there (``acc,none``), each with
    its standard error (``acc_stderr,none``) or None; ``shots`` and ``samples`` to the examples
    in a prompt and to those that were asked; ``tasks`` to the version of the task.
    """

    model: str
    tokenizer: str
    results: Mapping[str, Mapping[str, float | None]]
    shots: Mapping[str, int]
    samples: Mapping[str, int]
    tasks: Mapping[str, Any]
    seconds: float
    precision: Computed = "float32"

    def plain(self) -> dict[str, Any]:
        """As plain data, with the versions of what took part."""
        took_part = dataclasses.replace(versions(), lm_eval=version("lm_eval"), numpy="")
        return {
            "model": self.model,
            "tokenizer": self.tokenizer,
            "results": {task: dict(metrics) for task, metrics in self.results.items()},
            "shots": dict(self.shots),
            "samples": dict(self.samples),
            "versions": {**encode(took_part), "tasks": dict(self.tasks)},
            "seconds": self.seconds,
            **({} if self.precision == "float32" else {"precision": self.precision}),
        }


def evaluate(
    value: Artifact | Quantized | Checkpoint,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    batch: int | None = None,
    device: str = "auto",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Run tasks of lm-evaluation-harness on a model.

    Nothing is downloaded unless the environment says ``HF_HUB_OFFLINE=0``. Its progress bars are
    gone if ``TQDM_DISABLE=1`` was set before torch was imported.

    Args:
        value: the model and its tokenizer.
        tasks: names of tasks, groups or tags; ``*`` and ``?`` match as in file names.
        include: a directory of task files, which are then the only ones; those that come with
            lm-evaluation-harness if None.
        limit: examples per task, the first ones; all if None.
        shots: examples in each prompt, except where a task insists on none.
        batch: sequences of the model's context that run at once; it changes no result.
        device: where to compute.
        report: told how many of how many requests of one kind are done.

    Raises:
        ScoreError: if lm-evaluation-harness is missing, a task is unknown or cannot be run.
    """
    begun = time.perf_counter()
    _check(tasks, include)
    with _quiet():
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        from .harness import SegptLM

        with _explained(tasks):
            manager = TaskManager(
                include_path=None if include is None else str(include),
                include_defaults=include is None,
            )
            names = _named(tasks, manager.all_tasks)
        model = SegptLM(value, device=device, batch_size=batch, report=report)
        with _explained(names):
            results = simple_evaluate(
                model=model,
                tasks=names,
                num_fewshot=shots,
                limit=limit,
                bootstrap_iters=RESAMPLES,
                log_samples=False,
                task_manager=manager,
            )
    seconds = time.perf_counter() - begun
    return _evaluation(model.fingerprint, model.tokenizer_name, results, seconds)


def _evaluation(
    model: str, tokenizer: str, results: Mapping[str, Any], seconds: float
) -> Evaluation:
    """What lm-evaluation-harness found, without what it says of itself."""
    from segpt.kernels.precision import computed

    return Evaluation(
        model=model,
        tokenizer=tokenizer,
        results={task: _metrics(row) for task, row in results["results"].items()},
        shots={task: int(count) for task, count in results["n-shot"].items()},
        samples={task: int(count["effective"]) for task, count in results["n-samples"].items()},
        tasks=results["versions"],
        seconds=seconds,
        precision=computed(),
    )


def _check(tasks: Sequence[str], include: Path | None) -> None:
    """Refuse what cannot be run here, before anything is imported."""
    if not tasks:
        raise ScoreError("there is no task to run; name at least one task")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ScoreError("tasks run in one process; start segpt eval without torchrun")
    if importlib.util.find_spec("lm_eval") is None:
        raise ScoreError("running tasks takes lm-evaluation-harness; pip install 'segpt[eval]'")
    if include is not None and not include.is_dir():
        raise ScoreError(f"{include} is not a directory of task files")


def _named(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """The tasks that are meant, each once, in the order they are named in."""
    if not known:
        raise ScoreError("there are no task files in the directory; they are YAML with a `task:`")
    names: dict[str, None] = {}
    for name in wanted:
        matched = [name] if name in known else fnmatch.filter(known, name)
        if not matched:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0)
            raise ScoreError(
                f"no task is named {name!r}; the nearest of {len(known):,} names is {close[0]!r}"
            )
        names |= dict.fromkeys(matched)
    return list(names)


def _metrics(row: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics of a task, whose names have a filter after a comma."""
    return {
        name: float(value) if isinstance(value, (int, float)) else None
        for name, value in row.items()
        if "," in name
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Set the libraries up before they are imported, and keep what they print off stdout."""
    online = os.environ.get("HF_HUB_OFFLINE") in ("0", "false", "FALSE", "no", "NO", "off", "OFF")
    for name in () if online else _OFFLINE:
        os.environ.setdefault(name, "1")
    for name, setting in _QUIET.items():
        os.environ.setdefault(name, setting)
    level = logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _explained(names: Sequence[str]) -> Iterator[None]:
    """Turn what the libraries raise about a task into a message about it."""
    try:
        yield
    except SegptError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ScoreError(
            f"{', '.join(names)}: a task cannot be run ({reason}); its data must be in local files "
            "or in the cache, unless HF_HUB_OFFLINE=0 allows downloads"
        ) from error
