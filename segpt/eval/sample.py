"""Text from a model, one token after another, for several prompts side by side."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt.config.sample import HALVES, MOST_REPEATS, PENALISED, SampleSpec
from segpt.config.score import ScoreSpec
from segpt.errors import ScoreError
from segpt.model.cache import KVCache, pick_rows
from segpt.model.model import Model

Row = NDArray[np.float64]


class Drawn(NamedTuple):
    """A token that came, and the number of the prompt that it continues."""

    number: int
    token: int


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    spec: SampleSpec,
    *,
    start: int,
    vocab: int | None = None,
) -> Iterator[Drawn]:
    """Continue prompts until a document ends or there are enough tokens.

    Args:
        model: in evaluation mode.
        prompts: token ids, without the start; one may be empty.
        spec: how tokens are drawn.
        start: the token that begins each document, and so ends the one before it.
        vocab: how many ids the tokenizer has, which are those that may come; the model's if None.

    Yields:
        Every token as it comes, ``start`` too where a document ends; the prompts of a batch in
        turn.

    Raises:
        ScoreError: if the model gives no distribution.
    """
    for first in range(0, len(prompts), spec.batch):
        texts = [
            _Text(number, [start, *prompts[number]], spec)
            for number in range(first, min(first + spec.batch, len(prompts)))
        ]
        together = _Together(model, texts, spec, start, vocab or model.spec.vocab)
        while together.texts:
            yield from together.step()


class _Text:
    """One prompt and what was drawn after it; ``ids`` begin with the start."""

    def __init__(self, number: int, ids: list[int], spec: SampleSpec) -> None:
        self.number, self.ids, self.spec = number, ids, spec
        self.left = spec.tokens  # that may still come
        self.chance = np.random.default_rng([spec.seed, number])

    def draw(self, logits: Row, end: int) -> Drawn:
        # The start is the same for every text: no one repeated it.
        recent = np.array(self.ids[1:][-PENALISED:], np.int64)
        fair = penalised(logits, recent, self.spec.repetition_penalty)
        token = draw(fair, self.spec, self.chance)
        self.ids.append(token)
        self.left = 0 if token == end else self.left - 1
        return Drawn(self.number, token)


class _Together:
    """Texts that are read side by side, all from their first token on.

    Those with a longer prompt are still reading it where others already draw. So no row needs
    padding, and every part of a model, whatever it remembers, sees what it would see alone.
    """

    def __init__(
        self, model: Model, texts: list[_Text], spec: SampleSpec, start: int, vocab: int
    ) -> None:
        self.model, self.texts, self.spec = model, texts, spec
        self.start, self.vocab = start, vocab
        self.context = ScoreSpec(mode="rolling", context=spec.context).reach(model.spec.context)
        self._cache: KVCache | None = {} if spec.cache else None
        self._read = 0  # tokens of each text that the cache holds

    @torch.no_grad()
    def step(self) -> list[Drawn]:
        """Read what is known of every text; where that is all, draw a token."""
        known = min(len(text.ids) for text in self.texts)
        # Of a long prompt a part at a time, whose attention takes bounded memory.
        stop = known if self._cache is None else min(known, self._read + 4 * self.context)
        hidden = self._hidden(stop)
        self._read = stop
        due = [i for i, text in enumerate(self.texts) if len(text.ids) == stop]
        if not due:
            return []
        rows = self.model.logits(hidden[due])[:, 0, : self.vocab].double().cpu().numpy()
        drawn = [self.texts[i].draw(row, self.start) for i, row in zip(due, rows, strict=True)]
        self._end()
        return drawn

    def _hidden(self, stop: int) -> Tensor:
        first = 0 if self._cache is None else self._read
        ids = torch.tensor([text.ids[first:stop] for text in self.texts])
        ids = ids.to(self.model.table.weight.device)
        return self.model.hidden(ids, self._cache, first, 1, self.context).x

    def _end(self) -> None:
        """Read no further where a document ended, or there are enough tokens."""
        goes_on = [i for i, text in enumerate(self.texts) if text.left]
        if len(goes_on) == len(self.texts):
            return
        self.texts = [self.texts[i] for i in goes_on]
        if self._cache is not None and goes_on:
            device = self.model.table.weight.device
            pick_rows(self._cache, torch.tensor(goes_on, device=device))


def penalised(logits: Row, recent: NDArray[np.int64], penalty: float) -> Row:
    """Logits (vocab,) after a penalty for the tokens that are ``recent``, the latest one last.

    The token d places before the next one counts 0.5^(d / 140), and each id what its places count
    together, at most 3. The penalty to that power divides a positive logit and multiplies a
    negative one.
    """
    if penalty == 1 or not len(recent):
        return logits
    counts = np.zeros_like(logits)
    np.add.at(counts, recent, 0.5 ** (np.arange(len(recent), 0, -1) / HALVES))
    scale = penalty ** counts.clip(max=MOST_REPEATS)
    return np.where(logits > 0, logits / scale, logits * scale)


def draw(logits: Row, spec: SampleSpec, chance: np.random.Generator) -> int:
    """A token, given its logits (vocab,); takes one number from ``chance`` unless it is certain.

    Raises:
        ScoreError: if there is no distribution.
    """
    best = int(logits.argmax())
    if not math.isfinite(logits[best]):
        raise ScoreError(f"the model's logits are not finite ({logits[best]}); train it anew")
    if spec.temperature == 0:
        return best
    ids, shares = kept(logits, spec)
    reached = shares.cumsum()
    # The last share that is not 0 ends the sums, so that rounding picks no impossible token.
    place = min(
        int(reached.searchsorted(chance.random() * reached[-1], side="right")),
        int(shares.nonzero()[0][-1]),
    )
    return int(ids[place])


def kept(logits: Row, spec: SampleSpec) -> tuple[NDArray[np.intp], Row]:
    """The tokens that may come after ``logits`` (vocab,), and their shares of the probability.

    Both are (kept,), the likeliest first. Of equally likely tokens the one with the lower id comes
    first. Shares sum to 1.
    """
    with np.errstate(over="ignore", under="ignore"):  # a share of 0 is right there
        weights = np.exp((logits - logits.max()) / spec.temperature)
    ids = np.arange(len(weights))
    if 0 < spec.top_k < len(weights):
        least = np.partition(weights, -spec.top_k)[-spec.top_k]
        ids = np.flatnonzero(weights >= least)
    ids = ids[np.argsort(-weights[ids], kind="stable")]
    if spec.top_k:
        ids = ids[: spec.top_k]
    shares = weights[ids] / weights[ids].sum()
    if spec.top_p < 1:
        count = 1 + int(shares.cumsum().searchsorted(spec.top_p))
        ids, shares = ids[:count], shares[:count] / shares[:count].sum()
    return ids, shares
