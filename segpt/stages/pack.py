"""Quantized to Artifact: one file within its budget, checked by unpacking it again."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpt.artifact import container
from segpt.artifact.container import Section
from segpt.artifact.reader import open_artifact
from segpt.atomic import write_file
from segpt.errors import ArtifactError, DataError, SegptError
from segpt.locks import locked
from segpt.values import Artifact, Quantized, documents_digest

WAIT = 60.0  # seconds for another process that writes the same artifact


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
    with locked(out, wait=WAIT):
        _write(out, artifact, quantized.documents)
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
    lists = {place: _read(place) for place in (documents_path(path), _coming(path))}
    if not any(raw is not None for raw in lists.values()):
        return artifact
    named = open_artifact(artifact).header.origin.get("documents")
    for raw in lists.values():
        if raw is None:
            continue
        documents = np.frombuffer(raw[: len(raw) // 8 * 8], "<u8").astype(np.uint64)
        if documents_digest(documents) == named and not len(raw) % 8:
            return Artifact(artifact.data, documents)
    if lists[documents_path(path)] is None or lists[_coming(path)] == b"":
        return artifact
    raise DataError(
        f"{documents_path(path)} is not the list of documents that {path.name} was trained on; "
        "pack the model again, or move that file away to score without the list"
    )


def _write(out: Path, artifact: Artifact, documents: NDArray[np.uint64] | None) -> None:
    """Write both files; one rename, that of the artifact, takes the reader from pair to pair.

    The new list lies beside the old one until the artifact that it belongs to is in place. An
    empty one says that the new artifact has none.
    """
    _settle(out)
    coming, beside = _coming(out), documents_path(out)
    if documents is not None or beside.exists():
        data = b"" if documents is None else documents.astype("<u8").tobytes()
        write_file(coming, data)
    try:
        write_file(out, artifact.data)
    except SegptError:  # also where the new one is in place and only not safe yet
        _settle(out)
        raise
    _settle(out)


def _settle(out: Path) -> None:
    """Put the list that belongs to the artifact into its place, if it is not there."""
    coming, beside = _coming(out), documents_path(out)
    if not coming.exists():
        return
    try:
        documents = read_artifact(out).documents if out.exists() else None
        raw = None if documents is None else documents.astype("<u8").tobytes()
        if raw is not None and raw == _read(coming):
            coming.replace(beside)
        elif raw is None and out.exists() and _read(coming) == b"":
            beside.unlink(missing_ok=True)
        coming.unlink(missing_ok=True)
    except (ArtifactError, DataError):
        return  # neither list is the artifact's, which is written anew
    except OSError as error:
        raise SegptError(f"cannot write {beside}: {error.strerror}; {out} is whole") from error


def _coming(artifact: Path) -> Path:
    """Where the list of an artifact lies until that artifact is in place."""
    return artifact.with_name(f".{artifact.name}.documents")


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
