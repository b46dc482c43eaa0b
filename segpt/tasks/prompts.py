"""What CORE asks: the prompts of a task, the solved items before them, the tokens that count.

The rules are those by which published values were made (DataComp-LM, Li et al. 2024, 2406.11794,
as nanochat reads it), to the seeds of the draws.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple, assert_never

from segpt.errors import SpecError

from .continuations import ContinuationScore, Request
from .core import Item, LanguageModeling, MultipleChoice, Schema, Task
from .subject import Subject

ORDER_SEED = 1337  # of the items of a task
SHOTS_SEED = 1234  # of the solved items before the first; one more for each next


class Prompts(NamedTuple):
    """The texts that one item compares.

    Attributes:
        texts: distinct candidates; for language modeling the prompt and the prompt with its
            continuation.
        gold: the right one; -1 if an earlier one is the same, which wins the tie.
    """

    texts: tuple[str, ...]
    gold: int


class Example(NamedTuple):
    """One item as requests; ``gold`` is the right one, or None if the likeliest tokens must be it.

    ``moved`` tells that the scored tokens are not those of the rule, because they would be none
    or because the tokens of the prompt change with what follows it.
    """

    requests: tuple[Request, ...]
    gold: int | None
    moved: bool

    def cropped(self, context: int | None) -> bool:
        """Whether a request is longer than ``context`` tokens, so that its beginning is lost."""
        lengths = (len(r.context) + len(r.continuation) for r in self.requests)
        return context is not None and max(lengths) > context

    def answered(self, scores: Sequence[ContinuationScore]) -> bool:
        """Whether the model is right; of candidates that are equally likely the first counts."""
        if self.gold is None:
            return scores[0].greedy
        means = [each.nats / each.tokens for each in scores]
        return means.index(min(means)) == self.gold


def arrange(items: Sequence[Item], most: int = -1) -> list[Item]:
    """The items in the order in which they are asked; the first ``most`` if that is positive.

    Solved items are drawn from these, so that a short run is not the beginning of a long one.
    """
    shuffled = list(items)
    random.Random(ORDER_SEED).shuffle(shuffled)
    return shuffled[:most] if most > 0 else shuffled


def draw(items: int, index: int, shots: int) -> list[int]:
    """Which of ``items`` items stand solved before item ``index``: any but itself.

    Raises:
        SpecError: if there are too few.
    """
    if items - 1 < shots:
        raise SpecError(
            f"{shots} solved items stand before each item, and {items} are too few to draw them "
            f"from; raise --max-per-task to at least {shots + 1}"
        )
    # The same draw as from the list of all others, which need not be made.
    chosen = random.Random(SHOTS_SEED + index).sample(range(items - 1), shots)
    return [other + (other >= index) for other in chosen]


def render(task: Task, items: Sequence[Item], index: int) -> Prompts:
    """The texts of item ``index`` of arranged items.

    Raises:
        SpecError: if there are too few items to draw the solved ones from.
    """
    item, delimiter = items[index], task.delimiter
    solved = [items[i] for i in draw(len(items), index, task.shots)]
    before = "".join(_solved(other, delimiter) + "\n\n" for other in solved)
    match item:
        case MultipleChoice():
            texts = [f"{before}{item.query}{delimiter}{choice}" for choice in item.choices]
        case Schema():
            texts = [
                f"{before}{context}{delimiter}{item.continuation}"
                for context in item.context_options
            ]
        case LanguageModeling():
            prompt = f"{before}{item.context.strip()}{delimiter}"
            return Prompts((prompt.rstrip(), prompt + item.continuation), 1)
        case _:
            assert_never(item)
    distinct = list(dict.fromkeys(texts))
    first = texts.index(texts[item.gold]) == item.gold
    return Prompts(tuple(distinct), distinct.index(texts[item.gold]) if first else -1)


def _solved(item: Item, delimiter: str) -> str:
    match item:
        case MultipleChoice():
            return f"{item.query}{delimiter}{item.choices[item.gold]}"
        case Schema():
            return f"{item.context_options[item.gold]}{delimiter}{item.continuation}"
        case LanguageModeling():
            return f"{item.context.strip()}{delimiter}{item.continuation}"
        case _:
            assert_never(item)


def example(task: Task, items: Sequence[Item], index: int, subject: Subject) -> Example:
    """Item ``index`` of arranged items as tokens.

    Raises:
        SpecError: if there are too few items to draw the solved ones from.
        DataError: if the tokenizer cannot spell a text.
    """
    prompts = render(task, items, index)
    tokens = [[subject.start, *subject.encode(text)] for text in prompts.texts]
    match task.form:
        case "multiple_choice":
            begins, moved = choice_spans(tokens)
        case "schema":
            begins, moved = schema_spans(tokens)
        case "language_modeling":
            (begin, moved) = continuation_span(*tokens)
            return Example((_request(tokens[1], begin),), None, moved)
        case _:
            assert_never(task.form)
    requests = tuple(_request(ids, begin) for ids, begin in zip(tokens, begins, strict=True))
    return Example(requests, prompts.gold, moved)


def choice_spans(candidates: Sequence[Sequence[int]]) -> tuple[list[int], bool]:
    """Where the scored tokens of each candidate begin: after what all of them begin with.

    If one candidate is what another begins with, that would leave it none; all begin a token
    earlier then, and the second value is true.
    """
    alike = common_prefix(candidates)
    begin = min(alike, min(map(len, candidates)) - 1)
    return [begin] * len(candidates), begin != alike


def schema_spans(candidates: Sequence[Sequence[int]]) -> tuple[list[int], bool]:
    """Where the scored tokens of each candidate begin: with what all of them end in.

    That is at least one token and never the start; the second value tells if it was not so.
    """
    alike = common_prefix([ids[::-1] for ids in candidates])
    scored = max(1, min(alike, min(map(len, candidates)) - 1))
    return [len(ids) - scored for ids in candidates], scored != alike


def continuation_span(prompt: Sequence[int], whole: Sequence[int]) -> tuple[int, bool]:
    """Where the continuation begins in the tokens of prompt and continuation.

    If these do not begin with the tokens of the prompt, or add none, it begins with the first
    token that differs, or with the last; the second value is true then.
    """
    alike = common_prefix([prompt, whole])
    begin = min(alike, len(whole) - 1)
    return begin, begin != len(prompt)


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with."""
    return next(
        (i for i, tokens in enumerate(zip(*sequences, strict=False)) if len(set(tokens)) > 1),
        min(map(len, sequences)),
    )


def _request(tokens: Sequence[int], begin: int) -> Request:
    return Request(tokens[:begin], tokens[begin:])
