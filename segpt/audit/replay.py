"""A score once more: ``python -m segpt.audit.replay JOB`` knows nothing but what the job names."""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

from segpt.atomic import write_file
from segpt.config.base import decode
from segpt.errors import ScoreError, SegptError
from segpt.eval.tally import Tally, score_stream
from segpt.kernels import use_recipe
from segpt.stages.json_files import read_json
from segpt.stages.open_model import open_model
from segpt.stages.read_model import read_model
from segpt.stages.score import account_for
from segpt.values import Text

from .run import Job


def repeat(job: Job) -> Tally:
    """The nats of every target, and the distributions that are wanted.

    Raises:
        ScoreError: if the documents are not those of the digest, or cannot be scored.
    """
    opened = open_model(read_model(Path(job.model)), job.device)
    documents = _documents(Path(job.documents))
    accounted = account_for(opened, Text(job.documents, lambda: iter(documents)))
    if accounted.digest != job.digest:
        raise ScoreError(f"{job.documents} does not hold the documents of digest {job.digest}")
    ledger = accounted.ledger
    if job.tokens is not None:
        ids = np.frombuffer(Path(job.tokens).read_bytes(), "<u4").astype(np.uint32)
        ledger = dataclasses.replace(ledger, ids=ids)
    probed = np.frombuffer(Path(job.probed).read_bytes(), "<i8").astype(np.int64)
    model = opened.model.loops(job.score.loops)
    with use_recipe(job.score.kernels):
        return score_stream(
            model, ledger, job.score, job.score.reach(model.spec.context), probes=probed
        )


def main() -> None:
    """Repeat a score, write what it finds and say what that comes to, as JSON."""
    try:
        job = decode(Job, read_json(Path(sys.argv[1]), "job"))
        torch.set_num_threads(job.threads)
        tallied = repeat(job)
        parts = (tallied.nats, tallied.counts, tallied.rows)
        data = b"".join(part.astype("<f8").tobytes() for part in parts)
        write_file(Path(job.out), data)
    except SegptError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    written = {"targets": len(tallied.nats), "sha256": hashlib.sha256(data).hexdigest()}
    sys.stdout.write(json.dumps(written) + "\n")


def _documents(path: Path) -> list[bytes]:
    data, documents, place = path.read_bytes(), [], 0
    while place < len(data):
        begin = place + 8
        place = begin + int.from_bytes(data[place:begin], "little")
        documents.append(data[begin:place])
    return documents


if __name__ == "__main__":
    main()
