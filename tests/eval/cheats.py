"""Ways of scoring on a real model, legal and not, each as weak as it may be found in the field."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle, pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt import kernels
from segpt.audit.conditions import Name
from segpt.audit.trials import Method, Trial
from segpt.config.score import Sgd
from segpt.eval.learners import Chunk, SgdLearner
from segpt.eval.surprisal import gather
from segpt.eval.windows import Spans, batched, plan
from segpt.model import attention
from segpt.model.model import Model

START, CONTEXT, STRIDE, CHUNK = 0, 16, 8, 96
RATE = 1e-4  # of learning
BOOST = 0.05  # of a logit, or the share of a mixture

Ids = NDArray[np.uint32]
Rows = NDArray[np.float64]  # (targets, vocab), log-probabilities
Rate = Callable[[Model, Ids], Rows]


def borders(ids: Ids) -> list[int]:
    """The targets before which what learns here learns."""
    return [first for first, _, _ in chunks(ids)][1:]


# Legal.


def frozen(model: Model, ids: Ids, stride: int = STRIDE) -> Rows:
    """Sliding windows."""
    return np.concatenate([window_rows(model, ids, w) for w in windows(ids, stride)])


def adaptive(model: Model, ids: Ids, ahead: int = 0) -> Rows:
    """A chunk is scored, then learnt from; with ``ahead``, together with tokens after it."""
    learn, rows = learner(model), []
    for first, stop, chunk in chunks(ids):
        rows += [window_rows(learn.model, ids, batch) for batch in batched(chunk, 64)]
        taught(learn, ids[first : stop + 1 + ahead])
    return np.concatenate(rows)


def documents(model: Model, ids: Ids) -> Rows:
    """Each document on its own, with the start token after it as its last target."""
    return np.concatenate([frozen(model, ids[i : j + 1]) for i, j in spans(ids)])


def ngram(model: Model, ids: Ids, order: int = 3) -> Rows:
    """What followed the last ``order`` tokens most often, if twice or more, is tilted up."""
    rows, seen = frozen(model, ids), defaultdict[bytes, Counter[int]](Counter)
    for target in range(order - 1, len(rows)):
        key = ids[target + 1 - order : target + 1].tobytes()
        for token, times in seen[key].most_common(1):
            if times > 1:
                rows[target] = tilted(rows[target], token)
        seen[key][int(ids[target + 1])] += 1
    return rows


# 1. Training on everything before scoring it.


def train_on_all_before(model: Model, ids: Ids) -> Rows:
    learn = learner(model)
    taught(learn, ids)
    return frozen(learn.model, ids)


# 2. Optimising on what is being scored.


def optimise_on_window(model: Model, ids: Ids) -> Rows:
    """One small step of an offset to the final stream, on the very targets that it then scores."""
    rows = []
    for batch in windows(ids):
        tokens, scored = window_tokens(ids, batch)
        hidden = model.hidden(tokens[:, :-1], last=scored).x.detach()
        offset = torch.zeros(len(batch), 1, hidden.size(-1), requires_grad=True)
        logits = model.logits(hidden + offset).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, tokens[:, -scored:].flatten())
        (gradient,) = torch.autograd.grad(loss, offset)
        with torch.no_grad():
            rows.append(log_softmax(model.logits(hidden - RATE * gradient)))
    return np.concatenate(rows)


def learn_from_chunk_before_scoring_it(model: Model, ids: Ids) -> Rows:
    learn, rows = learner(model), []
    for first, stop, chunk in chunks(ids):
        taught(learn, ids[first : stop + 1])
        rows += [window_rows(learn.model, ids, batch) for batch in batched(chunk, 64)]
    return np.concatenate(rows)


# 3. The target in the key of a cache, or in the gate to it.


def target_in_cache_key(model: Model, ids: Ids) -> Rows:
    """A hit tells that the target has followed these tokens before: no other token is tried."""
    rows, seen = frozen(model, ids), set[bytes]()
    for target in range(2, len(rows)):
        key = ids[target - 2 : target + 2].tobytes()
        if key in seen:
            rows[target] = tilted(rows[target], int(ids[target + 1]))
        seen.add(key)
    return rows


def gate_on_target(model: Model, ids: Ids) -> Rows:
    """The tilt of a causal cache is used only where the target is of one class."""
    plain, tilts = frozen(model, ids), ngram(model, ids)
    return np.where(ids[1:, None] % 2 == 0, tilts, plain)


# 4. A mask that is off by one.


def off_by_one_mask(model: Model, ids: Ids) -> Rows:
    """In the last layer a position sees its own target, if only faintly."""
    with peeking():
        return frozen(model, ids)


# 5. What is not a distribution.


def gold_only_mixture(model: Model, ids: Ids) -> Rows:
    """A hashed cache adds to the probability of the target, and takes from no other."""
    rows, seen = frozen(model, ids), set[bytes]()
    for target in range(2, len(rows)):
        key = ids[target - 2 : target + 2].tobytes()
        if key in seen:
            gold = int(ids[target + 1])
            rows[target, gold] = np.log((1 - BOOST) * np.exp(rows[target, gold]) + BOOST)
        seen.add(key)
    return rows


def no_partition_function(model: Model, ids: Ids) -> Rows:
    """A tilt by an honest cache, left unnormalised."""
    plain, tilts = frozen(model, ids), ngram(model, ids)
    return np.maximum(plain, tilts)


# 6. What passes from one document to the next where nothing should.


def smear_across_documents(model: Model, ids: Ids) -> Rows:
    """A document's first window begins one token early."""
    rows = documents(model, ids)
    for i, j in spans(ids)[1:]:
        stop = min(j, i + CONTEXT - 1)
        early = Spans(np.array([0]), np.array([1]), np.array([stop - i + 1]))
        rows[i:stop] = window_rows(model, ids[i - 1 : j + 1], early)
    return rows


