"""Continuations cost what a full pass over each sequence says, however they are batched."""

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from segpt.errors import ScoreError
from segpt.model.model import Model
from segpt.tasks.continuations import ContinuationScore, Request, continuations
from segpt.tasks.subject import Subject, of_hugging_face, of_model

MakeModel = Callable[..., Model]
Logits = Callable[[Tensor], Tensor]
START = 31


class Letters:
    """One token per letter of the alphabet, and a start."""

    vocab, start, exact = 32, START, True

    def encode(self, document: bytes) -> NDArray[np.uint32]:
        return (np.frombuffer(document, np.uint8) - ord("a")).astype(np.uint32)

    def decode(self, ids: ArrayLike) -> bytes:
        return (np.asarray(ids) + ord("a")).astype(np.uint8).tobytes()

    def piece_bytes(self, previous: ArrayLike, ids: ArrayLike) -> NDArray[np.int64]:
        return np.ones(np.shape(ids), np.int64)


def subject(model: Model, context: int | None = None) -> Subject:
    return of_model(model, Letters(), context)


def examples(count: int, seed: int = 0, longest: int = 40) -> list[list[Request]]:
    """Candidates that share their context; some examples share a story, some have one candidate."""
    draw = np.random.default_rng(seed)

    def some(low: int, high: int) -> list[int]:
        return draw.integers(0, 31, int(draw.integers(low, high))).tolist()

    stories = [[START, *some(0, longest)] for _ in range(3)]
    found = []
    for i in range(count):
        context = [*stories[i % 3], *some(0, 8)] if i % 2 else [START, *some(0, longest)]
        candidates = 1 if i % 4 == 3 else int(draw.integers(2, 5))
        found.append([Request(context, some(1, 7)) for _ in range(candidates)])
    found.append([Request([START], [1, 2]), Request([START], [1, 2, 3])])  # one begins the other
    return found


def expected(logits: Logits, request: Request, context: int | None) -> ContinuationScore:
    """From one full pass over one sequence."""
    ids = [*request.context, *request.continuation][-(context or 10**9) :]
    count = min(len(request.continuation), len(ids) - 1)
    with torch.no_grad():
        rows = logits(torch.tensor([ids[:-1]]))[0, -count:].double()
    targets = torch.tensor(ids[-count:])
    nats = -rows.log_softmax(-1)[torch.arange(count), targets]
    return ContinuationScore(float(nats.sum()), count, bool((rows.argmax(-1) == targets).all()))


def assert_same(
    found: Sequence[Sequence[ContinuationScore]], wanted: Sequence[Sequence[ContinuationScore]]
) -> None:
    assert [len(each) for each in found] == [len(each) for each in wanted]
    for a, b in zip(chain(*found), chain(*wanted), strict=True):
        assert a[1:] == b[1:]
        assert a.nats == pytest.approx(b.nats, abs=1e-5)


FORMS: list[dict[str, Any]] = [
    {},
    {"depth": 3, "route": "0 1:*2"},
    {"layer": {"mixer": {"heads": 2, "kv_heads": 2, "head_dim": 8}, "feed": None}},
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", FORMS, ids=range(len(FORMS)))
@pytest.mark.parametrize("context", [16, 33, 64])
def test_nats_are_those_of_full_passes(
    tiny: MakeModel, changes: dict[str, Any], context: int
) -> None:
    model, requests = tiny(**changes), examples(20)
    found = continuations(subject(model, context), requests)
    wanted = [[expected(model, request, context) for request in each] for each in requests]
    assert_same(found, wanted)
    assert any(one.tokens < 6 for each in found for one in each)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 7, 64, 500, 100_000])
def test_batches_change_nothing(tiny: MakeModel, batch: int) -> None:
    model, requests = tiny(), examples(30, seed=1)
    assert_same(
        continuations(subject(model, 64), requests, batch=batch),
        continuations(subject(model, 64), requests, batch=1024),
    )


def test_neighbours_change_nothing(tiny: MakeModel) -> None:
    who, requests = subject(tiny(), 64), examples(24, seed=2)
    together = continuations(who, requests)
    alone = [[continuations(who, [[request]])[0][0] for request in each] for each in requests]
    assert_same(together, alone)
    order = np.random.default_rng(0).permutation(len(requests)).tolist()
    assert_same(continuations(who, [requests[i] for i in order]), [together[i] for i in order])


def test_the_likeliest_tokens_are_greedy(tiny: MakeModel) -> None:
    model = tiny()
    ids = [START, 3, 1, 4]
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    spoilt = [*ids[4:9], (ids[9] + 1) % 31]
    found = continuations(subject(model), [[Request(ids[:4], ids[4:]), Request(ids[:4], spoilt)]])
    assert [one.greedy for one in found[0]] == [True, False]
    assert [
        one.greedy for one in continuations(subject(model), [[Request(ids[:4], spoilt[:5])]])[0]
    ] == [True]


