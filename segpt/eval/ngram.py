"""The model mixed with n-gram counts of the text scored so far: causal, and always a distribution.

P_0 is the model's distribution. Each order i whose context has been seen turns P_{i-1} into
P_i(v) = (1 - k_i) c_i(v) / T_i + k_i P_{i-1}(v), where v followed the context c_i(v) times out of
T_i. Both parts sum to 1 over the vocabulary, so P_i does: the probability of the target is that of
the distribution that :meth:`Mixture.row` spells out. The share k_i that is kept is a logistic
function of what is known about the context, learnt from targets that have been scored.

The recursion is that of interpolated n-gram models (Jelinek and Mercer, 1980) with the model at
its end in place of the uniform distribution.
"""

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpt.config.ngram import Ngram
from segpt.errors import ScoreError

FEATURES = 4  # of a context: one, log of its total, log of its distinct successors, its streak
STREAK = 2  # how many right repetitions of the last successor count
PIECE = 1 << 13  # targets whose counts are held at once
STEEPEST = 10.0  # the logit of a share stays within this


class Seen(NamedTuple):
    """What a table knew before each target, (targets,) float64 each; 0 where it knew nothing."""

    hits: NDArray[np.float64]  # how often the target had followed the context
    total: NDArray[np.float64]
    distinct: NDArray[np.float64]
    streak: NDArray[np.float64]


class Successors:
    """The tokens that followed a context: how often each, the last one, and its streak.

    The streak is how many times in a row the last one followed what it had followed before.
    """

    __slots__ = ("counts", "last", "streak", "total")

    def __init__(self, token: int) -> None:
        """One token followed, once."""
        self.counts, self.total, self.last, self.streak = {token: 1}, 1, token, 0


class NgramTable:
    """Counts of successors by context of one order; contexts never cross a start token.

    Holds two generations of at most half the contexts each. A context is new or touched in the
    young one; when that is full, it becomes the old one, and what was in the old one is forgotten.
    What a generation holds of a context::

        never seen        no entry
        seen once         the token that followed, an int: most are, and it saves most of the memory
        seen more often   its Successors
    """

    def __init__(self, order: int, vocab: int, start: int, contexts: int, document: bool) -> None:
        self.order, self.document = order, document
        self._vocab, self._start, self._half = vocab, start, contexts // 2
        self._top = vocab ** max(order - 1, 0)
        self._key = 0  # the last `order` tokens as digits
        self._length = 0  # tokens since the start of the document, which counts
        self._young: dict[int, int | Successors] = {}
        self._old: dict[int, int | Successors] = {}

    def __len__(self) -> int:
        """How many contexts are held, those in both generations twice."""
        return len(self._young) + len(self._old)

    def read(self, token: int) -> None:
        """Move the context on by a token, of which it learns nothing."""
        if token == self._start:
            self._length = 0
            if self.document:
                self._young, self._old = {}, {}
        self._length += 1
        if self.order:
            self._key = self._key % self._top * self._vocab + token

    def successors(self) -> Successors | None:
        """What followed the present context so far."""
        if self._length < self.order:
            return None
        entry = self._young.get(self._key)
        if entry is None:
            entry = self._old.get(self._key)
        return Successors(entry) if isinstance(entry, int) else entry

    def observe(self, tokens: Sequence[int]) -> Seen:
        """Let tokens follow each other; each is counted after what was known of it is noted.

        It is :meth:`successors`, a count and :meth:`read` for each token in turn, in one loop over
        local variables: scoring comes here once for every token and table.
        """
        order, document, start, half = self.order, self.document, self._start, self._half
        vocab, top, key, length = self._vocab, self._top, self._key, self._length
        young, old = self._young, self._old
        places, noted = array("q"), array("q")  # of tokens whose context was known; 4 numbers each
        for place, token in enumerate(tokens):
            if length >= order:
                entry = young.get(key)
                if entry is None:
                    entry = old.get(key)
                    if len(young) >= half:
                        young, old = {}, young
                    young[key] = token if entry is None else entry
                if entry is not None:
                    if isinstance(entry, int):
                        entry = young[key] = Successors(entry)
                    counts = entry.counts
                    hits = counts.get(token, 0)
                    places.append(place)
                    noted.extend((hits, entry.total, len(counts), entry.streak))
                    counts[token] = hits + 1
                    entry.total += 1
                    if entry.last == token:
                        entry.streak += 1
                    else:
                        entry.last, entry.streak = token, 0
            if token == start:
                length = 0
                if document:
                    young, old = {}, {}
            length += 1
            if order:
                key = key % top * vocab + token
        self._young, self._old, self._key, self._length = young, old, key, length
        seen = np.zeros((len(Seen._fields), len(tokens)))
        seen[:, np.frombuffer(places, np.int64)] = (
            np.frombuffer(noted, np.int64).reshape(-1, len(Seen._fields)).T
        )
        return Seen(*seen)


