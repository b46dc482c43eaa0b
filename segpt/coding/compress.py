"""Text to a compressed file and back: a score that anybody can check with a byte count.

Both sides run the same loop over the same predictor, token by token; one of them is told which
token came, the other finds out. Nothing but the artifact and the file goes into the second.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from segpt.config.base import encode
from segpt.config.precision import of_measuring
from segpt.config.score import ScoreSpec
from segpt.data.tokenizer import Codec
from segpt.errors import DataError, MessageError, ScoreError
from segpt.kernels.precision import computing
from segpt.model.model import Model
from segpt.stages.environment import versions
from segpt.stages.open_model import OpenedModel, open_model
from segpt.stages.threads import one_thread
from segpt.values import Artifact

from . import message
from .arithmetic import ArithmeticDecoder, ArithmeticEncoder, Cumulative, cumulative, price
from .message import MOST_BYTES, CoderEnvironment, Message
from .token_predictor import TokenPredictor

REPORT_EVERY = 64  # tokens

# Gets how many tokens are coded, and of how many.
Report = Callable[[int, int], None]


class Compressed(NamedTuple):
    """A compressed file.

    ``payload`` is how many of its bytes are the code stream, and ``bits`` what that would take
    ideally: the sum of the prices of the tokens under the frequencies of the coder.
    """

    data: bytes
    payload: int
    bits: float
    tokens: int


def compress(
    value: Artifact | OpenedModel,
    documents: Sequence[bytes],
    spec: ScoreSpec,
    *,
    report: Report = lambda done, total: None,
) -> Compressed:
    """Code documents as one stream, in which each follows a start token, as in a score.

    Everything runs on the CPU in one thread, so that the floats are the same on both sides.

    Args:
        value: the artifact, which decompression needs again, or the model of one.
        documents: any bytes; a file is one document.
        spec: how to predict, with which policy.
        report: told now and then how many tokens are coded.

    Raises:
        DataError: if the tokenizer does not give back the documents, or there is too much.
        ScoreError: if the model gives no distribution, or cannot be scored in this way.
        MessageError: if the spec is beyond the format.
    """
    if not documents:
        raise DataError("no document to compress; give one, even if it is empty")
    if (size := sum(map(len, documents))) > MOST_BYTES:
        raise DataError(f"{size:,} bytes of text; compress at most {MOST_BYTES:,} at once")
    opened = open_model(value)
    codec = opened.codec
    tokens = _tokens(codec, documents)
    draft = Message(
        artifact=opened.identity,
        tokenizer=opened.source.tokenizer.fingerprint,
        digest=_digest(documents),
        size=size,
        documents=len(documents),
        tokens=len(tokens),
        spec=spec,
        environment=_environment(),
        payload=b"",
    )
    message.write(draft)  # what no file can hold is refused now, not after hours
    encoder, bits = ArithmeticEncoder(), 0.0
    coming = iter(tokens)

    def coded_token(borders: Cumulative) -> int:
        nonlocal bits
        token = next(coming)
        encoder.write(borders, token)
        bits += price(borders, token)
        return token

    _walk(opened.model, spec, codec.start, len(tokens), coded_token, report)
    payload = encoder.finish()
    data = message.write(dataclasses.replace(draft, payload=payload))
    return Compressed(data, len(payload), bits, len(tokens))


def decompress(
    value: Artifact, data: bytes, *, report: Report = lambda done, total: None
) -> list[bytes]:
    """The documents in a compressed file, exactly; they have the digest that the file names.

    Args:
        value: the artifact that the file was made by.
        data: the file.
        report: told now and then how many tokens are decoded.

    Raises:
        MessageError: if the file is damaged, was made by another artifact, or the floats of the
            predictions are others here, so that the bytes do not come back.
    """
    compressed = message.read(data)
    if compressed.artifact != value.digest:
        raise MessageError(
            f"compressed by the artifact {compressed.artifact}; this one is {value.digest}: give "
            "the right one with --artifact"
        )
    try:
        documents = _decoded(value, compressed, report)
        if _digest(documents) != compressed.digest:
            raise MessageError("the text does not have the SHA-256 of the original")
    except (MessageError, ScoreError) as error:
        raise MessageError(f"{error}; {_suspicion(compressed)}") from error
    return documents


def _decoded(value: Artifact, compressed: Message, report: Report) -> list[bytes]:
    opened = open_model(value)
    codec, fingerprint = opened.codec, opened.source.tokenizer.fingerprint
    if compressed.tokenizer != fingerprint:
        raise MessageError(
            f"coded with the tokenizer {compressed.tokenizer}, but the artifact has {fingerprint}"
        )
    decoder, left = ArithmeticDecoder(compressed.payload), compressed.size
    documents: list[list[int]] = [[]]

    def next_token(borders: Cumulative) -> int:
        nonlocal left
        token = decoder.read(borders)
        if token == codec.start:
            documents.append([])
            return token
        left -= int(codec.sizes[token]) if token < codec.vocab else compressed.size + 1
        if left < 0:
            raise MessageError(
                f"the tokens spell more than the {compressed.size:,} bytes of the text"
            )
        documents[-1].append(token)
        return token

    _walk(opened.model, compressed.spec, codec.start, compressed.tokens, next_token, report)
    decoder.finish()
    return [codec.decode(tokens) for tokens in documents]


def _walk(
    model: Model,
    spec: ScoreSpec,
    start: int,
    targets: int,
    code: Callable[[Cumulative], int],
    report: Report,
) -> None:
    """The loop of both sides: ``code`` is shown each distribution and says which token came."""
    if not targets:
        return
    with one_thread(), computing(of_measuring(spec.precision), "cpu"):
        steps = TokenPredictor(model, spec, start, targets)
        for done in range(1, targets + 1):
            steps.push(code(cumulative(steps.distribution())))
            if done % REPORT_EVERY == 0 or done == targets:
                report(done, targets)


def _tokens(codec: Codec, documents: Sequence[bytes]) -> list[int]:
    """The stream after its first token."""
    if not codec.lossless:
        raise DataError(
            "the tokenizer of this artifact loses text, so nothing can be compressed with it; "
            "use an artifact with a lossless one (segpt tokenizer train)"
        )
    tokens: list[int] = []
    for number, document in enumerate(documents, 1):
        ids = codec.encode(document)
        if codec.decode(ids) != document or codec.start in ids:
            raise DataError(f"document {number}: the tokenizer does not give back its bytes")
        tokens += ids.tolist() if number == 1 else [codec.start, *ids.tolist()]
    return tokens


def _digest(documents: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document)
    return digest.hexdigest()


def _environment() -> CoderEnvironment:
    """What the floats depend on, beside the artifact and the spec."""
    return CoderEnvironment(
        cpu=torch.backends.cpu.get_cpu_capability(), threads=1, versions=versions()
    )


def _suspicion(compressed: Message) -> str:
    """Why a file whose checksum holds does not decode."""
    ours, theirs = encode(_environment()), encode(compressed.environment)
    names = sorted(name for name in ours if theirs.get(name) != ours[name])
    if not names:
        return (
            "the artifact is the right one, so this processor rounds in another way than the "
            "one that compressed it: decompress it there"
        )
    made, own = (
        ", ".join(f"{name} {values.get(name)}" for name in names) for values in (theirs, ours)
    )
    return f"it was compressed with {made} and this is {own}: decompress it where they agree"
