"""Compressed files: what was coded, by which artifact and how, then the code stream.

    magic, version, 3 digests, 4 numbers | JSON, deflated | code stream | checksum

The numbers are little-endian. The JSON holds the spec of the score and the environment that the
floats depend on; it is deflated with a dictionary, which is part of the format, so that the
whole head is some 160 bytes. The checksum is the first 8 bytes of the SHA-256 of all before it.
"""

import dataclasses
import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from segpt.config.base import ADDED, INLINE, PlainSpec, canonical, decode, encode, spec
from segpt.config.environment import Versions
from segpt.config.score import ScoreSpec
from segpt.errors import MessageError, SpecError

MAGIC: Final = b"\x93SEGZ"
VERSION: Final = 1
MOST_BYTES: Final = 1 << 28  # of the original: days of decoding
CHECKSUM: Final = 8

_HEAD = struct.Struct("<5sB32s8s32sIIIH")
_MOST_JSON = 1 << 14
_MOST_NUMBER = 1 << 24  # in a spec, so that a forged one cannot ask for all memory
_DICTIONARY = (  # part of the format, whatever else may become common
    b'{"kind":"in_place","rate":null},"mode":"rolling","context":1024,"cpu":"AVX512","loops":1,'
    b'"boundaries":"document","anneal":"cosine","chunk":32768,"epochs":3,"momentum":0.9,'
    b'"rate":0.005,{"adapters":{"alpha":16.0,"beta1":0.0,"beta2":0.99,"chunk":64,"decay":0.0,'
    b'"documents":16,"kind":"low_rank","rank":8,"rate":0.003,"roles":["matrix","head"],'
    b'"steps":1},"chunk":1024,"clip":1.0,"fractions":[0.25,0.5,0.75],"kind":"phased",'
    b'"momentum":0.0,"rate":0.1},"ngram":{"block":32,"contexts":524288,"document_orders":'
    b'[0,1,2,3],"keep":0.9,"kind":"ngram","orders":[0,1,2,3,5,8],"rate":0.15},'
    b'"policy":{"anneal":"none","batch":8,"chunk":128,"clip":1.0,"epochs":1,"kind":"sgd",'
    b'"momentum":0.0,"rate":0.3,"roles":["table","matrix","head","vector"]},"stride":16}}'
    b'{"environment":{"cpu":"AVX2","numpy":"2.4.6","segpt":"0.1.0","threads":1,'
    b'"torch":"2.13.0+cpu"},"spec":{"batch":16,"boundaries":"stream","context":null,'
    b'"kind":"score_spec","loops":null,"mode":"strided","ngram":null,'
    b'"policy":{"kind":"frozen"},"stride":64}}'
)


@spec
class CoderEnvironment(PlainSpec):
    """What the floats of predictions depend on, beside the artifact and the spec.

    ``cpu`` is the best set of instructions that torch uses.
    """

    cpu: str = dataclasses.field(default="", metadata=ADDED)
    threads: int | None = dataclasses.field(default=None, metadata=ADDED)
    versions: Versions = dataclasses.field(default=Versions(), metadata=INLINE)


@dataclass(frozen=True)
class Message:
    """One compressed text.

    Attributes:
        artifact: SHA-256 of the artifact that decodes it, in hex.
        tokenizer: fingerprint of the tokenizer in the artifact.
        digest: SHA-256 of the bytes of all documents, in hex.
        size: the number of these bytes.
        documents: each of which follows a start token.
        tokens: coded ones; the first start is not coded.
        spec: how the tokens were predicted.
        environment: what the floats of the predictions depend on besides.
        payload: the code stream.
    """

    artifact: str
    tokenizer: str
    digest: str
    size: int
    documents: int
    tokens: int
    spec: ScoreSpec
    environment: CoderEnvironment
    payload: bytes


