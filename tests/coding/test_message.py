"""Compressed files: whatever the bytes, a message or a MessageError."""

import dataclasses
import hashlib
import json
import random
import time
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpt.coding import message
from segpt.coding.message import CHECKSUM, MAGIC, Message, read, write
from segpt.config.base import canonical, decode, encode
from segpt.config.ngram import Ngram
from segpt.config.score import InPlace, LowRank, Phased, ScoreSpec, Sgd
from segpt.errors import MessageError

HEAD = message._HEAD
ENVIRONMENT = {"cpu": "AVX2", "numpy": "2.3.1", "segpt": "1.0.0", "threads": 1, "torch": "2.13.0"}
SPECS = [
    ScoreSpec(),
    ScoreSpec(context=96, stride=8, policy=Sgd(chunk=64, anneal="cosine"), ngram=Ngram()),
    ScoreSpec(mode="rolling", boundaries="document", loops=3, policy=LowRank(rank=4)),
    ScoreSpec(policy=Phased(fractions=(0.1, 0.4), adapters=LowRank(chunk=17))),
    ScoreSpec(policy=InPlace(rate=0.02)),
]


def make(**changes: Any) -> Message:
    whole = Message(
        artifact="0f" * 32,
        tokenizer="12" * 8,
        digest="a5" * 32,
        size=1000,
        documents=1,
        tokens=400,
        spec=SPECS[1],
        environment=decode(message.CoderEnvironment, ENVIRONMENT),
        payload=bytes(range(200)),
    )
    return dataclasses.replace(whole, **changes)


def signed(body: bytes) -> bytes:
    """A file whose checksum holds, whatever else does not."""
    return body + hashlib.sha256(body).digest()[:CHECKSUM]


def about(value: Any) -> bytes:
    """A file that says ``value`` where the spec and the environment belong."""
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    compressor = zlib.compressobj(wbits=-15, zdict=message._DICTIONARY)
    deflated = compressor.compress(text) + compressor.flush()
    fields = list(HEAD.unpack_from(write(make())))
    return signed(HEAD.pack(*fields[:-1], len(deflated)) + deflated + b"payload")


@pytest.mark.parametrize("spec", SPECS, ids=["plain", "sgd", "lora", "phased", "inplace"])
@pytest.mark.parametrize("payload", [b"", b"\0" * 9, bytes(range(256))])
def test_messages_come_back(spec: ScoreSpec, payload: bytes) -> None:
    whole = make(spec=spec, payload=payload)
    data = write(whole)
    assert read(data) == whole
    assert write(read(data)) == data
    assert len(data) - len(payload) < 200


@pytest.mark.parametrize(
    ("size", "documents", "tokens"),
    [(0, 1, 0), (0, 5, 4), (1, 1, 1), (9, 3, 2), (9, 3, 11), (message.MOST_BYTES, 1, 1)],
)
def test_counts_that_a_stream_can_have(size: int, documents: int, tokens: int) -> None:
    whole = make(size=size, documents=documents, tokens=tokens)
    assert read(write(whole)) == whole


@pytest.mark.parametrize(
    ("size", "documents", "tokens"),
    [(0, 0, 0), (0, 1, 1), (9, 3, 1), (9, 3, 12), (message.MOST_BYTES + 1, 1, 1)],
)
def test_counts_that_no_stream_has_are_refused(size: int, documents: int, tokens: int) -> None:
    with pytest.raises(MessageError, match=r"belong together|at most"):
        write(make(size=size, documents=documents, tokens=tokens))
    fields = list(HEAD.unpack_from(data := write(make())))
    fields[5:8] = size, documents, tokens
    with pytest.raises(MessageError, match=r"belong together|at most"):
        read(signed(HEAD.pack(*fields) + data[HEAD.size : -CHECKSUM]))


def test_every_flipped_bit_and_every_cut_is_noticed() -> None:
    data = write(make())
    for place in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(MessageError):
            read(bytes(damaged))
    for end in range(len(data)):
        with pytest.raises(MessageError):
            read(data[:end])
    with pytest.raises(MessageError, match="checksum"):
        read(data + b"\0")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 3))
def test_noise_is_refused(noise: bytes, kind: int) -> None:
    data = write(make())
    whole = [
        noise,
        MAGIC + noise,
        signed(data[: len(MAGIC) + 1] + noise),
        signed(data[: HEAD.size] + noise),
    ][kind]
    with pytest.raises(MessageError):
        read(whole)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04 and so on", "segpt compress"),
        (MAGIC, "truncated"),
        (MAGIC + b"\x07" + bytes(400), "version 7 is unknown"),
    ],
)
def test_other_files_are_named(data: bytes, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        read(data)


SPEC = encode(SPECS[1])


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "spec",
        {},
        {"spec": SPEC},
        {"environment": ENVIRONMENT},
        {"spec": SPEC, "environment": 3},
        {"spec": SPEC, "environment": [1, 2]},
        {"spec": None, "environment": {}},
        {"spec": [SPEC], "environment": {}},
        {"spec": SPEC | {"kind": "model_spec"}, "environment": {}},
        {"spec": SPEC | {"unheard": 1}, "environment": {}},
        {"spec": SPEC | {"stride": -1}, "environment": {}},
        {"spec": SPEC | {"stride": 2**70}, "environment": {}},
        {"spec": SPEC | {"batch": 2**40}, "environment": {}},
        {"spec": SPEC | {"policy": {"kind": "sgd", "rate": 1e300}}, "environment": {}},
        {"spec": SPEC | {"context": 1e9}, "environment": {}},
        {"spec": SPEC | {"policy": {"kind": "oracle"}}, "environment": {}},
        b"",
        b"{",
        b"\xff\xfe",
        b'{"spec": NaN}',
        b"[" * 10_000,
    ],
)
def test_a_head_that_says_something_else_is_refused(value: Any) -> None:
    with pytest.raises(MessageError):
        read(about(value))


def test_deflated_heads_are_bounded() -> None:
    bomb = about(b" " * 10_000_000 + canonical({"spec": SPEC, "environment": {}}))
    tracemalloc.start()
    begun = time.process_time()
    try:
        with pytest.raises(MessageError, match="damaged"):
            read(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert time.process_time() - begun < 1


@pytest.mark.slow
def test_signed_mutations_are_a_message_or_an_error() -> None:
    """What a forger can reach, who knows how to compute the checksum."""
    draw = random.Random(0)
    body = write(make())[:-CHECKSUM]
    for _ in range(3000):
        changed = bytearray(body)
        for _ in range(draw.choice([1, 1, 2, 8])):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        try:
            found = read(signed(bytes(changed)))
        except MessageError:
            continue
        assert 0 <= found.tokens <= found.size + found.documents