class Mixture:
    """A stream's n-gram counts and the shares that they leave to the model.

    First :meth:`read` the token that the first target follows; then score with :meth:`adjust`,
    in pieces of any size, which changes nothing. The orders of the whole stream and of the
    document alternate, the longest last.
    """

    def __init__(self, spec: Ngram, vocab: int, start: int) -> None:
        """Know nothing yet of a stream of ids below ``vocab``, where ``start`` begins documents."""
        self.spec, self.vocab = spec, vocab
        members = sorted(
            [(order, False) for order in spec.orders]
            + [(order, True) for order in spec.document_orders]
        )
        self._tables = [
            NgramTable(order, vocab, start, spec.contexts, own) for order, own in members
        ]
        self._weights = np.zeros((FEATURES, len(members), 1))
        self._weights[0] = math.log(spec.keep / (1 - spec.keep))
        self._squares = np.ones_like(self._weights)
        self._gradients = np.zeros((*self._weights.shape[:2], spec.block))
        self._scored = 0
        self._history = array("I")

    def read(self, ids: NDArray[np.uint32]) -> None:
        """Take in tokens (tokens,) that are known: they are counted, but not scored.

        Raises:
            ScoreError: if an id does not belong to the vocabulary.
        """
        tokens = self._checked(ids)
        if tokens and not self._history:
            for table in self._tables:
                table.read(tokens[0])
            self._history.append(tokens.pop(0))
        self._observe(tokens)

    def adjust(
        self, targets: NDArray[np.uint32], log_probabilities: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The nats of the next targets; each is counted, and learnt from, once it is scored.

        Args:
            targets: (targets,) the tokens that follow what was read and scored before.
            log_probabilities: (targets,) the model's own, natural logarithm.

        Raises:
            ScoreError: if nothing was read before the first target, the two do not match, or an
                id does not belong to the vocabulary.
        """
        tokens = self._checked(targets)
        if not self._history:
            raise ScoreError("no token comes before the first target; read the start token first")
        if np.shape(log_probabilities) != (len(tokens),):
            raise ScoreError(
                f"{len(tokens)} targets come with {np.size(log_probabilities)} log-probabilities; "
                "give one for each"
            )
        model = np.asarray(log_probabilities, np.float64)
        nats = [
            self._adjusted(tokens[i : i + PIECE], model[i : i + PIECE])
            for i in range(0, len(tokens), PIECE)
        ]
        return np.concatenate([np.zeros(0), *nats])

    def row(self, log_probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
        """The whole distribution of the next target as log-probabilities, (vocab,).

        Args:
            log_probabilities: (vocab,) the model's own, natural logarithm.

        Raises:
            ScoreError: if they are not one for each token of the vocabulary.
        """
        if np.shape(log_probabilities) != (self.vocab,):
            raise ScoreError(
                f"a row of {self.vocab:,} log-probabilities was expected, not one of shape "
                f"{np.shape(log_probabilities)}"
            )
        counted = np.zeros(self.vocab)
        kept = 1.0
        for i, table in enumerate(self._tables):
            if (known := table.successors()) is None:
                continue
            facts = [[known.total], [len(known.counts)], [known.streak]]
            features = _features(*np.array(facts, np.float64))
            share = _share(features, self._weights[:, i])[0]
            kept *= share
            counted *= share
            tokens = np.fromiter(known.counts.keys(), np.int64)
            counts = np.fromiter(known.counts.values(), np.float64)
            counted[tokens] += (1 - share) * (counts / known.total)
        return _joined(np.asarray(log_probabilities, np.float64), kept, counted)

    def state(self) -> dict[str, NDArray[np.float64] | NDArray[np.uint32]]:
        """All that :meth:`restore` needs to go on exactly from here, as named arrays."""
        return {
            "history": np.array(self._history, np.uint32),
            "scored": np.array([self._scored], np.uint32),
            "weights": self._weights.copy(),
            "squares": self._squares.copy(),
            "gradients": self._gradients.copy(),
        }

    def restore(self, state: Mapping[str, NDArray[np.float64] | NDArray[np.uint32]]) -> None:
        """Go on from the named arrays of :meth:`state`; its history makes the counts again.

        Raises:
            ScoreError: if this mixture has read something, or the state is one of another spec.
        """
        parts = {
            name: np.asarray(state[name], np.float64)
            for name in ("weights", "squares", "gradients")
        }
        if self._history or any(
            part.shape != getattr(self, f"_{name}").shape for name, part in parts.items()
        ):
            raise ScoreError("a state is restored into a new mixture of the spec it was made with")
        self.read(np.asarray(state["history"], np.uint32))
        self._scored = int(state["scored"][0])
        self._weights, self._squares, self._gradients = (part.copy() for part in parts.values())

    def _checked(self, ids: NDArray[np.uint32]) -> list[int]:
        if np.size(ids) and not (np.min(ids) >= 0 and np.max(ids) < self.vocab):
            raise ScoreError(
                f"token {np.max(ids):,} does not belong to a vocabulary of {self.vocab:,}; the "
                "text was tokenized for another model"
            )
        return np.asarray(ids).tolist()

    def _observe(self, tokens: list[int]) -> Seen:
        """What all tables knew of the tokens, (tables, targets) each."""
        self._history.extend(tokens)
        seen = [table.observe(tokens) for table in self._tables]
        return Seen(*(np.stack(parts) for parts in zip(*seen, strict=True)))

    def _adjusted(self, tokens: list[int], model: NDArray[np.float64]) -> NDArray[np.float64]:
        """Nats of targets, learning at the end of each block, wherever it began."""
        seen = self._observe(tokens)
        features = _features(seen.total, seen.distinct, seen.streak)
        frequency = seen.hits / np.maximum(seen.total, 1)
        nats = np.empty(len(tokens))
        first = 0
        while first < len(tokens):
            done = self._scored % self.spec.block
            piece = slice(first, min(len(tokens), first + self.spec.block - done))
            known, rows = seen.total[:, piece] > 0, slice(done, done + piece.stop - first)
            nats[piece], self._gradients[..., rows] = _score(
                model[piece], frequency[:, piece], features[..., piece], known, self._weights
            )
            self._scored += piece.stop - first
            if self._scored % self.spec.block == 0:
                self._learn()
            first = piece.stop
        return nats

    def _learn(self) -> None:
        """A step of Adagrad (Duchi et al. 2011) up the log-likelihood of the last block.

        With g_t the gradient of ln p(target t), S grows by the sum of g_t^2 over the block, from
        1 at the beginning, and each weight by rate (sum of g_t) / sqrt(S).
        """
        self._squares += (self._gradients**2).sum(-1, keepdims=True)
        self._weights += (
            self.spec.rate * self._gradients.sum(-1, keepdims=True) / np.sqrt(self._squares)
        )


def _score(
    model: NDArray[np.float64],
    frequency: NDArray[np.float64],
    features: NDArray[np.float64],
    known: NDArray[np.bool_],
    weights: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nats, (targets,), and how to lower them: (features, tables, targets).

    For a target, let f_i = c_i / T_i be its frequency after the context of table i = 1 ... n,
    x_i the features of that context and w_i the weights of the table. Then::

        k_i = 1 / (1 + exp(-w_i . x_i))        the share that is kept; 1 where nothing is known
        P_i = k_i P_{i-1} + (1 - k_i) f_i      P_0 is the model's, P_n what is scored

    Written out, P_n = (k_1 ... k_n) P_0 + what the counts add. The nats are the logarithm of that
    sum, in logarithms, as P_0 may be too small for a float64.

    The gradients are those of ln P_n. P_i moves by P_{i-1} - f_i with k_i, what follows passes on
    k_{i+1} ... k_n of it, and a logistic function rises by k_i (1 - k_i)::

        d ln P_n / d w_i = x_i k_i (1 - k_i) (P_{i-1} - f_i) (k_{i+1} ... k_n) / P_n

    A logit beyond ``STEEPEST`` counts as one of ``STEEPEST`` here too, so that it can come back.

    Every number is made of those of its own target alone, in the same order, so that it does not
    depend on how many targets are scored together.

    Args:
        model: (targets,) log-probabilities, ln P_0.
        frequency: (tables, targets) f_i.
        features: (features, tables, targets) x_i.
        known: (tables, targets) whether a table has seen the context.
        weights: (features, tables, 1) w_i.
    """
    kept = np.where(known, _share(features, weights), 1.0)
    added = (1 - kept) * frequency
    tables = len(kept)
    kept_from = np.ones((tables + 1, len(model)))  # row i: the product of shares from i on
    np.multiply.accumulate(kept[::-1], out=kept_from[1:])
    kept_from = kept_from[::-1]
    counted = np.zeros(len(model))
    mixed = np.empty((tables + 1, len(model)))  # P_0 to P_n
    # A probability too small for a float64 has no gradient, but it has nats.
    np.maximum(np.exp(model), 1e-150, out=mixed[0])
    for i in range(tables):
        counted = kept[i] * counted + added[i]
        np.add(kept[i] * mixed[i], added[i], out=mixed[i + 1])
    rise = (mixed[:-1] - frequency) * kept_from[1:] / mixed[-1] * kept * (1 - kept)
    return -_joined(model, kept_from[0], counted), features * rise


def _features(
    total: NDArray[np.float64], distinct: NDArray[np.float64], streak: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What a share depends on, (features, ...) in float64."""
    logs = np.log(np.maximum(total, 1)), np.log(np.maximum(distinct, 1))
    return np.stack([np.ones_like(total), *logs, np.minimum(streak, STREAK)])


def _share(features: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much is kept of the distribution below, between 0 and 1."""
    logit = weights[0] * features[0]
    for weight, feature in zip(weights[1:], features[1:], strict=True):
        logit = logit + weight * feature
    return 1 / (1 + np.exp(-np.clip(logit, -STEEPEST, STEEPEST)))


def _joined(
    model: NDArray[np.float64], kept: NDArray[np.float64] | float, counted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Logarithm of the kept share of the model's probability and what the counts add to it."""
    with np.errstate(divide="ignore"):
        return np.logaddexp(model + np.log(kept), np.log(counted))
