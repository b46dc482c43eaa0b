"""Quantized to Artifact: one file within its budget, checked by unpacking it again."""

from pathlib import Path

import numpy as np

from segpt.artifact import container
from segpt.artifact.container import Section
from segpt.artifact.opening import open_artifact
from segpt.atomic import write_file
from segpt.errors import ArtifactError, DataError
from segpt.values import Artifact, Quantized, documents_digest


def pack(
    quantized: Quantized, out: Path, budget: int | None = None
) -> tuple[Artifact, tuple[Section, ...]]:
    """Pack, check and write; the size that counts is that of the final file.

    Beside the artifact goes the list of the documents that the model saw, which is not part of
    the artifact's bytes but bound to it by the digest in its origin.

    Raises:
        CheckError: if the file would be over budget; nothing is written then.
        ArtifactError: if the bytes do not unpack to the same model.
    """
    artifact = container.pack(quantized)
    if budget is not None:
        container.budget(artifact, budget)
    if container.unpack(artifact) != quantized:
        raise ArtifactError("the packed bytes do not unpack to the same model; nothing was written")
    if quantized.documents is not None:
        write_file(documents_path(out), quantized.documents.astype("<u8").tobytes())
    write_file(out, artifact.data)
    return artifact, container.sections(artifact)


def documents_path(artifact: Path) -> Path:
    """Where the list of training documents of an artifact lies."""
    return artifact.with_name(artifact.name + ".documents")


def read_artifact(path: Path) -> Artifact:
    """Read an artifact, with the list of its training documents if that lies beside it.

    Raises:
        ArtifactError: if the file is not a valid artifact.
        DataError: if the list is not the one that belongs to it.
    """
    artifact = container.load(path)
    beside = documents_path(path)
    if not beside.is_file():
        return artifact
    raw = beside.read_bytes()
    documents = np.frombuffer(raw[: len(raw) // 8 * 8], "<u8").astype(np.uint64)
    named = open_artifact(artifact).header.origin.get("documents")
    if documents_digest(documents) != named or len(raw) % 8:
        raise DataError(f"{beside} is not the list of documents that {path.name} was trained on")
    return Artifact(artifact.data, documents)
