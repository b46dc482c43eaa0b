"""What is measured where: full sizes on a GPU, small ones in a dry run on a CPU."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch


class Plan(NamedTuple):
    """Sizes of a run.

    Attributes:
        device: where everything is computed.
        dtype: of the tensors that kernels get.
        backend: of the operations that have it, ``triton`` on a GPU and ``reference`` in a dry run.
        recipe: the model whose training, scoring and quantizing are measured.
        settings: changes of that recipe.
        rows: tokens of a token loss.
        vocab: of its head.
        width: of the stream.
        matrices: how many of ``width`` by four times that Newton-Schulz gets.
        context: positions of an attention.
        sequences: of an attention.
        targets: tokens that are scored.
        window: the context of a score.
        rounds: how often both sides of a ratio take turns.
    """

    device: str
    dtype: torch.dtype
    backend: str
    recipe: str
    settings: Sequence[str]
    rows: int
    vocab: int
    width: int
    matrices: int
    context: int
    sequences: int
    targets: int
    window: int
    rounds: int

    @property
    def is_dry(self) -> bool:
        """Whether sizes are too small for any figure to mean something."""
        return self.device == "cpu"


ON_GPU = Plan(
    device="cuda",
    dtype=torch.bfloat16,
    backend="triton",
    recipe="golf16",
    settings=("train.batch=32", "train.accumulation=1", "quantize.method=gptq"),
    rows=1 << 16,
    vocab=8192,
    width=512,
    matrices=12,
    context=2048,
    sequences=16,
    targets=1024 + 64 * 256,
    window=1024,
    rounds=10,
)
DRY = Plan(
    device="cpu",
    dtype=torch.float32,
    backend="reference",
    recipe="golf16",
    settings=(
        *("model.width=32", "model.context=32", "model.vocab=64", "model.layer.feed.hidden=64"),
        *("model.layer.mixer.heads=2", "model.layer.mixer.kv_heads=1"),
        *("model.layer.mixer.head_dim=16", "tokenizer.vocab=64"),
        *("train.batch=2", "train.accumulation=1", "quantize.method=gptq"),
    ),
    rows=48,
    vocab=64,
    width=32,
    matrices=2,
    context=32,
    sequences=2,
    targets=96,
    window=32,
    rounds=1,
)


class Row(NamedTuple):
    """One figure.

    Attributes:
        name: what is measured.
        against: the other side, or what a check compares with.
        ratio: the other side's seconds over ours, or None where there is no such side.
        seconds: ours, the median.
        other_seconds: of the other side.
        memory: our peak of bytes over the other side's.
        error: the largest difference from the reference, over the largest number of that.
        figure: another number, with its unit in ``unit``.
        unit: of that.
        aim: the smallest ratio (or figure) to reach.
        note: why a measurement is missing.
    """

    name: str
    against: str = ""
    ratio: float | None = None
    seconds: float | None = None
    other_seconds: float | None = None
    memory: float | None = None
    error: float | None = None
    figure: float | None = None
    unit: str = ""
    aim: float | None = None
    note: str = ""

    @property
    def is_reached(self) -> bool | None:
        """Whether the aim is reached; None without an aim or a measurement."""
        value = self.ratio if self.ratio is not None else self.figure
        return None if self.aim is None or value is None else value >= self.aim


Section = Callable[[Plan], Iterator[Row]]


def measure(
    sections: Sequence[tuple[str, Section]],
    plan: Plan,
    minutes: float,
    report: Callable[[Row], None],
    clock: Callable[[], float] = time.monotonic,
) -> list[Row]:
    """All rows of the sections that begin before the time is over; a row says which did not.

    What one section cannot do is said in its row and does not keep the others from running.
    """
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row._replace(aim=None) if plan.is_dry else row)
        report(rows[-1])

    end = clock() + 60 * minutes
    for name, section in sections:
        if clock() > end:
            add(Row(name, note=f"left out: {minutes:g} minutes were over"))
            continue
        try:
            for row in section(plan):
                add(row)
                if clock() > end:
                    add(Row(name, note=f"stopped here: {minutes:g} minutes were over"))
                    break
        except Exception as error:  # noqa: BLE001 - of any library; the other sections go on
            add(Row(name, note=f"failed: {(str(error) or type(error).__name__).splitlines()[0]}"))
    return rows