def test_the_crop_leaves_only_what_has_something_before_it(tiny: MakeModel) -> None:
    model = tiny()
    long = list(range(25))
    (found,) = continuations(subject(model), [[Request([START, 1], long), Request([START], [5])]])
    assert found[0].tokens == 15
    assert found[0].nats == pytest.approx(
        expected(model, Request(long[-16:-15], long[-15:]), 16).nats, abs=1e-5
    )
    assert found[1].tokens == 1


def test_what_candidates_share_runs_once(tiny: MakeModel) -> None:
    model = tiny()
    seen: list[int] = []
    model.table.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    context = [START, *range(30), *range(30)]
    answers = [Request(context, [i, i + 1]) for i in range(4)]
    continuations(subject(model, 100), [answers])
    # A candidate runs the last token of the context and its own first.
    assert sum(seen) == 60 + 4 * 2
    seen.clear()
    turns = [[Request([*context, *range(i, i + 5)], [2])] for i in range(8)]
    continuations(subject(model, 100), turns)
    assert sum(seen) <= 61 + 8 * 6


def test_batches_hold_little_padding(tiny: MakeModel) -> None:
    model = tiny()
    seen: list[int] = []
    model.table.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    draw = np.random.default_rng(3)
    requests = [
        [Request([START, *draw.integers(0, 31, draw.integers(10, 200)).tolist()], [1])]
        for _ in range(200)
    ]
    continuations(subject(model, 256), requests, batch=1000)
    tokens = sum(len(each[0].context) for each in requests)
    assert tokens <= sum(seen) < 1.1 * tokens
    assert len(seen) < 60


def test_progress_reaches_the_end(tiny: MakeModel) -> None:
    heard: list[tuple[int, int]] = []
    requests = examples(10)
    continuations(subject(tiny(), 64), requests, batch=50, report=lambda *done: heard.append(done))
    total = sum(map(len, requests))
    assert heard == sorted(heard)
    assert len(heard) > 1
    assert heard[-1] == (total, total)
    assert continuations(subject(tiny()), []) == []
    assert continuations(subject(tiny()), [[]]) == [[]]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([START], []), "request 1 has no token to score"),
        (Request([], [1]), "request 1 has no token to score"),
        (Request([START, 32], [1]), "request 1 holds a token outside the vocabulary of 32"),
        (Request([START], [-1]), "request 1 holds a token outside"),
    ],
)
def test_bad_requests_are_refused(tiny: MakeModel, request_: Request, message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        continuations(subject(tiny()), [[Request([START], [1])], [request_]])


def test_a_broken_model_is_refused(tiny: MakeModel) -> None:
    model = tiny(head={"tied": False, "softcap": None})
    with torch.no_grad():
        model.table.weight[5] = float("inf")
    good = [Request([START], [1]), Request([START, 2], [3, 4])]
    with pytest.raises(ScoreError, match="request 2 no finite number of nats"):
        continuations(subject(model), [good, [Request([START, 5], [3, 4, 6])]])


ALPHABET = {chr(ord("a") + i): i for i in range(26)}


def save(place: Path, family: str, *, start: str | None = None, added: bool = False) -> Any:
    """A random model of a family with a tokenizer of letters, in the format of transformers."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({**ALPHABET, "?": 26, "<eos>": 27, "<bos>": 28}, unk_token="?")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, **({} if start is None else {start: f"<{start[:3]}>"})
    )
    if added:
        tokenizer.add_tokens(["<added>"])
    if family == "gpt2":
        config: Any = transformers.GPT2Config(
            vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=48
        )
    elif family == "mistral":
        config = transformers.MistralConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=48,
            sliding_window=12,
        )
    else:
        config = transformers.MambaConfig(
            vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=2
        )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 0.0, 0.3)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return model.eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "context"), [("gpt2", 48), ("mistral", 48), ("mamba", None)])
def test_models_of_transformers_agree_with_full_passes(
    tmp_path: Path, family: str, context: int | None
) -> None:
    model = save(tmp_path, family, start="bos_token")
    who = of_hugging_face(tmp_path)
    assert (who.context, who.start, who.vocab, who.encode("cab")) == (context, 28, 32, [2, 0, 1])
    requests = examples(20, longest=60)
    wanted = [
        [expected(lambda ids: model(ids).logits, request, context) for request in each]
        for each in requests
    ]
    for batch in (None, 90):
        assert_same(continuations(who, requests, batch=batch), wanted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("start", "added", "expect"),
    [("bos_token", True, 28), ("eos_token", True, 27), (None, True, 29), (None, False, None)],
)
def test_a_start_is_found(
    tmp_path: Path, start: str | None, added: bool, expect: int | None
) -> None:
    save(tmp_path, "gpt2", start=start, added=added)
    if expect is None:
        with pytest.raises(ScoreError, match="neither a beginning nor an end"):
            of_hugging_face(tmp_path)
    else:
        assert of_hugging_face(tmp_path).start == expect


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ScoreError, match="not a causal language model that transformers can read"):
        of_hugging_face(tmp_path)
