"""Texts from whole models: repeatable, told as they come, never half a character."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from segpt.artifact.container import unpack
from segpt.config.expand import expand
from segpt.config.layout import layout
from segpt.config.sample import SampleSpec
from segpt.data.tokenizer import BYTES, load
from segpt.errors import DataError, ScoreError
from segpt.stages.read_model import read_model
from segpt.stages.sample import Sampled, sample
from segpt.values import Artifact, Checkpoint, Quantized

ARTIFACTS = sorted((Path(__file__).resolve().parents[2] / "artifacts").glob("*.segpt"))
FIXTURE = Path(__file__).resolve().parents[1] / "artifacts" / "fixture.txt"
QUICK = ("demo-512k", "demo256-1", "demo256-3")  # the largest of each model
PROMPTS = [b"The ``json`` module", b"", "naïve 🙂, and then".encode()]


@pytest.fixture(scope="module", params=ARTIFACTS, ids=lambda path: path.stem)
def artifact(request: pytest.FixtureRequest) -> Artifact:
    value = read_model(request.param)
    assert isinstance(value, Artifact)
    return value


@pytest.mark.slow
def test_a_cache_changes_no_token_of_an_artifact(artifact: Artifact) -> None:
    """Beyond its context, too: a long prompt ends just before it does."""
    model = unpack(artifact)
    context, codec = model.spec.context, load(model.tokenizer)
    long = codec.decode(codec.encode(FIXTURE.read_bytes())[: context - 8])
    for given, tokens in ((PROMPTS, 30), ([long], 60)):
        spec = SampleSpec(temperature=0, tokens=tokens)
        cached = sample(artifact, given, spec)
        plain = sample(artifact, given, dataclasses.replace(spec, cache=False))
        assert cached.ids == plain.ids
        assert cached.texts == plain.texts
    known = len(codec.encode(long))
    assert known < context < known + len(cached.ids[0]) - 40


@pytest.mark.slow
@pytest.mark.parametrize(
    "artifact",
    [
        path if path.stem in QUICK else pytest.param(path, marks=pytest.mark.campaign)
        for path in ARTIFACTS
    ],
    ids=lambda path: path.stem,
    indirect=True,
)
def test_the_first_token_comes_within_a_second(artifact: Artifact) -> None:
    """And 256 more within ten: a guard against reading everything anew, not a race."""
    found = sample(artifact, PROMPTS[:1], SampleSpec(temperature=1, top_p=1, top_k=0, tokens=256))
    assert found.first_token_seconds < 1
    assert found.seconds < 10


@pytest.mark.slow
def test_the_same_seed_gives_the_same_text() -> None:
    artifact = read_model(ARTIFACTS[0])
    spec = SampleSpec(tokens=25)
    first = sample(artifact, PROMPTS, spec)
    assert first.ids == sample(artifact, PROMPTS, spec).ids
    assert first.ids == sample(artifact, PROMPTS, dataclasses.replace(spec, batch=1)).ids
    assert first.ids != sample(artifact, PROMPTS, dataclasses.replace(spec, seed=2)).ids
    twice = sample(artifact, [PROMPTS[0]] * 2, spec)
    assert twice.ids[0] == first.ids[0] != twice.ids[1]


def bytes_model(vocab: int = 257) -> Checkpoint:
    """A model of bytes that knows nothing, so that what it writes is seldom UTF-8."""
    attention = {"heads": 1, "kv_heads": 1, "head_dim": 16}
    spec = expand(
        {
            "vocab": vocab,
            "width": 16,
            "context": 24,
            "depth": 1,
            "layer": {"mixer": attention, "feed": {"hidden": 16}},
            "head": {"tied": False},
        }
    )
    chance = np.random.default_rng(0)
    return Checkpoint(
        spec=spec,
        weights={w.name: chance.standard_normal(w.shape, np.float32) for w in layout(spec)},
        tokenizer=BYTES,
        step=1,
        progress=1.0,
        documents=np.zeros(0, np.uint64),
        origin={},
    )


def told(
    value: Checkpoint | Quantized | Artifact, prompts: list[bytes], spec: SampleSpec
) -> tuple[Sampled, list[list[str]]]:
    pieces: list[list[str]] = [[] for _ in prompts]
    complete: set[int] = set()

    def show(number: int, piece: str | None) -> None:
        assert number not in complete
        if piece is None:
            complete.add(number)
        else:
            assert piece
            pieces[number].append(piece)

    found = sample(value, prompts, spec, show=show)
    assert complete == set(range(len(prompts)))
    return found, pieces


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_pieces_are_whole_characters_and_add_up(seed: int) -> None:
    """Bytes that spell no character become U+FFFD, as in the text as a whole."""
    spec = SampleSpec(tokens=300, temperature=3, top_k=0, top_p=1, seed=seed)
    given = [b"", "a 🙂".encode(), "🙂".encode()[:2], b"\xff\xfe"]
    found, pieces = told(bytes_model(), given, spec)
    for prompt, text, shown in zip(given, found.texts, pieces, strict=True):
        assert "".join(shown) == (prompt + text).decode("utf-8", "replace")
    assert found.plain()["texts"] == [text.decode("utf-8", "replace") for text in found.texts]


def forced(text: bytes) -> Checkpoint:
    """A model that writes ``text`` after an ``x``, one byte after the other: each is a new one."""
    assert len(set(text)) == len(text)
    checkpoint = bytes_model()
    arrays = {name: np.zeros_like(array) for name, array in checkpoint.weights.items()}
    # The stream is the token's own vector, and the head looks for the vector of the one before.
    for place, (before, after) in enumerate(pairwise([ord("x"), *text, BYTES.vocab - 1])):
        arrays["table"][before, place] = 1
        arrays["head.matrix"][after, place] = 1
    return dataclasses.replace(checkpoint, weights=arrays)


def test_a_character_waits_until_it_is_complete() -> None:
    text = "aé🙂b".encode()
    spec = SampleSpec(tokens=50, temperature=0, repetition_penalty=1)
    found, (pieces,) = told(forced(text), [b"x"], spec)
    assert found.texts == (text,)
    assert pieces == ["x", "a", "é", "🙂", "b"]
    assert found.ended == (True,)
    assert found.tokens == len(text) + 1


def test_a_prompt_may_end_within_a_character() -> None:
    text = "🙂".encode()
    spec = SampleSpec(tokens=2, temperature=0, repetition_penalty=1)
    found, (pieces,) = told(forced(text), [b"x" + text[:2]], spec)
    assert pieces == ["x", "🙂"]
    assert found.texts == (text[2:],)
    assert found.ended == (False,)


def test_what_is_incomplete_at_the_end_is_told_there() -> None:
    text = "🙂".encode()
    spec = SampleSpec(tokens=3, temperature=0, repetition_penalty=1)
    _, (pieces,) = told(forced(text), [b"x"], spec)
    assert pieces == ["x", "\ufffd"]


def test_figures_and_plain_values_belong_together() -> None:
    spec = SampleSpec(tokens=9)
    found = sample(bytes_model(), [b"a", b"b"], spec)
    plain = found.plain()
    assert plain["tokens"] == sum(len(ids) for ids in plain["ids"])
    assert plain["tokens_per_second"] == pytest.approx(plain["tokens"] / plain["seconds"])
    assert 0 < plain["first_token_seconds"] <= plain["seconds"]
    assert plain["prompts"] == ["a", "b"]
    codec = load(BYTES)
    assert [codec.decode(ids) for ids in plain["ids"]] == list(found.texts)


def test_what_cannot_be_continued_is_refused() -> None:
    with pytest.raises(DataError, match="no prompt"):
        sample(bytes_model(), [], SampleSpec())
    with pytest.raises(ScoreError, match="do not belong together"):
        sample(bytes_model(vocab=200), [b""], SampleSpec())


@pytest.mark.slow
def test_an_artifact_and_the_model_in_it_write_the_same(artifact: Artifact) -> None:
    spec = SampleSpec(tokens=10)
    assert sample(artifact, [b"a"], spec).ids == sample(unpack(artifact), [b"a"], spec).ids
