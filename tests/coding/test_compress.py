"""What goes in comes out, or an error does; and what it takes is what the score says."""

import dataclasses
import functools
import hashlib
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segpt.artifact.container import pack
from segpt.coding import compress as stage
from segpt.coding import message
from segpt.coding.arithmetic import cumulative
from segpt.coding.compress import compress, decompress
from segpt.coding.prove import prove
from segpt.config.score import Policy, ScoreSpec, Sgd
from segpt.data import modelproto
from segpt.data.corpus import builtin
from segpt.data.tokenizer import BYTES, train_bpe
from segpt.errors import CheckError, DataError, MessageError, ScoreError
from segpt.values import Artifact, Float16Weight, Quantized, Text, Tokenizer
from tests.stages.random_models import checkpoint

DOCUMENTS = [
    b"The first document says little.",
    "The second one, naïvely, says it again: 🙂\r\n\r\n ".encode(),
    b"",
    b"The third says " + 9 * b"over and " + b"out.",
]
SHORT = [b"The first document says little.", b"", "Naïve: 🙂\r\n".encode()]
SPEC = ScoreSpec(stride=8)
ADAPTIVE = ScoreSpec(stride=8, policy=Sgd(chunk=32, rate=0.1))
both = pytest.mark.parametrize("spec", [SPEC, ADAPTIVE], ids=["frozen", "sgd"])


@functools.cache
def artifact(tokenizer: Tokenizer = BYTES, seed: int = 0) -> Artifact:
    source = checkpoint(vocab=tokenizer.vocab, seed=seed)
    halves = {
        name: Float16Weight(value.astype(np.float16)) for name, value in source.weights.items()
    }
    return pack(Quantized(source.spec, halves, tokenizer, origin={}))


@functools.cache
def pieces() -> Tokenizer:
    return train_bpe(list(builtin("validation"))[:4], 400)


def text(*documents: bytes) -> Text:
    return Text("a text", lambda: iter(documents or DOCUMENTS))


def changed(data: bytes, **fields: Any) -> bytes:
    """The file of another message, whose checksum holds."""
    return message.write(dataclasses.replace(message.read(data), **fields))


@pytest.mark.slow
@both
@pytest.mark.parametrize("learnt", [False, True], ids=["bytes", "pieces"])
def test_documents_come_back(spec: ScoreSpec, learnt: bool) -> None:
    documents = [*SHORT, b"again " + SHORT[0]]
    value = artifact(pieces() if learnt else BYTES)
    made = compress(value, documents, spec)
    assert decompress(value, made.data) == documents
    # The end of a code is cut where what follows does not matter, by chance a few bits early.
    assert -8 < 8 * made.payload - made.bits <= 16
    assert made.payload < len(made.data) < made.payload + 250
    found = message.read(made.data)
    assert (found.spec, found.artifact, found.documents) == (spec, value.digest, 4)
    assert found.digest == hashlib.sha256(b"".join(documents)).hexdigest()
    assert made.data == compress(value, documents, spec).data


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_come_back(data: bytes, learnt: bool) -> None:
    value = artifact(pieces() if learnt else BYTES)
    assert decompress(value, compress(value, [data], SPEC).data) == [data]


@pytest.mark.slow
@pytest.mark.parametrize("data", [b"", b"\0", b"\xff\xfe\x80", "▁▁ é\ufeff".encode(), bytes(70)])
def test_odd_files_come_back(data: bytes) -> None:
    value = artifact(pieces())
    assert decompress(value, compress(value, [data], ADAPTIVE).data) == [data]


@pytest.mark.slow
def test_learning_makes_a_repetitive_file_smaller() -> None:
    data = 16 * b"again and again "
    plain, learnt = (compress(artifact(), [data], spec) for spec in (SPEC, ADAPTIVE))
    assert learnt.bits < 0.8 * plain.bits
    assert decompress(artifact(), learnt.data) == [data]


def test_flipped_bits_are_errors() -> None:
    data = compress(artifact(), [b"not a long text"], SPEC).data
    for place in range(0, 8 * len(data), 5):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(MessageError):
            decompress(artifact(), bytes(damaged))


@pytest.mark.slow
@both
def test_a_forged_code_stream_is_never_text(spec: ScoreSpec) -> None:
    """Its checksum holds, so that only the decoder and the SHA-256 of the text can notice.

    The last byte names any number in a range, so that another one may mean the same text.
    """
    data = compress(artifact(), SHORT, spec).data
    payload = message.read(data).payload
    for place in range(0, len(payload) - 1, len(payload) // 5):
        forged = bytes(byte ^ (i == place) for i, byte in enumerate(payload))
        with pytest.raises(MessageError, match="processor rounds in another way"):
            decompress(artifact(), changed(data, payload=forged))
    for forged in (b"", payload[:20], payload + bytes(20)):
        with pytest.raises(MessageError):
            decompress(artifact(), changed(data, payload=forged))


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"size": 99, "tokens": 99},
        {"size": 999, "tokens": 101},
        {"digest": "00" * 32},
        {"tokenizer": "00" * 8},
        {"spec": ADAPTIVE},
        {"payload": b"\0" * 99},
        {"payload": b"\xff" * 99},
    ],
    ids="-".join,
)
def test_forged_heads_are_errors(fields: dict[str, Any]) -> None:
    data = compress(artifact(), DOCUMENTS[3:], SPEC).data
    with pytest.raises(MessageError):
        decompress(artifact(), changed(data, **fields))


