"""A score held against its conditions: on a changed slice of the text, and in a new process."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray

from segpt.atomic import write_file
from segpt.data.text import text_digest
from segpt.errors import ScoreError
from segpt.eval.audit import Audit, Condition, Method, Trial, audit, replay, slice_of
from segpt.eval.ledger import Ledger
from segpt.eval.schedule import schedule
from segpt.eval.tally import tally
from segpt.model.model import Model
from segpt.spec.base import encode, spec
from segpt.spec.score import Frozen, InPlace, LowRank, Phased, ScoreSpec, Sgd
from segpt.values import Artifact, Checkpoint, Quantized

from .files import save_checkpoint, save_quantized, write_json

# On a GPU, sums may be taken in another order each time, and learning carries that on.
TOLERANCE = 1e-3


@spec
class Job:
    """What another process needs to repeat a score, and where to leave the nats it finds.

    ``documents`` is a file with the size of each document as eight bytes, little-endian, and
    then its bytes; ``digest`` is theirs.
    """

    model: str
    documents: str
    digest: str
    score: ScoreSpec
    device: str
    threads: int
    nats: str


def audited(
    value: Artifact | Quantized | Checkpoint,
    model: Model,
    ledger: Ledger,
    documents: Sequence[bytes],
    spec: ScoreSpec,
    nats: NDArray[np.float64],
    *,
    device: str = "cpu",
    seed: int = 0,
) -> Audit:
    """Everything that can be checked of a score by scoring again, for about twice its cost.

    The smaller part of that goes to a slice of the text, of which tokens are changed, the rest to
    scoring the whole text in a new process. A short text costs more, see
    :func:`segpt.eval.audit.slice_of`.

    Args:
        value: what was scored.
        model: its model on ``device``, which stays as it is.
        ledger: the stream of the documents.
        documents: the text, for the new process.
        spec: how it was scored.
        nats: (targets,) what the score found for every target.
        device: where it was computed, and is now.
        seed: what is flipped and probed.

    Raises:
        ScoreError: if the new process cannot score.
    """
    context = spec.reach(model.spec.context)
    tolerance = 0.0 if torch.device(device).type == "cpu" else TOLERANCE
    start, alone = int(ledger.ids[0]), independent(spec)
    ids = slice_of(ledger.ids, start, independent=alone, chunk=chunk_of(spec), seed=seed)
    found = audit(
        method_of(model, spec, context, start),
        ids,
        start,
        seed=seed,
        borders=borders_of(ids, spec, context, start),
        independent=alone,
        tolerance=tolerance,
    )
    return found.also(replayed(value, documents, spec, nats, device=device, tolerance=tolerance))


def replayed(
    value: Artifact | Quantized | Checkpoint,
    documents: Sequence[bytes],
    spec: ScoreSpec,
    nats: NDArray[np.float64],
    *,
    device: str = "cpu",
    tolerance: float = 0.0,
) -> Condition:
    """Whether a new process finds the same nats for every target.

    Model, text and spec go to it through files, which are deleted afterwards.

    Raises:
        ScoreError: if the new process cannot score.
    """
    with tempfile.TemporaryDirectory(prefix="segpt-replay-") as name:
        folder = Path(name)
        job = Job(
            model=str(_save(value, folder / "model")),
            documents=str(folder / "documents"),
            digest=text_digest(documents),
            score=spec,
            device=device,
            threads=torch.get_num_threads(),
            nats=str(folder / "nats"),
        )
        framed = (len(d).to_bytes(8, "little") + d for d in documents)
        write_file(Path(job.documents), b"".join(framed))
        write_json(folder / "job.json", encode(job))
        said = _run(folder / "job.json")
        again = np.frombuffer(Path(job.nats).read_bytes(), "<f8").astype(np.float64)
    if said != nats_digest(again):
        raise ScoreError("what a new process scored was damaged on the way; audit again")
    return replay(nats, again, tolerance, name="fresh_process")


def nats_digest(nats: NDArray[np.float64]) -> str:
    """SHA-256 over the nats of every target, as little-endian float64."""
    return hashlib.sha256(nats.astype("<f8").tobytes()).hexdigest()


def method_of(model: Model, spec: ScoreSpec, context: int, start: int) -> Method:
    """The engine that scores, as a method that can be audited; the model stays as it is."""

    def method(ids: NDArray[np.uint32], probed: NDArray[np.int64]) -> Trial:
        targets = len(ids) - 1
        sizes = np.ones(targets, np.int64)
        ledger = Ledger(ids, sizes, np.flatnonzero(ids == start), targets, "bytes")
        found = tally(model, ledger, spec, context, probes=probed)
        return Trial(found.nats, found.rows, found.counts)

    return method


def borders_of(ids: NDArray[np.uint32], spec: ScoreSpec, context: int, start: int) -> list[int]:
    """The targets of a stream before which its policy learns."""
    starts = np.flatnonzero(ids == start)
    groups = schedule(starts, len(ids) - 1, context, spec)
    lessons = [lesson for group in groups for one in group for lesson in one.lessons]
    return sorted({lesson.stop for lesson in lessons})


def chunk_of(spec: ScoreSpec) -> int:
    """A third of the targets that a slice needs for its policy to learn more than once."""
    match spec.policy:
        case Frozen() | InPlace():
            return 0
        case Sgd(chunk=chunk):
            return chunk
        case LowRank(chunk=chunk) | Phased(adapters=LowRank(chunk=chunk)):
            return 3 * chunk  # as every document begins anew
        case _:
            assert_never(spec.policy)


def independent(spec: ScoreSpec) -> bool:
    """Whether nothing is said to pass from one document to another."""
    resets = isinstance(spec.policy, Frozen | InPlace | LowRank)
    return spec.boundaries == "document" and resets and spec.ngram is None


def _run(job: Path) -> str:
    """The digest that the new process reports of what it found."""
    # It imports what this one would, from the same places.
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    process = subprocess.run(
        [sys.executable, "-P", "-m", "segpt.stages.replay", str(job)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        raise ScoreError(f"a new process could not repeat the score: {lines[-1]}")
    return json.loads(process.stdout.splitlines()[-1])["sha256"]


def _save(value: Artifact | Quantized | Checkpoint, path: Path) -> Path:
    match value:
        case Artifact():
            write_file(path, value.data)
        case Quantized():
            save_quantized(path, value)
        case Checkpoint():
            save_checkpoint(path, value)
        case _:
            assert_never(value)
    return path
