"""A score held against its conditions: on a changed slice of the text, and in new processes."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import torch
from numpy.typing import NDArray

from segpt.atomic import write_file
from segpt.config.base import encode, spec
from segpt.config.score import ScoreSpec
from segpt.data.text import text_digest
from segpt.errors import ScoreError
from segpt.eval.ledger import EncodedText
from segpt.eval.schedule import schedule
from segpt.eval.tally import score_stream
from segpt.kernels import use_recipe
from segpt.model.model import Model
from segpt.stages.checkpoint_io import save_checkpoint
from segpt.stages.json_files import write_json
from segpt.stages.open_model import OpenedModel
from segpt.stages.quantized_io import save_quantized
from segpt.stages.read_model import Value
from segpt.values import Artifact, Checkpoint, Quantized

from .audit import AuditPlan, audit, audit_whole, drawn
from .changes import flips_for, slice_of
from .conditions import Audit, Condition
from .trials import Method, Trial

# On a GPU, sums may be taken in another order each time, and learning carries that on.
TOLERANCE = 1e-3


@spec
class Job:
    """What another process needs to repeat a score, and where to leave what it finds.

    Attributes:
        model: the file of the model.
        documents: a file with the size of each document as eight bytes, little-endian, and then
            its bytes.
        digest: that of the documents.
        tokens: a file of tokens as little-endian uint32, to score in the place of those of the
            documents, or null.
        probed: a file of targets, as little-endian int64, whose distributions are wanted.
        score: how to score.
        device: where.
        threads: of torch.
        out: the file to write: nats and counts of every target and the rows of the probed ones, as
            little-endian float64.
    """

    model: str
    documents: str
    digest: str
    tokens: str | None
    probed: str
    score: ScoreSpec
    device: str
    threads: int
    out: str


def audited(
    opened: OpenedModel,
    ledger: EncodedText,
    documents: Sequence[bytes],
    spec: ScoreSpec,
    nats: NDArray[np.float64],
    *,
    seed: int | None = None,
) -> Audit:
    """Everything that can be checked of a score by scoring again, in less than three scores.

    Less than half of a score goes to a slice of the text, of which tokens are changed, and two to
    scoring the whole text in new processes, once as it is and once changed. A short text costs
    more, see :func:`segpt.audit.changes.slice_of`.

    Args:
        opened: what was scored, where it was computed; its model stays as it is.
        ledger: the stream of the documents.
        documents: the text, for the new process.
        spec: how it was scored.
        nats: (targets,) what the score found for every target.
        seed: what is flipped and probed; drawn anew if it is null. The audit keeps it.

    Raises:
        ScoreError: if a new process cannot score.
    """
    seed = drawn(seed)
    model = opened.model.loops(spec.loops)
    context = spec.reach(model.spec.context)
    start, alone, extends = int(ledger.ids[0]), independent(spec), not spec.policy.adapts
    flips = flips_for(ledger.targets)
    ids = slice_of(
        ledger.ids,
        start,
        flips=flips,
        independent=alone,
        extends=extends,
        chunk=chunk_of(spec),
        seed=seed,
    )
    of_slice = audit(
        method_of(model, spec, context, start),
        ids,
        start,
        AuditPlan(
            seed=seed,
            flips=flips,
            borders=borders_of(ids, spec, context, start),
            independent=alone,
            extends=extends,
            tolerance=tolerance_of(opened.device),
        ),
    )
    more = replayed(opened, documents, ledger, spec, nats, seed=seed)
    return of_slice.also(*more)


def replayed(
    opened: OpenedModel,
    documents: Sequence[bytes],
    ledger: EncodedText,
    spec: ScoreSpec,
    nats: NDArray[np.float64],
    *,
    seed: int | None = None,
) -> tuple[Condition, Condition]:
    """Whether new processes find the same nats in the whole text, also if its end is another.

    Model, text and spec go to them through files, which are deleted afterwards.

    Args:
        opened: what was scored, where it was computed.
        documents: the text.
        ledger: its stream.
        spec: how it was scored.
        nats: (targets,) what the score found.
        seed: what is changed and asked for; drawn anew if it is null.

    Raises:
        ScoreError: if a new process cannot score.
    """
    with tempfile.TemporaryDirectory(prefix="segpt-replay-") as name:
        folder = Path(name)
        job = Job(
            model=str(_save(opened.value, folder / "model")),
            documents=str(folder / "documents"),
            digest=text_digest(documents),
            tokens=None,
            probed=str(folder / "probed"),
            score=spec,
            device=opened.device,
            threads=torch.get_num_threads(),
            out=str(folder / "out"),
        )
        framed = (len(d).to_bytes(8, "little") + d for d in documents)
        write_file(Path(job.documents), b"".join(framed))
        return audit_whole(
            _elsewhere(job, folder, ledger.ids),
            ledger.ids,
            int(ledger.ids[0]),
            nats,
            seed=seed,
            tolerance=tolerance_of(opened.device),
            name="fresh_process",
        )


def tolerance_of(device: str) -> float:
    """How far numbers may be apart that the same computation found twice."""
    return 0.0 if torch.device(device).type == "cpu" else TOLERANCE


def _elsewhere(job: Job, folder: Path, ids: NDArray[np.uint32]) -> Method:
    """A method of scoring of which each run is a new process, which tokenizes the text itself."""

    def method(tokens: NDArray[np.uint32], probed: NDArray[np.int64]) -> Trial:
        changed = folder / "tokens"
        write_file(changed, tokens.astype("<u4").tobytes())
        write_file(Path(job.probed), probed.astype("<i8").tobytes())
        same = np.array_equal(tokens, ids)
        now = dataclasses.replace(job, tokens=None if same else str(changed))
        write_json(folder / "job.json", encode(now))
        written = _run(folder / "job.json")
        data = Path(job.out).read_bytes()
        if written["sha256"] != hashlib.sha256(data).hexdigest():
            raise ScoreError("what a new process scored was damaged on the way; audit again")
        nats, counts, rows = np.split(
            np.frombuffer(data, "<f8").astype(np.float64),
            [written["targets"], 2 * written["targets"]],
        )
        return Trial(nats, rows.reshape(len(probed), -1), counts.astype(np.int64))

    return method


def method_of(model: Model, spec: ScoreSpec, context: int, start: int) -> Method:
    """The engine that scores, as a method that can be audited; the model stays as it is."""

    def method(ids: NDArray[np.uint32], probed: NDArray[np.int64]) -> Trial:
        targets = len(ids) - 1
        sizes = np.ones(targets, np.int64)
        ledger = EncodedText(ids, sizes, np.flatnonzero(ids == start), targets, "bytes")
        with use_recipe(spec.kernels):
            scored = score_stream(model, ledger, spec, context, probes=probed)
        return Trial(scored.nats, scored.rows, scored.counts)

    return method


def borders_of(ids: NDArray[np.uint32], spec: ScoreSpec, context: int, start: int) -> list[int]:
    """The targets of a stream before which its policy learns."""
    starts = np.flatnonzero(ids == start)
    groups = schedule(starts, len(ids) - 1, context, spec)
    updates = [update for group in groups for round_ in group for update in round_.updates]
    return sorted({update.stop for update in updates})


def chunk_of(spec: ScoreSpec) -> int:
    """A third of the targets that a slice needs for its policy to learn more than once."""
    chunk = spec.policy.update_interval or 0
    return 3 * chunk if spec.policy.per_document else chunk  # as every document begins anew


def independent(spec: ScoreSpec) -> bool:
    """Whether nothing is said to pass from one document to another."""
    return spec.boundaries == "document" and spec.policy.resets and spec.ngram is None


def _run(job: Path) -> dict[str, Any]:
    """What the new process says of what it wrote."""
    # It imports what this one would, from the same places.
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    process = subprocess.run(
        [sys.executable, "-P", "-m", "segpt.audit.replay", str(job)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        raise ScoreError(f"a new process could not repeat the score: {lines[-1]}")
    written: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return written


def _save(value: Value, path: Path) -> Path:
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
