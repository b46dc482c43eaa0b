"""What carries a model, read from its place: checked, and not yet decoded. Without torch."""

import shlex
from pathlib import Path

from segpt.data.sources import KINDS, form
from segpt.errors import ArtifactError
from segpt.values import Artifact, Checkpoint, Quantized

from .checkpoint_io import read_checkpoint
from .import_model import read_foreign
from .pack import read_artifact
from .quantized_io import read_quantized
from .run_directory import kind_of, newest_checkpoint

Value = Artifact | Quantized | Checkpoint


def read_model(path: Path) -> Value:
    """What can be scored at a path: an artifact, a quantized model, a checkpoint or a run.

    A Hugging Face directory or a GGUF file becomes a checkpoint where it lies.

    Raises:
        SegptError: if it is none of these, or damaged, naming what is not known.
    """
    match kind_of(path):
        case "file":
            return _artifact(path)
        case "quantized":
            return read_quantized(path)
        case _:
            return checkpoint_at(path)[1]


def checkpoint_at(path: Path) -> tuple[Path, Checkpoint]:
    """A checkpoint, the last one of a run, or a model of others as one, and where it lies.

    Raises:
        SegptError: if the path holds none, or it is damaged.
    """
    if kind_of(path) == "foreign":
        return path, read_foreign(path)
    place = newest_checkpoint(path)
    return place, read_checkpoint(place)


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
