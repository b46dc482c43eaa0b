"""One run of a method of scoring: what it is given, and what it must return."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpt.errors import ScoreError


class Trial(NamedTuple):
    """One run of a method over a stream of ``targets`` + 1 tokens.

    Attributes:
        nats: (targets,) of every target, as the score sums them.
        rows: (probes, vocab) log-probabilities over the whole alphabet at the probed targets,
            after every cap, tilt and mixture; (0, vocab) if none are probed.
        counts: (targets,) how often each target was scored.
    """

    nats: NDArray[np.float64]
    rows: NDArray[np.float64]
    counts: NDArray[np.integer[Any]]


# Gets the tokens (targets + 1,) and the targets to probe, in order, perhaps none.
Method = Callable[[NDArray[np.uint32], NDArray[np.int64]], Trial]


class AuditedRun(NamedTuple):
    """A trial, and the tokens and probes it was made with."""

    ids: NDArray[np.uint32]
    probed: NDArray[np.int64]
    trial: Trial


def run_method(method: Method, ids: NDArray[np.uint32], probed: NDArray[np.int64]) -> Trial:
    """What a method returns, copied and of the right shapes.

    Raises:
        ScoreError: if it returns arrays of other shapes.
    """
    answer = method(ids.copy(), probed.copy())
    try:
        # Copies, as a method could change what it has returned in a later run.
        nats, rows, counts = answer
        trial = Trial(
            np.array(nats, np.float64), np.array(rows, np.float64), np.array(counts, np.int64)
        )
    except (TypeError, ValueError) as error:
        raise ScoreError(
            "a method of scoring must return a Trial of three arrays: nats, rows and counts"
        ) from error
    targets = len(ids) - 1
    shapes = tuple(array.shape for array in trial)
    vocab = trial.rows.shape[-1] if trial.rows.ndim else 0
    if shapes != ((targets,), (len(probed), vocab), (targets,)) or vocab <= int(ids.max()):
        raise ScoreError(
            f"a method of scoring returned arrays of shapes {shapes} for {targets} targets and "
            f"{len(probed)} probes; right is ({targets},), ({len(probed)}, tokens of the "
            f"vocabulary) and ({targets},)"
        )
    return trial
