"""The ultimate audit of a score: compress the text, decompress it elsewhere, count the bytes."""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import segpt
from segpt.config.score import ScoreSpec
from segpt.errors import CheckError, ScoreError
from segpt.stages.open_model import OpenedModel, open_model
from segpt.stages.read_model import Value
from segpt.stages.score import score
from segpt.values import Artifact, Text

from .compress import Compressed, compress

TOLERANCE = 0.005  # by which the code stream may differ from the score
SLACK = 64  # bits beyond that, for short texts

# Gets what is being done, how many tokens are through, and of how many.
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Proof:
    """A text that was compressed, and decompressed by a fresh process to the same bytes.

    Attributes:
        bytes: of the documents.
        tokens: coded ones.
        message: bytes of the compressed file, its head included.
        payload: bytes of its code stream.
        bits: what the code stream takes ideally, under the frequencies of the coder.
        nats: what the score says.
        compression: seconds that compressing took.
        decompression: seconds that decompressing took, with the start of the process.
    """

    bytes: int
    tokens: int
    message: int
    payload: int
    bits: float
    nats: float
    compression: float
    decompression: float

    @property
    def bpb(self) -> float:
        """Bits of the whole file per byte of text."""
        return 8 * self.message / self.bytes

    @property
    def overhead(self) -> float:
        """The real code stream over the ideal one, less 1."""
        return 8 * self.payload / self.bits - 1

    @property
    def gap(self) -> float:
        """The real code stream over what the score says, less 1."""
        return 8 * self.payload * math.log(2) / self.nats - 1

    def plain(self) -> dict[str, Any]:
        """The proof as JSON values."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"bpb": self.bpb, "overhead": self.overhead, "gap": self.gap} | fields


def prove(
    value: Value | OpenedModel,
    text: Text,
    spec: ScoreSpec,
    *,
    nats: float | None = None,
    report: Report = lambda what, done, total: None,
) -> Proof:
    """Show that a score is real: a decoder that sees no text gives the text back from its bytes.

    Args:
        value: the artifact, or the model of one.
        text: the documents that were scored.
        spec: windows and policy of the score.
        nats: the sum that the score found; it is scored here if this is None.
        report: told about progress on both sides.

    Raises:
        CheckError: if the text does not come back, or takes more or less than the score says.
        ScoreError: if the value is no artifact, or cannot be scored.
        DataError: if the tokenizer loses text.
    """
    opened, documents = open_model(value), list(text)
    artifact = packed(opened.value)
    if nats is None:
        nats = score(opened, text, spec).nats
    begun = time.perf_counter()
    made = compress(opened, documents, spec, report=lambda *at: report("compress", *at))
    between = time.perf_counter()
    if _elsewhere(artifact, made, lambda *at: report("decompress", *at)) != documents:
        raise CheckError("the compressed text decodes to another one; the score is not proved")
    proof = Proof(
        bytes=sum(map(len, documents)),
        tokens=made.tokens,
        message=len(made.data),
        payload=made.payload,
        bits=made.bits,
        nats=nats,
        compression=between - begun,
        decompression=time.perf_counter() - between,
    )
    claimed = nats / math.log(2)
    if abs(8 * made.payload - claimed) > TOLERANCE * claimed + SLACK:
        raise CheckError(
            f"the score says {claimed / 8:,.1f} bytes, but the code stream takes "
            f"{made.payload:,}; the predictions of the score and of the decoder differ"
        )
    return proof


def packed(value: Value) -> Artifact:
    """The value, if it is an artifact.

    Raises:
        ScoreError: if it is none.
    """
    if isinstance(value, Artifact):
        return value
    raise ScoreError(
        "only an artifact can be proved, as only that is all a decoder has; make one with: "
        "segpt pack"
    )


def _elsewhere(
    value: Artifact, made: Compressed, report: Callable[[int, int], None]
) -> list[bytes]:
    """The documents as a process finds them that is given two files, and nothing else."""
    with tempfile.TemporaryDirectory(prefix="segpt-prove-") as name:
        place = Path(name)
        artifact, message, text = (place / n for n in ("model.segpt", "text.segz", "text"))
        artifact.write_bytes(value.data)
        message.write_bytes(made.data)
        with (place / "errors").open("w+", encoding="utf-8") as errors:
            code, lengths = _run([str(artifact), str(message), str(text)], errors.fileno(), report)
            if code or lengths is None:
                errors.seek(0)
                said = errors.read().strip().splitlines() or [f"exit code {code}"]
                raise CheckError(f"the compressed text does not decode: {said[-1]}")
        return _cut(text.read_bytes(), lengths)


def _run(
    arguments: Sequence[str], errors: int, report: Callable[[int, int], None]
) -> tuple[int, list[int] | None]:
    """The exit code of the other process, and the lengths of the documents that it says."""
    path = [str(Path(segpt.__file__).parents[1])]
    extra = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    path += [str(Path(place).absolute()) for place in extra]
    lengths = None
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "segpt.coding.prove_worker", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        cwd=Path(arguments[0]).parent,  # not where the text lies
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                said = json.loads(line)
                if "documents" in said:
                    lengths = said["documents"]
                else:
                    report(said["done"], said["total"])
        except BaseException:
            process.kill()
            raise
    return process.returncode, lengths


def _cut(data: bytes, lengths: Sequence[int]) -> list[bytes]:
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return [data[end - length : end] for end, length in zip(ends, lengths, strict=True)]
