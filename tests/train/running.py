"""The training loop, run to its end."""

from collections.abc import Callable
from typing import Any

from segpt.train.loop import Batches, StepMetrics, training
from segpt.train.trainer import Trainer


def train(
    trainer: Trainer,
    batches: Batches,
    *,
    save: Callable[[Trainer], None] = lambda _: None,
    report: Callable[[StepMetrics], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> None:
    """Take every step; ``options`` are those of :func:`segpt.train.loop.training`."""
    for event in training(trainer, batches, should_stop=stop, **options):
        if isinstance(event, StepMetrics):
            report(event)
        else:
            save(trainer)
