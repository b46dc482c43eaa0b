"""The text that a quantization reads: batches by number, the first tokens, and checks of ids."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from segpt.errors import DataError

Blocks = Iterable[NDArray[np.int64]]  # each (batch, time + 1) token ids

BATCH_TOKENS = 2048  # of a batch that calibrates or tunes


class CalibrationText:
    """Training text in batches of a few thousand tokens by number, read once and then again."""

    def __init__(self, blocks: Blocks, vocab: int) -> None:
        """Read lazily from ``blocks``, (batch, time + 1) token ids each."""
        self.vocab = vocab
        self._left = iter(blocks)
        self._read: list[NDArray[np.int64]] = []

    def __call__(self, number: int) -> NDArray[np.int64]:
        """Batch ``number``, (batch, time) token ids.

        Raises:
            DataError: if there is no text, or it has ids beyond the vocabulary.
        """
        while len(self._read) <= number and (block := next(self._left, None)) is not None:
            _check_ids(block, self.vocab)
            rows = max(1, BATCH_TOKENS // (block.shape[1] - 1))
            inputs = block[:, :-1]
            self._read += [inputs[i : i + rows] for i in range(0, len(inputs), rows)]
        if not self._read:
            raise DataError(
                "there is no calibration text; give some training text, or set "
                "quantize.method=nearest"
            )
        return self._read[number % len(self._read)]

    def first(self, tokens: int, report: Callable[[int], None]) -> Iterator[NDArray[np.int64]]:
        """The first ``tokens`` tokens, in whole rows, or all there are."""
        taken, number = 0, 0
        while taken < tokens:
            batch = self(number)
            if number and number >= len(self._read):
                return  # it begins anew
            batch = batch[: -(-(tokens - taken) // batch.shape[1])]
            yield batch
            taken, number = taken + batch.size, number + 1
            report(min(taken, tokens))


class Distinct:
    """How many tokens of a text have different beginnings of their sequences before them."""

    def __init__(self) -> None:
        self.count = 0
        self._sequences: set[bytes] = set()

    def counted(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
        """The batches as they are; a sequence that comes again adds nothing to the count."""
        for batch in batches:
            for row in batch:
                if (key := row.tobytes()) not in self._sequences:
                    self._sequences.add(key)
                    self.count += len(row)
            yield batch


def first_rows(
    blocks: Blocks, tokens: int, vocab: int, report: Callable[[int], None]
) -> Iterator[NDArray[np.int64]]:
    """The first rows of the blocks, until they hold ``tokens`` targets."""
    taken = 0
    for block in blocks:
        targets = block.shape[1] - 1
        rows = block[: -(-(tokens - taken) // targets)]
        _check_ids(rows, vocab)
        yield rows
        taken += len(rows) * targets
        report(min(taken, tokens))
        if taken >= tokens:
            return


def _check_ids(block: NDArray[np.int64], vocab: int) -> None:
    if block.min() < 0 or block.max() >= vocab:
        raise DataError(
            f"the text has token ids outside the model's vocabulary of {vocab}; "
            "prepare it with the tokenizer of the checkpoint"
        )
