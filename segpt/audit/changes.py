"""The texts of an audit: a slice of the text, and copies of it in which tokens are different."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import islice, zip_longest
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpt.errors import ScoreError

Ids = NDArray[np.uint32]
Places = NDArray[np.int64]

EARLY: Final = 16  # some flips are of a token up to here, before which little text can be used
PASSAGE: Final = 24  # tokens that are repeated, for caches to find
COPIES: Final = 4  # of them in one document, in as many documents as REPEATING
REPEATING: Final = 4
ROOMY: Final = 64  # tokens of a document whose future is changed as a whole
LATER: Final = 8  # further tokens that a flip of several changes
LEAST, MOST = 512, 8192  # targets of a slice, where the text allows
SHARE: Final = 0.4  # of the cost of a score, for all runs over a slice
FLIPS, MOST_FLIPS = 24, 96
KINDS: Final = 3  # of flips: of all later tokens, of one, of several
LONG: Final = 4096  # targets of a slice, beyond which more flips tell more than more targets

# What comes in the place of a future that is changed as a whole. What is chosen by the whole text,
# such as a temperature, is pushed one way by what the method expects and the other by what it does
# not; another part of the text looks like nothing but text.
Future = Literal["likely", "unlikely", "other", "random"]
FUTURES: tuple[Future, ...] = ("likely", "unlikely", "likely", "unlikely", "other", "random")


class Expected(NamedTuple):
    """What a method finds likely, as far as its distributions were asked for.

    Attributes:
        likely, unlikely: (targets,) the tokens of the pool that are so as each target.
        then, hardly: (most token + 1,) those that are so after each token, on average.
    """

    likely: Ids
    unlikely: Ids
    then: Ids
    hardly: Ids


def expected_of(ids: Ids, probed: Places, rows: NDArray[np.float64], pool: Ids) -> Expected:
    """What the distributions (probed, vocab) of these targets say; elsewhere, what ``ids`` has."""
    likely, unlikely = ids[1:].copy(), ids[1:].copy()
    then, hardly = (np.full(int(max(ids.max(), pool.max())) + 1, p, np.uint32) for p in pool[:2])
    before = ids[probed]
    for token in np.unique(before).tolist():
        after_token = np.flatnonzero(before == token)
        after = rows[after_token][:, pool]
        likely[probed[after_token]] = pool[after.argmax(1)]
        unlikely[probed[after_token]] = pool[after.argmin(1)]
        then[token], hardly[token] = pool[after.mean(0).argmax()], pool[after.mean(0).argmin()]
    return Expected(likely, unlikely, then, hardly)


def runs(*, flips: int = FLIPS, independent: bool = False, extends: bool = False) -> int:
    """How often :func:`segpt.audit.audit.audit` runs its method."""
    return 4 + flips + 2 * independent + 2 * extends


def flips_for(targets: int) -> int:
    """How many flips a text pays for: 24, or in a text of a million tokens up to 96."""
    return min(MOST_FLIPS, max(FLIPS, int(SHARE * targets) // LONG - runs(flips=0)))


def slice_of(
    ids: Ids,
    start: int,
    *,
    flips: int = FLIPS,
    independent: bool = False,
    extends: bool = False,
    chunk: int = 0,
    seed: int = 0,
) -> Ids:
    """A stream short enough that all runs over it cost less than half of one over the whole text.

    It holds the beginnings of consecutive documents, three at least if there are so many, from
    one drawn by the seed on. It is no shorter than three chunks of a policy that learns, nor
    than 512 targets, if the text is not; in a text that is too short for both, the audit
    costs more than a score::

        document     0          1        2                    3
        ids        | s . . . . | s . . | s . . . . . . . . | s . . . . |
        slice                          | s . . . .         | s . . . . | and round: s . . of 0
                                       |- most --|         |- most --|             |left|
                                       drawn by the seed

    Args:
        ids: (targets + 1,) the stream of the text, which begins with ``start``.
        start: the token that begins a document.
        flips: as in :class:`segpt.audit.audit.AuditPlan`.
        independent: as there.
        extends: as there.
        chunk: targets between which the policy learns, 0 if it never does.
        seed: where in the text to begin.
    """
    targets = len(ids) - 1
    number = runs(flips=flips, independent=independent, extends=extends)
    affordable = min(MOST, int(SHARE * targets) // number)
    wanted = min(targets, max(LEAST, 3 * chunk, affordable))
    begin = np.flatnonzero(ids == start)
    end = np.append(begin[1:], len(ids))
    turn = int(np.random.default_rng(seed).integers(len(begin)))
    begin, end = np.roll(begin, -turn), np.roll(end, -turn)
    left = wanted + 1  # tokens
    size = end - begin
    # `most` tokens of one document: so few that three fit, so many that all together are enough.
    # The latter is the smallest number at which documents, cut off there, hold all that is left.
    enough = bisect_left(range(left), left, key=lambda most: int(np.minimum(size, most).sum()))
    most = max(enough, -(-left // 3))
    parts: list[Ids] = []
    for i, j in zip(begin.tolist(), end.tolist(), strict=True):
        parts.append(ids[i : min(j, i + most, i + left)])
        left -= len(parts[-1])
    return np.concatenate(parts)


def repeat_passage(ids: Ids, start: int, generator: np.random.Generator) -> tuple[Ids, Places]:
    """The stream with one passage of it in several places, and tokens in its later copies.

    A cache that finds one in ten thousand tokens of a text would hardly ever be caught at it. The
    documents that get copies are cut into as many slots, with one in the middle of each::

        document   | s . . P P P P . . . . P P P P . . |
                     |--- slot ---| |--- slot ---|
                          length

    The places returned are in the second half of the later half of all copies.
    """
    begin = np.flatnonzero(ids == start) + 1
    begin = begin if len(begin) and ids[0] == start else np.append(0, begin)
    end = np.append(begin[1:] - 1, len(ids))
    longest = int(np.argmax(end - begin))
    length = min(PASSAGE, int(end[longest] - begin[longest]) // (2 * COPIES))
    if length < 4:
        return ids, np.empty(0, np.int64)
    source = int(generator.integers(begin[longest], end[longest] - length + 1))
    passage = ids[source : source + length]
    roomy = np.flatnonzero(end - begin >= 4 * length)
    roomy = np.sort(generator.permutation(roomy)[:REPEATING])
    ids, places = ids.copy(), []
    for b, e in zip(begin[roomy].tolist(), end[roomy].tolist(), strict=True):
        copies = min(COPIES, (e - b) // (2 * length))
        slot = (e - b) // copies
        places += [b + i * slot + (slot - length) // 2 for i in range(copies)]
    for place in places:
        ids[place : place + length] = passage
    later = np.array(places[len(places) // 2 :], np.int64)
    return ids, (later[:, None] + np.arange(length // 2, length)).ravel()


def first_flipped(
    ids: Ids,
    start: int,
    passages: Places,
    borders: Sequence[int],
    count: int,
    generator: np.random.Generator,
) -> list[int]:
    """Where each flip begins: some early, others after borders, in repeated passages, anywhere.

    Raises:
        ScoreError: if there is nothing but start tokens.
    """
    movable = movable_of(ids, start)
    after = np.intersect1d(np.asarray(borders, np.int64) + 1, movable)
    # Not the very first ones, before which there is nothing to compare.
    early = movable[movable <= max(EARLY, int(movable[0]))][-EARLY // 2 :]
    after, passages, movable = (generator.permutation(p) for p in (after, passages, movable))
    places = [p.tolist() for p in (after, passages[::2], movable, passages[1::2])]
    in_turn = (token for turn in zip_longest(*places) for token in turn if token is not None)
    first = [int(generator.choice(early)), *islice(in_turn, count - 1)]
    # Early, most of the text follows; within a document, most of that. A choice by hindsight, of
    # either, has to be tried with a future that is likely and with one that is not.
    early_one, inside = first[0], _within_document(ids, start, generator)
    for index, place in ((1, early_one), (2, inside), (3, inside)):
        if index * KINDS < len(first):
            first[index * KINDS] = place
    return first


def _within_document(ids: Ids, start: int, generator: np.random.Generator) -> int:
    """A token near the beginning of a document, of a short one only if all are short."""
    first = np.flatnonzero(ids == start) + 1
    first = first if len(first) and ids[0] == start else np.append(0, first)
    size = np.append(first[1:] - 1, len(ids)) - first
    roomy = np.flatnonzero(size >= min(ROOMY, int(size.max())))
    chosen = int(generator.choice(roomy, p=size[roomy] / size[roomy].sum()))
    part = int(size[chosen]) // 16
    place = int(first[chosen]) + part + int(generator.integers(part + 1))
    return max(place, int(movable_of(ids, start)[0]))


def movable_of(ids: Ids, start: int) -> Places:
    """The tokens that can be changed: all but the first and those that begin a document.

    Raises:
        ScoreError: if there is none.
    """
    movable = np.flatnonzero(ids[1:] != start) + 1
    if not movable.size:
        raise ScoreError("there is no token to flip in the text of the audit; give it more text")
    return movable


def pool_of(ids: Ids, start: int, vocab: int) -> Ids:
    """The tokens to put in the place of others: those of the text, if it has more than one."""
    pool = np.setdiff1d(ids, [start])
    return pool if len(pool) > 1 else np.setdiff1d(np.arange(vocab, dtype=np.uint32), [start])


def flipped(
    ids: Ids,
    start: int,
    token: int,
    index: int,
    pool: Ids,
    expected: Expected,
    generator: np.random.Generator,
) -> tuple[str, Ids]:
    """What flip number ``index`` changes, in words, and the stream in which it is changed.

    All tokens from ``token`` on change, or it alone, or it and some later ones, in turns, so that
    each kind of place meets each kind of flip.

    Args:
        ids: (targets + 1,) the stream.
        start: the token that begins a document, which stays where it is.
        token: the first that is changed.
        index: of the flip.
        pool: tokens to choose from.
        expected: what the method finds likely.
        generator: what decides the rest.
    """
    later = np.flatnonzero(ids[token + 1 :] != start) + token + 1
    what = f"token {token}"
    if index % KINDS == 0:
        future = FUTURES[index // KINDS % len(FUTURES)]
        changed = another_future(ids, token, later, future, pool, expected, generator)
        what = f"all tokens from {token} on"
    elif index % KINDS == 1 or not later.size:
        changed = ids.copy()
    else:
        some = generator.permutation(later)[:LATER]
        changed = exchange(ids, some, pool, generator)
        what = f"token {token} and {len(some)} later ones"
    # What picks the better of two scores decides anew where a target costs much more or less.
    likely, unlikely = int(expected.likely[token - 1]), int(expected.unlikely[token - 1])
    wanted = [likely, unlikely] if index % 2 else [unlikely, likely]
    different = [option for option in wanted if option != ids[token]]
    changed[token] = different[0] if different else _other(int(ids[token]), pool)
    return what, changed


def another_future(
    ids: Ids,
    token: int,
    later: Places,
    future: Future,
    pool: Ids,
    expected: Expected,
    generator: np.random.Generator,
) -> Ids:
    """The stream with ``token`` and the ``later`` ones changed to a future of this kind."""
    match future:
        case "likely":
            return _walk(ids, token, later, pool, expected.then)
        case "unlikely":
            return _walk(ids, token, later, pool, expected.hardly)
        case "other":
            return other_part(ids, token, later, pool, generator)
        case "random":
            return exchange(ids, np.append(token, later), pool, generator)


def other_part(
    ids: Ids, token: int, later: Places, pool: Ids, generator: np.random.Generator
) -> Ids:
    """The stream with its ``later`` tokens in another place: they begin elsewhere, and go round."""
    changed = ids.copy()
    changed[later] = np.roll(ids[later], int(generator.integers(len(later) + 1)))
    changed[token] = _other(int(ids[token]), pool)
    return changed


def _walk(ids: Ids, token: int, later: Places, pool: Ids, following: Ids) -> Ids:
    """The stream in which each ``later`` token is the one ``following`` that before it."""
    changed = ids.copy()
    changed[token] = _other(int(ids[token]), pool)
    for place in later.tolist():
        changed[place] = following[changed[place - 1]]
    return changed


def _other(token: int, pool: Ids) -> int:
    """A token of the pool that is not this one."""
    return int(pool[np.searchsorted(pool, token, "right") % len(pool)])


def exchange(
    ids: Ids,
    chosen: Places,
    pool: Ids,
    generator: np.random.Generator,
) -> Ids:
    """The stream with another token of the pool in each of the chosen places."""
    drawn = generator.integers(0, len(pool), len(chosen))
    drawn = np.where(pool[drawn] == ids[chosen], (drawn + 1) % len(pool), drawn)
    changed = ids.copy()
    changed[chosen] = pool[drawn]
    return changed
