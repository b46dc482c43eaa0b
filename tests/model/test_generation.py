"""What a model generates: the same with and without a cache, alone and beside others."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from segpt.config.model import ModelSpec
from segpt.config.sample import SampleSpec
from segpt.eval.sample import generate
from segpt.model.cache import KVCache, pick_rows
from segpt.model.model import Model
from segpt.model.state import Hidden

Make = Callable[..., Model]
LENGTHS = (0, 3, 37, 9)  # of prompts, where the context is 32
GREEDY: dict[str, Any] = {"temperature": 0, "repetition_penalty": 1.3, "tokens": 8}


def prompts(spec: ModelSpec, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    ids = [torch.randint(spec.vocab, (n,), generator=generator).tolist() for n in lengths]
    return [[i for i in row if i != spec.start] for row in ids]


def texts(model: Model, given: Sequence[Sequence[int]], spec: SampleSpec) -> list[list[int]]:
    start = 0 if model.spec.start is None else model.spec.start
    found: list[list[int]] = [[] for _ in given]
    for number, token in generate(model, given, spec, start=start):
        found[number].append(token)
    return found


@pytest.mark.slow
def test_a_cache_changes_no_token(spec: ModelSpec, make: Make) -> None:
    model = make(spec).eval()
    given = prompts(spec)
    cached = texts(model, given, SampleSpec(**GREEDY))
    assert cached == texts(model, given, SampleSpec(**GREEDY, cache=False))
    assert all(cached)


@pytest.mark.slow
def test_prompts_do_not_change_each_other(spec: ModelSpec, make: Make) -> None:
    """Drawn from the whole distribution: alone, in pairs, and all of them together."""
    model = make(spec).eval()
    given = prompts(spec)
    usual: dict[str, Any] = {"temperature": 1, "top_k": 0, "top_p": 1, "tokens": 5}
    alone, pairs, together = (
        texts(model, given, SampleSpec(**usual, batch=batch)) for batch in (1, 2, 4)
    )
    assert alone == pairs == together
    assert alone[1] == texts(model, [[], given[1], *given[2:]], SampleSpec(**usual, batch=3))[1]


@pytest.mark.slow
@pytest.mark.parametrize("context", [1, 5, 200])
def test_attention_looks_back_as_far_as_it_is_told(
    everything: ModelSpec, make: Make, context: int
) -> None:
    model = make(everything).eval()
    given = prompts(everything, (40, 9))
    usual = SampleSpec(**GREEDY, context=context)
    found = texts(model, given, usual)
    assert found == texts(model, given, SampleSpec(**GREEDY, context=context, cache=False))
    assert found != texts(model, given, SampleSpec(**GREEDY, context=2))


@pytest.mark.slow
def test_a_long_prompt_is_read_in_parts(
    everything: ModelSpec, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So memory does not grow with the prompt; the first token needs as many calls as parts."""
    model = make(everything).eval()
    read: list[int] = []
    hidden = model.hidden

    def watched(tokens: torch.Tensor, *rest: Any) -> Hidden:
        read.append(tokens.size(1))
        return hidden(tokens, *rest)

    monkeypatch.setattr(model, "hidden", watched)
    given = prompts(everything, (1000,))
    spec = SampleSpec(temperature=0, tokens=3)
    found = texts(model, given, spec)
    assert sum(read) == 1 + len(given[0]) + len(found[0]) - 1
    assert max(read) == 4 * (everything.context * 7 // 8)
    assert len(read) < 1000 / 100 + 3
    monkeypatch.undo()
    assert found == texts(model, given, SampleSpec(temperature=0, tokens=3, cache=False))


@pytest.mark.slow
def test_the_cache_holds_a_window_and_no_expanded_heads(everything: ModelSpec, make: Make) -> None:
    model, cache = make(everything).eval(), dict[Any, Any]()
    with torch.no_grad():
        for position in range(100):
            model.hidden(torch.tensor([[position % 7]]), cache, position, 1, 28)
    keys = [past.key for past in cache.values() if past.key is not None]
    assert len(keys) == sum(everything.layers[v.layer].mixer is not None for v in everything.visits)
    kv_heads = {layer.mixer.kv_heads for layer in everything.layers if layer.mixer is not None}
    assert {key.size(2) for key in keys} <= kv_heads
    assert max(key.size(1) for key in keys) == 27


@pytest.mark.slow
def test_rows_of_a_cache_go_on_in_any_order(spec: ModelSpec, make: Make) -> None:
    """Those that are picked predict as they would have, whatever they remember."""
    model, cache, other = make(spec).eval(), KVCache(), KVCache()
    ids = torch.tensor([row[:9] for row in prompts(spec, (12, 12, 12))])
    rows = torch.tensor([2, 0, 0])
    with torch.no_grad():
        model.hidden(ids[:, :6], cache, window=5)
        pick_rows(cache, rows)
        found = model.hidden(ids[rows, 6:], cache, 6, window=5).x
        model.hidden(ids[rows, :6], other, window=5)
        expected = model.hidden(ids[rows, 6:], other, 6, window=5).x
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_document_that_ends_is_not_continued(everything: ModelSpec, make: Make) -> None:
    """The token that begins the next one is the last; rows beside it go on."""
    model = make(everything).eval()
    spec = SampleSpec(temperature=1, top_k=0, top_p=1, tokens=60, repetition_penalty=1, batch=6)
    given = [[1 + i, 2, 3] for i in range(12)]
    start = everything.start or 0
    found = texts(model, given, spec)
    ended = [row for row in found if row[-1] == start]
    assert 0 < len(ended) < 12
    assert all(start not in row[:-1] for row in found)
    assert all(len(row) == 60 for row in found if row[-1] != start)
    assert len(set(map(len, ended))) > 1


def test_tokens_come_one_by_one(everything: ModelSpec, make: Make) -> None:
    """A reader sees the first without waiting for the others; rows take turns."""
    model = make(everything).eval()
    coming = generate(model, [[1], [2, 3, 4]], SampleSpec(temperature=0, tokens=50), start=0)
    first = list(itertools.islice(coming, 6))
    assert [drawn.number for drawn in first] == [0, 0, 0, 1, 0, 1]
    assert torch.is_grad_enabled()


def test_ids_beyond_the_tokenizer_never_come(everything: ModelSpec, make: Make) -> None:
    model = make(everything).eval()
    spec = SampleSpec(temperature=5, top_k=0, top_p=1, tokens=200)
    tokens = [t for _, t in generate(model, [[1]] * 4, spec, start=0, vocab=9)]
    assert max(tokens) == 8


@pytest.mark.slow
@pytest.mark.parametrize("length", [0, 5, 150])
def test_the_penalty_is_for_what_prompt_and_text_hold_last(
    everything: ModelSpec, make: Make, length: int
) -> None:
    """Each token is the best of a full pass, less what its places among the last 128 cost it."""
    model = make(everything).eval()
    start, penalty = everything.start or 0, 4.0
    (given,) = prompts(everything, (length,))
    (found,) = texts(
        model, [given], SampleSpec(temperature=0, repetition_penalty=penalty, tokens=12)
    )
    window = everything.context * 7 // 8
    plain = 0
    for i, token in enumerate(found):
        ids = [*given, *found[:i]]
        with torch.no_grad():
            row = model(torch.tensor([[start, *ids]]), last=1, window=window)[0, 0].double()
        plain += int(row.argmax()) != token
        for other in set(ids[-128:]):
            places = [d for d, seen in enumerate(reversed(ids[-128:]), 1) if seen == other]
            scale = penalty ** min(3.0, sum(0.5 ** (d / 140) for d in places))
            row[other] = row[other] / scale if row[other] > 0 else row[other] * scale
        assert int(row.argmax()) == token
    assert plain