def write(message: Message) -> bytes:
    """The file that holds ``message``.

    Raises:
        MessageError: if no reader would accept it.
    """
    _check(message)
    about = _deflated({"environment": encode(message.environment), "spec": encode(message.spec)})
    head = _HEAD.pack(
        MAGIC,
        VERSION,
        *(bytes.fromhex(d) for d in (message.artifact, message.tokenizer, message.digest)),
        *(message.size, message.documents, message.tokens, len(about)),
    )
    body = head + about + message.payload
    return body + _checksum(body)


def read(data: bytes) -> Message:
    """The inverse of :func:`write`.

    Raises:
        MessageError: if ``data`` is not a whole, undamaged file of a known version.
    """
    if not data.startswith(MAGIC):
        guess = f"it starts with {data[:5]!r}, not with {MAGIC!r}" if data else "it is empty"
        raise MessageError(f"not a compressed file: {guess}; make one with: segpt compress")
    if len(data) < _HEAD.size + CHECKSUM:
        raise MessageError(f"truncated: {len(data)} bytes do not hold the head of a file")
    if (version := data[len(MAGIC)]) != VERSION:
        raise MessageError(
            f"version {version} is unknown; this version of segpt reads version {VERSION}: "
            "upgrade it with: pip install --upgrade segpt"
        )
    body = data[:-CHECKSUM]
    if _checksum(body) != data[-CHECKSUM:]:
        raise MessageError("damaged: the contents do not match their checksum; copy it again")
    _, _, artifact, tokenizer, digest, size, documents, tokens, length = _HEAD.unpack_from(data)
    payload = body[_HEAD.size + length :]
    about = _inflated(body[_HEAD.size : _HEAD.size + length])
    try:
        message = Message(
            artifact=artifact.hex(),
            tokenizer=tokenizer.hex(),
            digest=digest.hex(),
            size=size,
            documents=documents,
            tokens=tokens,
            spec=decode(ScoreSpec, about["spec"], "$.spec"),
            environment=decode(CoderEnvironment, about["environment"], "$.environment"),
            payload=payload,
        )
    except (KeyError, TypeError, ValueError, SpecError) as error:
        raise MessageError(f"the head of the file is incomplete: {error}") from None
    _check(message)
    return message


def _check(message: Message) -> None:
    if message.size > MOST_BYTES:
        raise MessageError(
            f"{message.size:,} bytes of text; a compressed file holds at most {MOST_BYTES:,}"
        )
    # Each token spells a byte at least, or starts a document.
    if not 1 <= message.documents <= message.tokens + 1 <= message.size + message.documents:
        raise MessageError(
            f"{message.tokens:,} tokens for {message.size:,} bytes in {message.documents:,} "
            "documents; these numbers do not belong together"
        )
    if (number := _greatest(encode(message.spec))) > _MOST_NUMBER:
        raise MessageError(f"{number:,} in the spec; the format ends at {_MOST_NUMBER:,}")


def _greatest(value: Any) -> float:
    """The greatest number anywhere in a JSON value."""
    match value:
        case dict():
            return max(map(_greatest, value.values()), default=0)
        case list():
            return max(map(_greatest, value), default=0)
        case int() | float():
            return abs(value)
        case _:
            return 0


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:CHECKSUM]


def _deflated(about: Mapping[str, Any]) -> bytes:
    compressor = zlib.compressobj(9, wbits=-15, zdict=_DICTIONARY)
    data = canonical(about)
    if len(data) > _MOST_JSON:
        raise MessageError(f"a spec of {len(data):,} bytes; the format ends at {_MOST_JSON:,}")
    return compressor.compress(data) + compressor.flush()


def _inflated(data: bytes) -> dict[str, Any]:
    decompressor = zlib.decompressobj(wbits=-15, zdict=_DICTIONARY)
    try:
        text = decompressor.decompress(data, _MOST_JSON + 1)
        about = json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise MessageError(f"the head of the file is damaged: {error}") from None
    if not decompressor.eof or decompressor.unused_data or not isinstance(about, dict):
        raise MessageError("the head of the file is damaged")
    return about