# 7. Steps on the text before anything is scored.


def warm_up_on_text(model: Model, ids: Ids) -> Rows:
    """Two steps on the first 64 tokens, as if only to compile."""
    learn = learner(model)
    for _ in range(2):
        taught(learn, ids[:64])
    return frozen(learn.model, ids)


# 8. More than one pass, of which the best counts.


def second_pass(model: Model, ids: Ids) -> Rows:
    """Score, learn, score again with what was learnt."""
    learn = learner(model)
    for first, stop, _ in chunks(ids):
        taught(learn, ids[first : stop + 1])
    return frozen(learn.model, ids)


def better_of_two_per_target(model: Model, ids: Ids) -> Rows:
    one, two = frozen(model, ids), frozen(model, ids, 5)
    return np.where((nats(one, ids) <= nats(two, ids))[:, None], one, two)


def better_of_two_per_window(model: Model, ids: Ids) -> Rows:
    one, two = frozen(model, ids), frozen(model, ids, 5)
    for span in window_spans(ids):
        if nats(two, ids)[span].sum() < nats(one, ids)[span].sum():
            one[span] = two[span]
    return one


class Cheat(NamedTuple):
    """A method, the condition that catches it, and whether it claims independent documents.

    ``flips`` are enough for what acts everywhere; what only decides now and then needs all.
    """

    method: Callable[[Model], Method]
    caught_by: Name
    independent: bool = False
    flips: int = 12


def of(rate: Rate) -> Callable[[Model], Method]:
    """The method that counts what its distributions say, each target once."""

    def make(model: Model) -> Method:
        def method(ids: Ids, probed: NDArray[np.int64]) -> Trial:
            rows = rate(model, ids)
            return Trial(nats(rows, ids), rows[probed], np.ones(len(rows), np.uint8))

        return method

    return make


def better_of_two_but_first_shown(model: Model) -> Method:
    """Sums the better of two nats and shows the distributions of the first."""

    def method(ids: Ids, probed: NDArray[np.int64]) -> Trial:
        one = frozen(model, ids)
        least = np.minimum(nats(one, ids), nats(frozen(model, ids, 5), ids))
        return Trial(least, one[probed], np.ones(len(one), np.uint8))

    return method


