"""What carries a model, read from its place: checked, and not yet decoded. Without torch."""

import shlex
from pathlib import Path

from segpt.data.sources import KINDS, form
from segpt.errors import ArtifactError
from segpt.values import Artifact, Checkpoint, Quantized

from .checkpoint_io import read_checkpoint
from .pack import read_artifact
from .quantized_io import read_quantized
from .run_directory import kind_of, newest_checkpoint

Value = Artifact | Quantized | Checkpoint


def read_model(path: Path) -> Value:
    """What can be scored at a path: an artifact, a quantized model, a checkpoint or a run.

    Raises:
        CheckpointError, ArtifactError: if it is none of these, or damaged.
    """
    match kind_of(path):
        case "file":
            return _artifact(path)
        case "quantized":
            return read_quantized(path)
        case _:
            return read_checkpoint(newest_checkpoint(path))


def _artifact(path: Path) -> Artifact:
    try:
        return read_artifact(path)
    except ArtifactError:
        if form(path).kind not in KINDS:
            raise
        line = shlex.join(["segpt", "score", "MODEL", str(path)])
        raise ArtifactError(
            f"{path} is a text and not a model; name the model first, for example {line}"
        ) from None


def identity_of(value: Value) -> str:
    """The digest of an artifact, or the fingerprint of another value."""
    return value.digest if isinstance(value, Artifact) else value.fingerprint
