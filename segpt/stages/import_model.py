"""From a model of others to a checkpoint, without torch; :mod:`.check_import` compares logits."""

from pathlib import Path
from typing import Final

from segpt.config.run_about import ImportAbout, RunAbout
from segpt.convert import gguf_file, hugging_face
from segpt.convert.imported import Imported
from segpt.data.tokenizer import load
from segpt.errors import CheckpointError
from segpt.values import Checkpoint, arrays_digest

from .checkpoint_io import save_checkpoint

READ_ONLY: Final = "read where it lies and not imported"


def read_source(path: Path, start: str | None = None) -> tuple[str, Imported]:
    """What a path holds, as ``hf`` or ``gguf``, and its model.

    Raises:
        SegptError: naming what is missing, damaged or not known.
    """
    if path.is_dir():
        return "hf", hugging_face.read(path, start=start)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; fetch the model and name its place")
    return "gguf", gguf_file.read(path, start=start)


def read_foreign(path: Path) -> Checkpoint:
    """A model of others as a checkpoint, read where it lies; no logits are compared.

    Raises:
        SegptError: naming what is missing, damaged or not known.
    """
    form, model = read_source(path)
    return checkpoint_of(path, form, model, unchecked=READ_ONLY)


def checkpoint_of(path: Path, form: str, model: Imported, unchecked: str = "") -> Checkpoint:
    """A model of others as a checkpoint, of which it is not known what it was trained on."""
    start = load(model.tokenizer).start
    template = None if model.template is None else model.template.decode()
    about = ImportAbout(
        name=path.resolve().name, form=form, start=start, template=template, unchecked=unchecked
    )
    return Checkpoint(
        spec=model.spec,
        weights=model.weights,
        tokenizer=model.tokenizer,
        step=0,
        progress=1.0,
        documents=None,
        origin={"import": arrays_digest(model.weights)[:16]},
        about=RunAbout(finished=True, source=about),
    )


def save_imported(out: Path, checkpoint: Checkpoint) -> None:
    """Write an imported model, with its template for chats beside it."""
    source = checkpoint.about.source
    template = None if source is None or source.template is None else source.template.encode()
    save_checkpoint(out, checkpoint, template)
