"""One text that a model continues, token by token, as far as whoever asked wants to go."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from segpt.config.sample import PENALISED, SampleSpec
from segpt.config.score import ScoreSpec
from segpt.model.cache import KVCache
from segpt.model.model import Model

from .sample import Row, draw, penalised


class NextToken(NamedTuple):
    """A token that came, with what the model thought of it and of the likeliest ones.

    Attributes:
        token: its id.
        logprob: the natural logarithm of its probability, before any setting of the sampling.
        likeliest: ids and logarithms of the likeliest tokens, as many as were asked for.
    """

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


class Continuation:
    """A prompt that is read part by part, and then continued one token at a call.

    With the same settings its tokens are those of :func:`segpt.eval.sample.generate` for a lone
    prompt. Its cache is its own, so that several can take turns.
    """

    def __init__(
        self,
        model: Model,
        prompt: Sequence[int],
        spec: SampleSpec,
        *,
        vocab: int,
        top: int | None = None,
    ) -> None:
        """Begin with nothing read.

        Args:
            model: in evaluation mode.
            prompt: token ids, the one that begins a document among them; at least one.
            spec: how tokens are drawn; ``tokens`` and ``batch`` do not count.
            vocab: how many ids the tokenizer has, which are those that may come.
            top: how many likeliest tokens each one comes with; no probabilities if None.
        """
        self.model, self.spec, self.vocab, self.top = model, spec, vocab, top
        self.ids = list(prompt)
        self.reach = ScoreSpec(mode="rolling", context=spec.context).reach(model.spec.context)
        self._cache: KVCache = {}
        self._read = 0
        self._chance = np.random.default_rng([spec.seed, 0])

    @torch.no_grad()
    def step(self) -> NextToken | None:
        """Read what is known; where that is all, the next token, and else None.

        Raises:
            ScoreError: if the model gives no distribution.
        """
        # As generate reads: of a long prompt a part at a time, whose attention is bounded.
        stop = min(len(self.ids), self._read + 4 * self.reach)
        ids = torch.tensor([self.ids[self._read : stop]], device=self.model.table.weight.device)
        hidden = self.model.hidden(ids, self._cache, self._read, 1, self.reach).x
        self._read = stop
        if stop < len(self.ids):
            return None
        logits: Row = self.model.logits(hidden)[0, 0, : self.vocab].double().cpu().numpy()
        recent = np.array(self.ids[1:][-PENALISED:], np.int64)
        fair = penalised(logits, recent, self.spec.repetition_penalty)
        token = draw(fair, self.spec, self._chance)
        self.ids.append(token)
        return self._chosen(token, logits)

    def _chosen(self, token: int, logits: Row) -> NextToken:
        if self.top is None:
            return NextToken(token, 0.0, ())
        shifted = logits - logits.max()
        logs = shifted - np.log(np.exp(shifted).sum())
        order = np.argsort(-logs, kind="stable")[: self.top]
        return NextToken(token, float(logs[token]), tuple((int(i), float(logs[i])) for i in order))