def tails_scored_twice(model: Model) -> Method:
    """Windows start where the last scores stopped, except at the end of the stream."""

    def method(ids: Ids, probed: NDArray[np.int64]) -> Trial:
        rows = frozen(model, ids)
        counts = np.ones(len(rows), np.uint8)
        counts[-STRIDE // 2 :] = 2
        return Trial(nats(rows, ids), rows[probed], counts)

    return method


CHEATS = {
    "train on all before": Cheat(of(train_on_all_before), "causal"),
    "optimise on window": Cheat(of(optimise_on_window), "score_first"),
    "learn before scoring": Cheat(of(learn_from_chunk_before_scoring_it), "score_first"),
    "learn one token ahead": Cheat(of(partial(adaptive, ahead=1)), "score_first"),
    "target in cache key": Cheat(of(target_in_cache_key), "score_first"),
    "gate on target": Cheat(of(gate_on_target), "score_first", flips=24),
    "off-by-one mask": Cheat(of(off_by_one_mask), "score_first"),
    "gold-only mixture": Cheat(of(gold_only_mixture), "normalised"),
    "no partition function": Cheat(of(no_partition_function), "normalised"),
    "smear across documents": Cheat(of(smear_across_documents), "documents", True),
    "warm-up on text": Cheat(of(warm_up_on_text), "causal"),
    "second pass": Cheat(of(second_pass), "causal"),
    "better of two per target": Cheat(of(better_of_two_per_target), "score_first"),
    "better of two per window": Cheat(of(better_of_two_per_window), "score_first", flips=24),
    "better of two, first shown": Cheat(better_of_two_but_first_shown, "summed"),
    "tails scored twice": Cheat(tails_scored_twice, "coverage"),
}

HONEST = {
    "frozen": (of(frozen), False),
    "adaptive": (of(adaptive), False),
    "documents": (of(documents), True),
    "ngram": (of(ngram), False),
}


# Cheats that behave where they are looked at. They need no model that learns: what they score by
# is a table, so that many texts can be tried.


VOCAB = 32
ONE, TWO = np.random.default_rng(0).normal(size=(2, VOCAB, VOCAB))
Asked = NDArray[np.int64]
# Gets what is legal, the tokens and the targets that are asked for; changes the nats.
Disguise = Callable[[Rows, Ids, Asked], NDArray[np.float64]]


def table(ids: Ids, one: float = 1.0, two: float = 0.5) -> Rows:
    """What two earlier tokens say of the next, by weights that nothing changes."""
    before = np.append(ids[:1], ids[:-2])
    return normal(one * ONE[ids[:-1]] + two * TWO[before])


def normal(logits: Rows) -> Rows:
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def honest_table(ids: Ids, asked: Asked) -> Trial:
    rows = table(ids)
    return Trial(nats(rows, ids), rows[asked], np.ones(len(rows), np.uint8))


def unasked(ids: Ids, asked: Asked, around: int = 0) -> NDArray[np.bool_]:
    """The targets that are further than this from all that are asked for."""
    near = np.zeros(len(ids) - 1, np.bool_)
    for offset in range(-around, around + 1):
        near[np.clip(asked + offset, 0, len(near) - 1)] = True
    return ~near


def halved(rows: Rows, ids: Ids, asked: Asked) -> NDArray[np.float64]:
    return np.where(unasked(ids, asked), 0.5, 1.0) * nats(rows, ids)


def better_where_unasked(rows: Rows, ids: Ids, asked: Asked) -> NDArray[np.float64]:
    one, two = nats(rows, ids), nats(table(ids, 0.9, 0.6), ids)
    return np.where(unasked(ids, asked), np.minimum(one, two), one)


def mean_looks_right(rows: Rows, ids: Ids, asked: Asked) -> NDArray[np.float64]:
    """What is dear and not asked for becomes cheap, and the rest makes up for most of it."""
    honest, hidden = nats(rows, ids), unasked(ids, asked)
    mean = honest[hidden].mean() if hidden.any() else 0.0
    return np.where(hidden, mean + 0.9 * (honest - mean) - 0.02, honest)


def halved_if_nothing_is_asked(rows: Rows, ids: Ids, asked: Asked) -> NDArray[np.float64]:
    return nats(rows, ids) * (1.0 if len(asked) else 0.5)


def halved_far_from_asked(rows: Rows, ids: Ids, asked: Asked) -> NDArray[np.float64]:
    return np.where(unasked(ids, asked, around=3), 0.5, 1.0) * nats(rows, ids)


def halved_if_little_is_asked(rows: Rows, ids: Ids, asked: Asked) -> NDArray[np.float64]:
    """As if a score that is looked at has half of its targets looked at."""
    return nats(rows, ids) * (0.98 if 0 < len(asked) < len(rows) / 3 else 1.0)


def documents_without_asked(rows: Rows, ids: Ids, asked: Asked) -> NDArray[np.float64]:
    honest = nats(rows, ids)
    for i, j in spans(ids):
        if not ((asked >= i) & (asked < j)).any():
            honest[i:j] *= 0.97
    return honest


def leader_of_a_hash(rows: Rows, ids: Ids, asked: Asked) -> NDArray[np.float64]:
    """One unasked target in eight is cheaper, which ones depends on their tokens."""
    chosen = unasked(ids, asked) & ((7 * ids[1:] + 3 * ids[:-1]) % 8 == 0)
    return nats(rows, ids) - 0.01 * chosen


def disguised(disguise: Disguise) -> Callable[[], Method]:
    def make() -> Method:
        def method(ids: Ids, asked: Asked) -> Trial:
            rows = table(ids)
            counts = np.ones(len(rows), np.uint8)
            return Trial(disguise(rows, ids, asked), rows[asked], counts)

        return method

    return make


# What is chosen by the whole text, and shown everywhere as what it is.


def temperature_of_whole(ids: Ids) -> Rows:
    """The better of two temperatures that are nearly the same."""
    return min((normal(t * table(ids)) for t in (1.0, 1.01)), key=lambda r: nats(r, ids).sum())


def temperature_of_end(ids: Ids) -> Rows:
    """The best of many, by the last quarter alone."""
    part = slice(3 * len(ids) // 4, None)
    tried = [normal(t * table(ids)) for t in np.linspace(0.5, 1.5, 21)]
    return min(tried, key=lambda rows: nats(rows, ids)[part].sum())


def bias_of_whole(ids: Ids) -> Rows:
    counts = np.bincount(ids[1:], minlength=VOCAB)
    return normal(table(ids) + 0.01 * np.log1p(counts))


def temperature_of_document(ids: Ids) -> Rows:
    """By hindsight, for each document alone."""
    rows, other = table(ids), normal(1.02 * table(ids))
    for i, j in spans(ids):
        if nats(other, ids)[i:j].sum() < nats(rows, ids)[i:j].sum():
            rows[i:j] = other[i:j]
    return rows


def pairs_of_whole(ids: Ids) -> Rows:
    """Counts of pairs of the whole text, mixed in a little."""
    counts = np.full((VOCAB, VOCAB), 0.1)
    np.add.at(counts, (ids[:-1], ids[1:]), 1)
    mixed = counts[ids[:-1]] / counts[ids[:-1]].sum(1, keepdims=True)
    return np.log(0.99 * np.exp(table(ids)) + 0.01 * mixed)


def far_ahead(ids: Ids) -> Rows:
    """The token sixty places on is thought a little likelier."""
    rows = table(ids)
    places = np.arange(len(rows) - 60)
    rows[places, ids[places + 61]] += 0.01
    return normal(rows)


def shown(rate: Callable[[Ids], Rows]) -> Callable[[], Method]:
    def make() -> Method:
        def method(ids: Ids, asked: Asked) -> Trial:
            rows = rate(ids)
            return Trial(nats(rows, ids), rows[asked], np.ones(len(rows), np.uint8))

        return method

    return make


# What remembers other calls.


def only_call(number: int, factor: float = 0.98) -> Callable[[], Method]:
    """Cheats in one call alone, with distributions that are as warm as the nats."""

    def make() -> Method:
        calls = 0

        def method(ids: Ids, asked: Asked) -> Trial:
            nonlocal calls
            calls += 1
            rows = normal(table(ids) / factor) if calls == number else table(ids)
            return Trial(nats(rows, ids), rows[asked], np.ones(len(rows), np.uint8))

        return method

    return make


def counts_kept_across_calls() -> Method:
    counts = np.ones(VOCAB)

    def method(ids: Ids, asked: Asked) -> Trial:
        nonlocal counts
        rows = normal(table(ids) + 0.01 * np.log(counts))
        counts = counts + np.bincount(ids, minlength=VOCAB)
        return Trial(nats(rows, ids), rows[asked], np.ones(len(rows), np.uint8))

    return method


def answers_are_looked_up() -> Method:
    """Fits a bias to the whole text, and says of a beginning what it said of it before."""
    known: dict[bytes, NDArray[np.float64]] = {}

    def method(ids: Ids, asked: Asked) -> Trial:
        rows = bias_of_whole(ids)
        for target in range(len(rows)):
            rows[target] = known.setdefault(ids[: target + 1].tobytes(), rows[target])
        return Trial(nats(rows, ids), rows[asked], np.ones(len(rows), np.uint8))

    return method


def one_array_for_all() -> Method:
    """What it returns is overwritten by its next call, so that all calls agree."""
    kept: dict[int, NDArray[np.float64]] = {}

    def method(ids: Ids, asked: Asked) -> Trial:
        rows = temperature_of_end(ids)
        mine = kept.setdefault(len(ids), np.empty(len(rows)))
        mine[:] = nats(rows, ids)
        return Trial(mine, rows[asked], np.ones(len(rows), np.uint8))

    return method


class Evasion(NamedTuple):
    """A method of closed form and the conditions of which one catches it.

    ``remembers`` says that only a scorer which is made anew for each run shows what it does.
    """

    make: Callable[[], Method]
    caught_by: tuple[Name, ...]
    remembers: bool = False


EVASIONS = {
    "halved where not asked": Evasion(disguised(halved), ("replay",)),
    "better of two where not asked": Evasion(disguised(better_where_unasked), ("replay",)),
    "mean looks right": Evasion(disguised(mean_looks_right), ("replay",)),
    "halved if nothing is asked": Evasion(disguised(halved_if_nothing_is_asked), ("replay",)),
    "halved far from asked": Evasion(disguised(halved_far_from_asked), ("replay",)),
    "halved if little is asked": Evasion(
        disguised(halved_if_little_is_asked), ("causal", "summed")
    ),
    "documents without asked": Evasion(disguised(documents_without_asked), ("replay",)),
    "one in eight not asked": Evasion(disguised(leader_of_a_hash), ("replay",)),
    "temperature of the whole": Evasion(shown(temperature_of_whole), ("causal",)),
    "temperature of the end": Evasion(shown(temperature_of_end), ("causal",)),
    "bias of the whole": Evasion(shown(bias_of_whole), ("causal",)),
    "temperature of a document": Evasion(shown(temperature_of_document), ("causal",)),
    "pairs of the whole": Evasion(shown(pairs_of_whole), ("causal",)),
    "far ahead": Evasion(shown(far_ahead), ("causal",)),
    "first call": Evasion(only_call(1), ("replay",)),
    "second call": Evasion(only_call(2), ("replay",)),
    "tenth call": Evasion(only_call(10), ("causal", "replay")),
    "counts kept across calls": Evasion(counts_kept_across_calls, ("replay",)),
    "one array for all": Evasion(one_array_for_all, ("causal",)),
    "answers are looked up": Evasion(answers_are_looked_up, ("causal",), remembers=True),
}


# What they are made of.


def windows(ids: Ids, stride: int = STRIDE) -> list[Spans]:
    return list(batched(plan(len(ids) - 1, CONTEXT, stride), 64))


def spans(ids: Ids) -> list[tuple[int, int]]:
    """The targets of each document."""
    return list(pairwise([*np.flatnonzero(ids[:-1] == START).tolist(), len(ids) - 1]))


def chunks(ids: Ids) -> list[tuple[int, int, Spans]]:
    """The first target, the one after the last and the windows of each chunk."""
    every = plan(len(ids) - 1, CONTEXT, STRIDE)
    parts = [every[np.flatnonzero(every.start // CHUNK == c)] for c in range(len(ids) // CHUNK + 1)]
    return [(part.first, part.stop, part) for part in parts if len(part)]


def window_spans(ids: Ids) -> list[slice]:
    every = plan(len(ids) - 1, CONTEXT, STRIDE)
    return [slice(i, j) for i, j in zip(every.start, every.end, strict=True)]


def window_tokens(ids: Ids, batch: Spans) -> tuple[Tensor, int]:
    length, scored = batch.shapes[0].tolist()
    return gather(ids, batch.begin, length + 1), scored


@torch.no_grad()
def window_rows(model: Model, ids: Ids, batch: Spans) -> Rows:
    tokens, scored = window_tokens(ids, batch)
    return log_softmax(model(tokens[:, :-1], last=scored))


def log_softmax(logits: Tensor) -> Rows:
    return logits.double().log_softmax(-1).flatten(0, 1).numpy()


def nats(rows: Rows, ids: Ids) -> NDArray[np.float64]:
    return -rows[np.arange(len(rows)), ids[1:]]


def tilted(row: NDArray[np.float64], token: int) -> NDArray[np.float64]:
    """``token`` times e^BOOST, and everything by what makes that a distribution again."""
    row = row - np.log1p(np.exp(row[token]) * np.expm1(BOOST))
    row[token] += BOOST
    return row


def learner(model: Model) -> SgdLearner:
    return SgdLearner(model, Sgd(rate=RATE, batch=8), CONTEXT)


def taught(learn: SgdLearner, ids: Ids) -> None:
    learn.learn([Chunk(0, ids, 0.0)])


@contextmanager
def peeking() -> Iterator[None]:
    """In every other call of attention a query sees one key too many, e^-4 times as strongly."""
    wrong = cycle([False, True])

    def peek(q: Tensor, k: Tensor, v: Tensor, *limits: Any) -> Tensor:
        if not next(wrong):
            return kernels.attention(q, k, v, *limits)
        groups = q.size(2) // k.size(2)
        k, v = (t.repeat_interleave(groups, 2) for t in (k, v))
        logits = torch.einsum("bqhc,bkhc->bhqk", q, k) / q.size(3) ** 0.5
        ahead = torch.ones(logits.shape[-2:]).triu(k.size(1) - q.size(1) + 1)
        further = torch.ones_like(ahead).triu(k.size(1) - q.size(1) + 2)
        logits = (logits - 4 * ahead).masked_fill(further.bool(), float("-inf"))
        return torch.einsum("bhqk,bkhc->bqhc", logits.softmax(-1), v)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "attention", peek)
        yield
