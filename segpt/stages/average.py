"""Checkpoints of a run to one: an average of their weights that needs no further training."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpt.config.base import encode, fingerprint
from segpt.config.run_about import AverageAbout
from segpt.errors import CheckpointError
from segpt.values import Checkpoint, documents_digest

from .checkpoint_io import checkpoint_step, read_checkpoint
from .run_directory import checkpoints, kind_of, no_checkpoint


def sources(paths: Iterable[Path], last: int) -> list[Path]:
    """The checkpoints that paths name or, if they are runs, hold: the ``last`` in step order.

    Raises:
        CheckpointError: if there are fewer than two, or two of one step.
    """
    named: list[Path] = []
    for path in paths:
        match kind_of(path):
            case "checkpoint":
                named.append(path)
            case "run":
                named += checkpoints(path)
            case other:
                raise CheckpointError(no_checkpoint(path, other))
    steps = {place: checkpoint_step(place) for place in {p.resolve(): p for p in named}.values()}
    ordered = sorted(steps, key=steps.__getitem__)
    for earlier, later in itertools.pairwise(ordered):
        if steps[earlier] == steps[later]:
            raise CheckpointError(
                f"{earlier} and {later} are of the same step, so they are not of one run; "
                "name the checkpoints of a single run"
            )
    if len(ordered) < 2:
        raise CheckpointError(
            f"an average takes two checkpoints or more, not {len(ordered)}; a run keeps as many as "
            "train.keep says: train with --set train.keep=6, or name checkpoints of a longer run"
        )
    return ordered[-last:]


def average(
    paths: Sequence[Path],
    *,
    decay: float | None = 0.8,
    report: Callable[[float], None] = lambda _: None,
) -> Checkpoint:
    """Average the weights to use of checkpoints, in their order, one in memory at a time.

    Args:
        paths: checkpoints of one model, oldest first, as :func:`sources` finds them.
        decay: of a moving average that starts with the first one, or None for the plain mean.
        report: called with the fraction that is done.

    Returns:
        The last checkpoint with the averaged weights and without optimizer state.

    Raises:
        CheckpointError: if models or tokenizers differ.
    """
    first = newest = read_checkpoint(paths[0])
    sums: dict[str, NDArray[np.float64]] = {
        name: weight.astype(np.float64) for name, weight in first.weights.items()
    }
    first = dataclasses.replace(first, weights={})
    prints, documents, steps = [newest.fingerprint], newest.documents, [newest.step]
    origin = dict(newest.origin)
    for count, path in enumerate(paths[1:], 2):
        report((count - 1) / len(paths))
        newest = read_checkpoint(path)
        _check_same(paths[0], first, path, newest)
        share = 1 / count if decay is None else 1 - decay
        for name, total in sums.items():
            total += share * (newest.weights[name] - total)
        prints.append(newest.fingerprint)
        steps.append(newest.step)
        documents = _united(documents, newest.documents)
        origin = {k: v for k, v in origin.items() if newest.origin.get(k) == v}
    about = AverageAbout(steps=tuple(steps), decay=decay, checkpoints=tuple(prints))
    named = {"checkpoints": fingerprint(prints)}
    if documents is not None:
        named["documents"] = documents_digest(documents)
    return dataclasses.replace(
        newest,
        weights={name: total.astype(np.float32) for name, total in sums.items()},
        documents=documents,
        origin=origin | named,
        about=dataclasses.replace(newest.about, average=about),
    )


def _united(
    documents: NDArray[np.uint64] | None, others: NDArray[np.uint64] | None
) -> NDArray[np.uint64] | None:
    """The hashes (documents,) of either list; None if one is not known."""
    if documents is None or others is None:
        return None
    return np.union1d(documents, others)


def _check_same(path: Path, first: Checkpoint, other: Path, newest: Checkpoint) -> None:
    if encode(first.spec) != encode(newest.spec):
        raise CheckpointError(
            f"{path} and {other} hold different models, whose weights have no average"
        )
    if first.tokenizer != newest.tokenizer:
        raise CheckpointError(
            f"{path} and {other} have different tokenizers, so their weights mean different things"
        )
