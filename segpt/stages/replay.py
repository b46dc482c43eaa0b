"""A score once more: ``python -m segpt.stages.replay JOB`` knows nothing but what the job names."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from segpt.atomic import write_file
from segpt.errors import ScoreError, SegptError
from segpt.eval.tally import tally
from segpt.spec.base import decode
from segpt.values import Text

from .audit import Job, nats_digest
from .files import read_json
from .models import read_model
from .score import account_for, open_model


def repeat(job: Job) -> NDArray[np.float64]:
    """The nats of every target.

    Raises:
        ScoreError: if the documents are not those of the digest, or cannot be scored.
    """
    value, _ = read_model(Path(job.model))
    opened = open_model(value, job.device, job.score)
    documents = _documents(Path(job.documents))
    accounted = account_for(opened.source, Text(job.documents, lambda: iter(documents)))
    if accounted.digest != job.digest:
        raise ScoreError(f"{job.documents} does not hold the documents of digest {job.digest}")
    context = job.score.reach(opened.model.spec.context)
    return tally(opened.model, accounted.ledger, job.score, context).nats


def main() -> None:
    """Repeat a score, write the nats of its targets and say what they come to, as JSON."""
    try:
        job = decode(Job, read_json(Path(sys.argv[1]), "job"))
        torch.set_num_threads(job.threads)
        nats = repeat(job)
        write_file(Path(job.nats), nats.astype("<f8").tobytes())
    except SegptError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    found = {"nats": math.fsum(nats).hex(), "targets": len(nats), "sha256": nats_digest(nats)}
    sys.stdout.write(json.dumps(found) + "\n")


def _documents(path: Path) -> list[bytes]:
    data, documents, place = path.read_bytes(), [], 0
    while place < len(data):
        begin = place + 8
        place = begin + int.from_bytes(data[place:begin], "little")
        documents.append(data[begin:place])
    return documents


if __name__ == "__main__":
    main()