def test_endless_documents_are_errors() -> None:
    """A stream of starts spells nothing, and there are as many as the file says."""
    data = compress(artifact(), [b"", b"", b""], SPEC).data
    with pytest.raises(MessageError):
        decompress(artifact(), changed(data, size=5, tokens=7, payload=b"\x55" * 9))


@pytest.mark.slow
def test_another_artifact_is_refused_by_name() -> None:
    data = compress(artifact(), SHORT, SPEC).data
    other = artifact(seed=1)
    with pytest.raises(MessageError, match=f"{artifact().digest}; this one is {other.digest}"):
        decompress(other, data)
    with pytest.raises(MessageError):
        decompress(other, changed(data, artifact=other.digest))


@pytest.mark.slow
def test_where_floats_differ_the_message_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    data = compress(artifact(), SHORT, SPEC).data
    here = message.read(data).environment
    versions = dataclasses.replace(here.versions, torch="0.1")
    there = dataclasses.replace(here, cpu="ABACUS", versions=versions)
    elsewhere = changed(data, environment=there)
    assert decompress(artifact(), elsewhere) == SHORT
    wide = cumulative
    monkeypatch.setattr(stage, "cumulative", lambda logits: wide(logits + logits * 1e-4))
    installed = re.escape(torch.__version__)
    with pytest.raises(MessageError, match=rf"ABACUS, torch 0\.1 and this is .*torch {installed}"):
        decompress(artifact(), elsewhere)
    with pytest.raises(MessageError, match="rounds in another way"):
        decompress(artifact(), data)


@pytest.mark.slow
def test_threads_are_put_back_and_change_nothing() -> None:
    before = torch.get_num_threads()
    one = compress(artifact(), SHORT, ADAPTIVE)
    torch.set_num_threads(2)
    try:
        assert compress(artifact(), SHORT, ADAPTIVE) == one
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_progress_goes_to_the_end_on_both_sides() -> None:
    seen: list[tuple[int, int]] = []
    made = compress(artifact(), DOCUMENTS, SPEC, report=lambda *at: seen.append(at))
    steps = [(n, made.tokens) for n in range(64, made.tokens, 64)] + [(made.tokens, made.tokens)]
    assert seen == steps
    seen.clear()
    decompress(artifact(), made.data, report=lambda *at: seen.append(at))
    assert seen == steps


@pytest.mark.slow
def test_a_tokenizer_that_loses_text_is_refused() -> None:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([d.decode(errors="ignore")[:500] for d in builtin("validation")]),
        model_writer=written,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    payload = written.getvalue()
    foreign = Tokenizer("sentencepiece", len(modelproto.read(payload).pieces), payload)
    with pytest.raises(DataError, match="loses text"):
        compress(artifact(foreign), [b"text"], SPEC)


def test_no_document_is_refused() -> None:
    with pytest.raises(DataError, match="no document"):
        compress(artifact(), [], SPEC)


def test_a_spec_that_no_file_holds_is_refused_at_once() -> None:
    with pytest.raises(MessageError, match="in the spec"):
        compress(artifact(), [b"x"], ScoreSpec(batch=1 << 30))


@pytest.mark.slow
@pytest.mark.parametrize("policy", [SPEC.policy, ADAPTIVE.policy], ids=["frozen", "sgd"])
def test_a_proof_takes_the_bytes_that_the_score_says(policy: Policy) -> None:
    spec = ScoreSpec(mode="rolling", policy=policy)
    stages: list[str] = []
    proof = prove(artifact(), text(), spec, report=lambda what, done, total: stages.append(what))
    assert proof.bytes == sum(map(len, DOCUMENTS))
    assert proof.tokens == proof.bytes + 3
    assert abs(proof.overhead) < 0.005
    assert proof.bits == pytest.approx(proof.nats / math.log(2), rel=1e-4)
    assert proof.bpb == 8 * proof.message / proof.bytes
    assert {"compress", "decompress"} == set(stages)
    plain = proof.plain()
    assert plain["payload"] == proof.payload
    assert plain["gap"] == proof.gap


@pytest.mark.slow
def test_a_score_that_is_too_good_is_not_proved() -> None:
    with pytest.raises(CheckError, match="predictions of the score and of the decoder differ"):
        prove(artifact(), text(DOCUMENTS[0]), SPEC, nats=20.0)


@pytest.mark.slow
def test_a_text_that_does_not_come_back_is_not_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that decodes is not the one in which the coder is spoilt."""
    wide = cumulative
    monkeypatch.setattr(stage, "cumulative", lambda logits: wide(logits * 2))
    with pytest.raises(CheckError, match=r"does not decode: .*in another way"):
        prove(artifact(), text(), SPEC, nats=1000.0)


@pytest.mark.slow
def test_the_decoder_does_not_begin_where_the_text_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_bytes(DOCUMENTS[0])
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the user was run')\n")
    monkeypatch.chdir(tmp_path)
    assert prove(artifact(), text(DOCUMENTS[0]), SPEC).bytes == len(DOCUMENTS[0])


def test_only_artifacts_are_proved() -> None:
    with pytest.raises(ScoreError, match="segpt pack"):
        prove(checkpoint(), text(), SPEC, nats=1.0)
