"""What is asked and what is scored, to the character and to the token."""

import random
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from segpt.config.base import kind
from segpt.data.tokenizer import BYTES, load
from segpt.errors import SpecError
from segpt.tasks.continuations import ContinuationScore, continuations
from segpt.tasks.core import Item, LanguageModeling, MultipleChoice, Schema, Task, task
from segpt.tasks.prompts import (
    Example,
    Prompts,
    arrange,
    choice_spans,
    continuation_span,
    draw,
    example,
    render,
    schema_spans,
)
from segpt.tasks.subject import Shared

START = load(BYTES).start


class Successor:
    """A model that finds each byte likeliest to be followed by the next one of the alphabet."""

    vocab, start = BYTES.vocab, START
    device = torch.device("cpu")

    def __init__(self, context: int | None = None) -> None:
        self.context = context

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def logits(
        self, tokens: Tensor, rows: Tensor, columns: Tensor, shared: Shared | None
    ) -> Iterator[Tensor]:
        assert shared is None or len(shared.owner) == len(tokens)
        likeliest = (tokens[rows, columns] + 1) % self.vocab
        yield 5.0 * torch.nn.functional.one_hot(likeliest, self.vocab).float()


class Merging(Successor):
    """Also has a token, 1, for ``". "`` and one, 0, for ``"n!"``, which cross borders."""

    def encode(self, text: str) -> list[int]:
        return list(text.replace(". ", "\u0001").replace("n!", "\0").encode("latin-1"))


def choices(count: int = 3) -> list[Item]:
    return [MultipleChoice(query=f"q{i}", choices=(f"x{i}", f"y{i}"), gold=1) for i in range(count)]


def test_items_are_shuffled_and_then_cropped() -> None:
    items = choices(50)
    expected = list(items)
    random.Random(1337).shuffle(expected)
    assert arrange(items) == arrange(items, -1) == expected
    assert arrange(items, 7) == expected[:7]
    assert items == choices(50)


@pytest.mark.parametrize(("items", "shots"), [(11, 10), (32, 10), (230, 3), (2376, 10), (5, 0)])
def test_solved_items_are_drawn_from_all_others(items: int, shots: int) -> None:
    for index in {0, 1, items // 2, items - 1}:
        others = [i for i in range(items) if i != index]
        assert draw(items, index, shots) == random.Random(1234 + index).sample(others, shots)


def test_a_short_run_draws_from_fewer_items() -> None:
    long, short = (arrange(choices(200), most) for most in (-1, 20))
    assert short == long[:20]
    few = task("arc_easy")
    assert render(few, long, 0) != render(few, short, 0)


def test_too_few_items_are_refused_with_a_remedy() -> None:
    with pytest.raises(SpecError, match=r"raise --max-per-task to at least 11"):
        draw(10, 0, 10)


def some(form: str, shots: int, delimiter: str) -> Task:
    return Task(
        label="some",
        form=form,  # type: ignore[arg-type]
        shots=shots,
        delimiter=delimiter,
        path="a/some.jsonl",
        items=3,
        v1=50,
        v2=50,
    )


def test_multiple_choice_is_rendered_to_the_character() -> None:
    found = render(some("multiple_choice", 2, "\nAnswer: "), choices(), 0)
    first, second = random.Random(1234).sample([1, 2], 2)
    before = f"q{first}\nAnswer: y{first}\n\nq{second}\nAnswer: y{second}\n\n"
    assert found == Prompts((f"{before}q0\nAnswer: x0", f"{before}q0\nAnswer: y0"), 1)
    trailing: list[Item] = [MultipleChoice(query="language? ", choices=("A", "B"), gold=0)]
    assert render(some("multiple_choice", 0, " "), trailing, 0).texts[0] == "language?  A"


def test_a_schema_is_rendered_to_the_character() -> None:
    items: list[Item] = [
        Schema(context_options=("Ann", "Bob"), continuation="left.", gold=0),
        Schema(context_options=("The cat", "The dog"), continuation="slept.", gold=1),
    ]
    found = render(some("schema", 1, " "), items, 0)
    assert found == Prompts(("The dog slept.\n\nAnn left.", "The dog slept.\n\nBob left."), 0)


def test_language_modeling_is_rendered_to_the_character() -> None:
    items: list[Item] = [
        LanguageModeling(context=" once upon \n", continuation="a time"),
        LanguageModeling(context="\tQuestion: ", continuation="yes "),
    ]
    found = render(some("language_modeling", 1, "\nAnswer: "), items, 0)
    before = "Question:\nAnswer: yes \n\nonce upon\nAnswer:"
    assert found.texts == (before, before + " a time")


def test_of_equal_candidates_the_first_wins() -> None:
    plain = some("multiple_choice", 0, " ")
    same: list[Item] = [
        MultipleChoice(query="q", choices=("a", "b", "a"), gold=i) for i in range(3)
    ]
    assert [render(plain, same, i) for i in range(3)] == [
        Prompts(("q a", "q b"), 0),
        Prompts(("q a", "q b"), 1),
        Prompts(("q a", "q b"), -1),
    ]
    tie = [
        ContinuationScore(2.0, 2, False),
        ContinuationScore(1.0, 1, True),
        ContinuationScore(3.0, 3, False),
    ]
    assert [Example((), i, False).answered(tie) for i in (0, 1, 2, -1)] == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("candidates", "begin", "moved"),
    [
        (([9, 1, 2, 3], [9, 1, 4]), 2, False),
        (([9, 1, 2], [9, 1, 2, 3]), 2, True),  # one begins the other: an empty span
        (([9, 1, 2], [9, 1, 2]), 2, True),
        (([9, 1, 2, 3, 4], [9, 1, 2, 5], [9, 1, 6]), 2, False),
    ],
)
def test_choices_are_scored_after_what_they_share(
    candidates: Sequence[list[int]], begin: int, moved: bool
) -> None:
    assert choice_spans(candidates) == ([begin] * len(candidates), moved)


