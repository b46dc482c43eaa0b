"""The predictor of a score, one token at a time: what both sides of a coder run."""

import numpy as np
import torch
from numpy.typing import NDArray

from segpt.config.score import ScoreSpec
from segpt.eval.learners import Chunk
from segpt.eval.ngram import Mixture
from segpt.eval.policies import learner
from segpt.eval.schedule import BASE, Segment, progress, window_of
from segpt.eval.windows import head
from segpt.model.cache import KVCache
from segpt.model.model import Model


class TokenPredictor:
    """Predicts the next token from those that came, and learns when the score would.

    Nothing is known of the tokens to come but how many there are. Whoever repeats the pushes gets
    the same distributions, to the last bit, as every step has the same shapes; a score, which
    batches the same work, has them but for rounding.
    """

    _segment: Segment
    _begun: int  # the first target of the chunk
    _origin: int  # the token that the cache begins with
    _cache: KVCache
    _plain: NDArray[np.float64]  # the model's own distribution of the next token
    _row: NDArray[np.float64]

    def __init__(self, model: Model, spec: ScoreSpec, start: int, targets: int) -> None:
        """Before the first of ``targets`` tokens, which follow the token ``start``.

        Raises:
            ScoreError: if the model has nothing that the policy could change.
        """
        self.spec, self.start = spec, start
        self.context = spec.reach(model.spec.context)
        self.learner = learner(model, spec, self.context)
        self.mixture = None
        if spec.ngram is not None:
            self.mixture = Mixture(spec.ngram, model.spec.vocab, start)
            self.mixture.read(np.array([start], np.uint32))
        self.ids = np.full(targets + 1, start, np.uint32)
        self._done = 0  # targets that came
        self._open(0)
        self._predict()

    @property
    def targets(self) -> int:
        return len(self.ids) - 1

    def distribution(self) -> NDArray[np.float64]:
        """Log-probabilities of the next token, (vocab,), over the whole vocabulary."""
        return self._row

    def push(self, token: int) -> None:
        """The token that came; learn if that completes a chunk, and predict the next one."""
        target = self._done
        self.ids[target + 1] = token
        if self.mixture is not None:
            came = self.ids[target + 1 : target + 2]
            self.mixture.adjust(came, self._plain[came])
        self._done += 1
        if self._done == self.targets:
            return
        separate = self.spec.policy.per_document or self.spec.boundaries == "document"
        if token == self.start and separate:
            self._end_document()
        elif self._chunk(self._done) != self._chunk(target):
            self._learn(0, self._begun, self._done)
            self._begun = self._done
        self._predict()

    def _open(self, first: int) -> None:
        """A segment begins with this target."""
        floor = first if self.spec.boundaries == "document" else 0
        self._segment = Segment(first, first, self.targets, floor)
        self._begun = self._origin = first
        self._cache = {}
        self.learner.open(1)

    def _end_document(self) -> None:
        """Learn what the end of a document teaches, and begin the next one."""
        policy, stop = self.spec.policy, self._done
        if policy.update_interval is not None and not policy.per_document:
            self._learn(0, self._begun, stop)
        aims = [fraction * self.targets for fraction in policy.review_fractions]
        if any(self._segment.first < aim <= stop for aim in aims):
            self._learn(BASE, 0, stop)
        self._open(stop)

    def _learn(self, segment: int, first: int, stop: int) -> None:
        share = progress(first, self.targets, self.spec.policy)
        self.learner.learn([Chunk(segment, self.ids[first : stop + 1], share)])

    def _chunk(self, target: int) -> int:
        """Which chunk between updates of the segment a target belongs to; 0 if it never learns."""
        interval = self.spec.policy.update_interval
        if interval is None:
            return 0
        if self.spec.mode == "strided":
            target = window_of(target, self._segment, self.context, self.spec.stride)
        return (target - self._segment.first) // interval

    @torch.no_grad()
    def _predict(self) -> None:
        target, model = self._done, self.learner.model
        rolls = self.spec.mode == "rolling"
        read = target
        if not rolls and target == window_of(target, self._segment, self.context, self.spec.stride):
            self._cache = {}
            reach = head(self.context, self.spec.stride, self._segment.first, self._segment.floor)
            ahead = reach if target == self._segment.first else self.spec.stride
            read = self._origin = max(self._segment.floor, target + ahead - self.context)
        tokens = torch.from_numpy(self.ids[read : target + 1].astype(np.int64))[None]
        self.learner.select(np.zeros(1, np.int64))
        hidden = model.hidden(
            tokens.to(model.table.weight.device),
            self._cache,
            read - self._origin,
            1,
            self.context if rolls else None,
        ).x
        self._plain = model.logits(hidden)[0, 0].double().log_softmax(-1).cpu().numpy()
        self._row = self._plain if self.mixture is None else self.mixture.row(self._plain)
