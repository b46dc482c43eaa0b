"""A score comes with its proof, or not at all."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segpt.artifact.container import pack
from segpt.config.base import encode
from segpt.config.expand import expand
from segpt.config.layout import layout
from segpt.config.ngram import Ngram
from segpt.config.score import Frozen, LowRank, Phased, ScoreSpec, Sgd
from segpt.data.text import document_hash
from segpt.data.tokenizer import BYTES, train_bpe
from segpt.errors import CheckpointError, InterruptError, ScoreError, SpecError
from segpt.eval.tally import ScoreProgress
from segpt.stages.score import Breaks, score
from segpt.stages.unfinished import read_scoring, save_scoring
from segpt.values import Arrays, Checkpoint, Float16Weight, Quantized, Text, Tokenizer
from tests.processes import in_two

SCRIPT = Path(__file__).with_name("two_scorers.py")
DOCUMENTS = [
    b"The first document says little.",
    "The second one, naïvely, says it again: 🙂\r\n\r\n ".encode(),
    b"",
    b"The third says " + 20 * b"over and " + b"out.",
]
SPEC = ScoreSpec(stride=6, batch=4)
ADAPTERS = LowRank(rank=2, chunk=16, rate=0.02, documents=2)
ADAPTIVE = ScoreSpec(stride=6, batch=4, policy=Sgd(chunk=64, rate=0.05))


def text(*documents: bytes) -> Text:
    return Text("a text", lambda: iter(documents or DOCUMENTS))


def checkpoint(*, tokenizer: Tokenizer = BYTES, spread: float = 0.3, **changes: Any) -> Checkpoint:
    recipe: dict[str, Any] = {
        "vocab": tokenizer.vocab,
        "width": 16,
        "context": 16,
        "depth": 2,
        "layer": {
            "mixer": {
                "heads": 2,
                "kv_heads": 1,
                "head_dim": 8,
                "query_key": ["norm", {"kind": "rope", "dims": 4}],
            },
            "feed": {"hidden": 24},
        },
    }
    spec = expand({**recipe, "head": {"tied": True, "softcap": 30.0}} | changes)
    generator = np.random.default_rng(0)
    return Checkpoint(
        spec=spec,
        weights={
            w.name: generator.normal(0, spread, w.shape).astype(np.float16).astype(np.float32)
            for w in layout(spec)
        },
        tokenizer=tokenizer,
        step=1,
        progress=1.0,
        documents=np.array([document_hash(b"of the training text")], np.uint64),
        origin={"tokens": "0123"},
    )


def quantized(source: Checkpoint) -> Quantized:
    """The same weights, which float16 holds exactly."""
    return Quantized(
        spec=source.spec,
        weights={
            name: Float16Weight(value.astype(np.float16)) for name, value in source.weights.items()
        },
        tokenizer=source.tokenizer,
        origin={"checkpoint": source.fingerprint},
    )


@pytest.mark.slow
@pytest.mark.parametrize("spec", [SPEC, ADAPTIVE], ids=["frozen", "sgd"])
def test_all_forms_of_a_model_score_the_same(spec: ScoreSpec) -> None:
    source = checkpoint()
    coded = quantized(source)
    packed = pack(coded)
    found = [score(value, text(), spec) for value in (source, coded, packed, packed)]
    assert len({result.nats for result in found}) == 1
    assert [result.model for result in found] == [source.fingerprint] + 3 * [coded.fingerprint]
    assert found[0].origin["tokens"] == "0123"
    assert found[2].origin["artifact"] == packed.digest
    assert found[2].origin["checkpoint"] == source.fingerprint


def test_a_score_states_its_conditions() -> None:
    result = score(checkpoint(), text(), SPEC)
    raw = sum(map(len, DOCUMENTS))
    assert result.bytes == raw
    # The first start is context; the other three cost nats and no bytes.
    assert result.tokens == raw + 3
    assert result.bpb == pytest.approx(result.nats / math.log(2) / raw)
    assert result.seconds > 0
    assert result.policy == {"kind": "frozen"}
    expected = {
        "coverage": f"each of {raw + 3} targets scored once",
        "order": "one pass, weights never change",
        "overlap": "none",
        "documents": 4,
        "denominator": "bytes",
        "raw_bytes": raw,
        "context": 16,
        "beyond_model_context": False,
        "stride": 6,
        "batch": 4,
        "processes": 1,
        "device": "cpu",
        "threads": torch.get_num_threads(),
    }
    assert expected.items() <= encode(result.conditions).items()
    assert result.conditions.environment.versions is not None
    assert result.conditions.environment.versions.torch == torch.__version__
    assert result.conditions.text == result.origin["text"]
    assert json.loads(json.dumps(result.plain()))["bpb"] == result.bpb


def test_a_uniform_model_costs_the_entropy_of_its_alphabet() -> None:
    source = checkpoint()
    table = {"table": np.zeros_like(source.weights["table"])}
    for policy in (Frozen(), Sgd(chunk=64, rate=0.0)):
        result = score(
            dataclasses.replace(source, weights={**source.weights, **table}),
            text(),
            ScoreSpec(stride=6, policy=policy),
        )
        assert result.bpb == pytest.approx(math.log2(257) * result.tokens / result.bytes, rel=1e-7)


def test_test_time_training_says_how_often_it_learnt() -> None:
    result = score(checkpoint(), text(), ADAPTIVE)
    chunks = math.ceil(result.tokens / 64)
    assert result.conditions.order == (
        f"one pass, {chunks - 1} updates from chunks that had been scored"
    )
    assert result.policy == encode(ADAPTIVE.policy)
    assert result.nats != score(checkpoint(), text(), SPEC).nats


def test_documents_that_were_trained_on_are_refused() -> None:
    hashes = np.array(sorted(document_hash(d) for d in [*DOCUMENTS[:2], b"another"]), np.uint64)
    source = dataclasses.replace(checkpoint(), documents=hashes)
    with pytest.raises(ScoreError, match=r"trained on 2 of the 4 documents .* held out"):
        score(source, text(), SPEC)
    assert score(source, text(*DOCUMENTS[2:]), SPEC).conditions.overlap == "none"
    coded = dataclasses.replace(quantized(checkpoint()), documents=hashes)
    with pytest.raises(ScoreError, match="trained on 2 of the 4"):
        score(coded, text(), SPEC)


def test_an_artifact_has_no_list_of_documents_and_the_score_says_so() -> None:
    result = score(pack(quantized(checkpoint())), text(), SPEC)
    assert result.conditions.overlap == "unchecked: no document list"
    nothing = dataclasses.replace(checkpoint(), documents=np.zeros(0, np.uint64))
    assert score(nothing, text(), SPEC).conditions.overlap == "unchecked: no document list"


def test_a_learnt_tokenizer_is_scored_by_raw_bytes() -> None:
    tokenizer = train_bpe(3 * DOCUMENTS, 300)
    result = score(checkpoint(tokenizer=tokenizer), text(), SPEC)
    assert result.bytes == sum(map(len, DOCUMENTS))
    assert result.tokens < result.bytes
    assert result.origin["tokenizer"] == tokenizer.fingerprint


def test_a_context_beyond_the_model_is_allowed_and_stated() -> None:
    result = score(checkpoint(), text(), ScoreSpec(context=40, stride=6))
    assert result.conditions.reading.context == 40
    assert result.conditions.reading.model_context == 16
    assert result.conditions.reading.beyond_model_context is True


def test_a_stride_beyond_the_context_of_the_model_is_refused() -> None:
    with pytest.raises(ScoreError, match="stride of 64 leaves gaps between windows of 16"):
        score(checkpoint(), text(), ScoreSpec(stride=64))


@pytest.mark.parametrize("documents", [[b""], [b"", b""]])
def test_no_bytes_are_bad_input(documents: list[bytes]) -> None:
    with pytest.raises(ScoreError, match="no bytes to score") as caught:
        score(checkpoint(), text(*documents), SPEC)
    assert caught.value.exit_code == 2


def test_one_byte_is_enough() -> None:
    result = score(checkpoint(), text(b"x"), SPEC)
    assert (result.tokens, result.bytes) == (1, 1)


def test_weights_that_are_not_finite_are_refused() -> None:
    source = checkpoint()
    broken = source.weights["layers.0.feed.body.up"].copy()
    broken[3, 3] = np.nan
    weights = {**source.weights, "layers.0.feed.body.up": broken}
    with pytest.raises(ScoreError, match="no finite number of nats"):
        score(dataclasses.replace(source, weights=weights), text(), SPEC)


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    source = dataclasses.replace(checkpoint(vocab=200), tokenizer=BYTES)
    with pytest.raises(ScoreError, match="tokenizer has 257 tokens, the model 200"):
        score(source, text(), SPEC)


@pytest.mark.parametrize("spec", [SPEC, ADAPTIVE], ids=["frozen", "sgd"])
def test_a_limit_ends_the_score(spec: ScoreSpec) -> None:
    with pytest.raises(ScoreError, match=r"more than the limit of 1e-09 seconds; raise --limit"):
        score(checkpoint(), text(), spec, limit_seconds=1e-9)
    assert score(checkpoint(), text(), spec, limit_seconds=600).tokens


def test_progress_counts_targets_up_to_the_result() -> None:
    seen: list[ScoreProgress] = []
    result = score(checkpoint(), text(), SPEC, report=seen.append)
    assert [p.done for p in seen] == sorted({p.done for p in seen})
    assert {p.total for p in seen} == {result.tokens}
    assert seen[-1].done == result.tokens
    assert seen[-1].bpb == pytest.approx(result.bpb, rel=1e-12)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_threads_do_not_change_the_score() -> None:
    two = score(checkpoint(), text(), SPEC)
    torch.set_num_threads(1)
    one = score(checkpoint(), text(), SPEC)
    assert abs(one.bpb - two.bpb) < 1e-6
    assert two.conditions.environment.threads == 2


WAYS = {
    "strided": SPEC,
    "strided, documents": dataclasses.replace(SPEC, boundaries="document"),
    "one batch": ScoreSpec(stride=16, batch=999),
    "rolling": ScoreSpec(mode="rolling", batch=2),
    "rolling, documents": ScoreSpec(mode="rolling", boundaries="document", batch=2),
    "sgd": ADAPTIVE,
    "sgd, rolling": ScoreSpec(mode="rolling", policy=Sgd(chunk=32, rate=0.1)),
    "lora": ScoreSpec(stride=6, policy=ADAPTERS),
    "lora, rolling": ScoreSpec(mode="rolling", boundaries="document", policy=ADAPTERS),
    "phased": ScoreSpec(boundaries="document", stride=6, policy=Phased(adapters=ADAPTERS)),
    "ngram": dataclasses.replace(SPEC, ngram=Ngram()),
}


@pytest.mark.slow
def test_two_processes_return_the_score_of_one(tmp_path: Path) -> None:
    """Where only the first process scores, a collective sum waits for the others for ever."""
    packed = pack(quantized(checkpoint()))
    (tmp_path / "model.segpt").write_bytes(packed.data)
    alone = [score(packed, text(), spec) for spec in WAYS.values()]
    runs: list[Any] = [(encode(spec), [None, None]) for spec in WAYS.values()]
    runs += [(encode(spec), [None, 1e-9]) for spec in (SPEC, ADAPTIVE)]
    task = {
        "artifact": str(tmp_path / "model.segpt"),
        "documents": [document.hex() for document in DOCUMENTS],
        "runs": runs,
    }
    ranks = [lines[0] for lines in in_two(SCRIPT, json.dumps(task))]
    scores = ranks[0][: len(WAYS)]
    assert ranks[1][: len(WAYS)] == scores
    for way, one, (nats, tokens, processes) in zip(WAYS, alone, scores, strict=True):
        assert (tokens, processes) == (one.tokens, 2)
        difference = abs(float.fromhex(nats) - one.nats) / math.log(2) / one.bytes
        assert difference < 1e-6, way
        # Only stretches of a stream that rolls depend on how many share it.
        assert difference == 0 or way == "rolling"
    assert ranks[0][len(WAYS) :] == 2 * [
        "another process could not score its part; see its message"
    ]
    assert all("more than the limit" in message for message in ranks[1][len(WAYS) :])


def taken(spec: ScoreSpec, rounds: int) -> Arrays:
    """What a score saves when it is stopped after so many rounds."""
    left, saved = iter(range(rounds - 1)), list[Arrays]()
    with pytest.raises(InterruptError, match="go on with --resume"):
        score(
            checkpoint(),
            text(),
            spec,
            breaks=Breaks(lambda: next(left, None) is None, saved.append),
        )
    (state,) = saved
    return state


@pytest.mark.slow
@pytest.mark.parametrize("way", ["sgd", "sgd, rolling", "lora", "lora, rolling", "phased"])
def test_a_score_that_was_stopped_goes_on_exactly(way: str, tmp_path: Path) -> None:
    spec = WAYS[way]
    whole = score(checkpoint(), text(), spec)
    for rounds in (1, 2):
        save_scoring(tmp_path / "scoring", taken(spec, rounds), {"a": "test"})
        state = read_scoring(tmp_path / "scoring", {"a": "test"})
        result = score(checkpoint(), text(), spec, breaks=Breaks(resume=state))
        assert result.nats == whole.nats
        assert result.by_document == whole.by_document
        assert result.conditions.order == whole.conditions.order


def test_a_score_that_saves_nothing_can_be_stopped() -> None:
    with pytest.raises(
        InterruptError, match=r"stopped before the whole text was scored$"
    ) as caught:
        score(checkpoint(), text(), ADAPTIVE, breaks=Breaks(lambda: True))
    assert caught.value.exit_code == 130


def test_another_text_or_model_cannot_be_resumed(tmp_path: Path) -> None:
    save_scoring(tmp_path / "scoring", taken(ADAPTIVE, 1), {"model": "one"})
    with pytest.raises(CheckpointError, match="begun on another model or text"):
        read_scoring(tmp_path / "scoring", {"model": "two"})
    with pytest.raises(CheckpointError, match="nothing to resume"):
        read_scoring(tmp_path / "nowhere", {"model": "two"})
    damaged = bytearray((tmp_path / "scoring" / "state.safetensors").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "scoring" / "state.safetensors").write_bytes(damaged)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_scoring(tmp_path / "scoring", {"model": "one"})


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_documents_and_targets_add_up_to_the_score(way: str) -> None:
    result = score(checkpoint(), text(), WAYS[way])
    assert result.by_target is not None
    assert math.fsum(result.by_target) == result.nats
    assert result.by_document["bytes"] == [len(document) for document in DOCUMENTS]
    # The start of the next document is the last target of the one before it.
    assert math.fsum(result.by_document["nats"]) == pytest.approx(result.nats, rel=1e-12)
    assert 0 < result.conditions.boundary_nats < result.nats


def test_conditions_name_the_way_of_reading() -> None:
    rolling = score(checkpoint(), text(), WAYS["rolling, documents"]).conditions
    assert (rolling.reading.mode, rolling.reading.boundaries) == ("rolling", "document")
    assert rolling.reading.stride is None
    mixed = score(checkpoint(), text(), WAYS["ngram"])
    assert mixed.conditions.order.endswith("n-grams of the targets before")
    assert "mixed with n-gram shares that sum to 1" in mixed.conditions.normalised
    assert mixed.policy == {"kind": "frozen", "ngram": encode(Ngram())}


def test_loops_can_be_chosen_where_the_model_has_them() -> None:
    looped = checkpoint(depth=3, route="0 (1)*2 2")
    found = {n: score(looped, text(), dataclasses.replace(SPEC, loops=n)).nats for n in (1, 2)}
    assert found[1] != found[2] == score(looped, text(), SPEC).nats
    with pytest.raises(SpecError, match="loop"):
        score(checkpoint(), text(), dataclasses.replace(SPEC, loops=2))