@pytest.mark.parametrize(
    ("candidates", "begins", "moved"),
    [
        (([9, 1, 5, 6], [9, 1, 2, 5, 6]), [2, 3], False),
        (([9, 1, 5], [9, 1, 6]), [2, 2], True),  # nothing in common at the end
        (([9, 5, 6], [9, 5, 6]), [1, 1], True),  # which is all they have: not the start
    ],
)
def test_schemas_are_scored_where_they_end_alike(
    candidates: Sequence[list[int]], begins: list[int], moved: bool
) -> None:
    assert schema_spans(candidates) == (begins, moved)


@pytest.mark.parametrize(
    ("prompt", "whole", "begin", "moved"),
    [
        ([9, 1, 2], [9, 1, 2, 3], 3, False),
        ([9, 1, 2], [9, 1, 7, 3], 2, True),  # the last token of the prompt has changed
        ([9, 1, 2, 3], [9, 1, 7], 2, True),
        ([9, 1, 2], [9, 1, 2], 2, True),  # nothing was added
    ],
)
def test_continuations_are_scored_after_the_prompt(
    prompt: list[int], whole: list[int], begin: int, moved: bool
) -> None:
    assert continuation_span(prompt, whole) == (begin, moved)


def test_examples_begin_with_the_start_token_and_score_what_counts() -> None:
    choice = example(some("multiple_choice", 0, " "), choices(), 0, Successor())
    assert [r.context for r in choice.requests] == 2 * [[START, *b"q0 "]]
    assert [r.continuation for r in choice.requests] == [[*b"x0"], [*b"y0"]]
    schema: list[Item] = [Schema(context_options=("Ann", "Eve"), continuation="ran", gold=0)]
    found = example(some("schema", 0, " "), schema, 0, Successor())
    assert [r.continuation for r in found.requests] == 2 * [[*b" ran"]]
    assert [r.context for r in found.requests] == [[START, *b"Ann"], [START, *b"Eve"]]
    plain: list[Item] = [LanguageModeling(context=" one two ", continuation="three")]
    (request,) = example(some("language_modeling", 0, " "), plain, 0, Successor()).requests
    assert (request.context, request.continuation) == ([START, *b"one two"], [*b" three"])


def test_a_tokenizer_that_merges_across_the_border_is_noticed() -> None:
    plain = some("language_modeling", 0, " ")
    items: list[Item] = [LanguageModeling(context=c, continuation="so") for c in ("End.", "End")]
    moved, kept = (example(plain, items, i, Merging()) for i in range(2))
    assert (moved.moved, kept.moved) == (True, False)
    assert moved.requests[0].continuation == [1, *b"so"]
    assert moved.requests[0].context == [START, *b"End"]
    options: list[Item] = [MultipleChoice(query="q", choices=("n", "n!"), gold=0)]
    assert not example(some("multiple_choice", 0, " "), options, 0, Merging()).moved
    assert example(some("multiple_choice", 0, " "), options, 0, Successor()).moved


@pytest.mark.parametrize(
    ("item", "right"),
    [
        (LanguageModeling(context="abc ", continuation="def"), True),
        (LanguageModeling(context="abc", continuation="dex"), False),
        (LanguageModeling(context="abc", continuation="def "), False),
        (MultipleChoice(query="a", choices=("zoo", "bcd"), gold=1), True),
        (MultipleChoice(query="a", choices=("zoo", "bcd"), gold=0), False),
        # The long one has more nats, and fewer per token.
        (MultipleChoice(query="a", choices=("z", "bcdefghx"), gold=1), True),
        (Schema(context_options=("x", "a"), continuation="bc", gold=1), True),
        (Schema(context_options=("x", "a"), continuation="bc", gold=0), False),
    ],
)
def test_answers_are_judged(item: Item, right: bool) -> None:
    found = example(some(kind(item), 0, ""), [item], 0, Successor())
    assert not found.moved
    (answers,) = continuations(Successor(), [found.requests])
    assert found.answered(answers) is right


def test_what_does_not_fit_is_cropped_from_the_left() -> None:
    item = LanguageModeling(context="abc", continuation="def")
    counts = {}
    for context in (None, 7, 6, 3):
        subject = Successor(context)
        found = example(some("language_modeling", 0, ""), [item], 0, subject)
        ((answer,),) = continuations(subject, [found.requests])
        assert answer.greedy
        counts[context] = (found.cropped(context), answer.tokens)
    # Of three tokens the first has lost what it would be predicted from.
    assert counts == {None: (False, 3), 7: (False, 3), 6: (True, 3), 3: (True, 2)}
