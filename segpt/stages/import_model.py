"""From a model of others to a checkpoint, its logits compared before anything is written."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Final

from segpt.config.run_about import ImportAbout, RunAbout
from segpt.convert import gguf_file, hugging_face
from segpt.convert.imported import Imported
from segpt.data.tokenizer import load
from segpt.errors import CheckpointError
from segpt.values import Checkpoint, arrays_digest

from .checkpoint_io import save_checkpoint

NO_TRANSFORMERS: Final = "transformers is not installed"
NO_ACCELERATE: Final = "transformers reads GGUF with accelerate, which is not installed"
UNWANTED: Final = "not asked for (--no-check)"


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


def is_foreign(path: Path) -> bool:
    """Whether a path holds a model of others."""
    return hugging_face.is_model_directory(path) or gguf_file.is_gguf(path)


def import_model(path: Path, *, start: str | None = None, check: bool = True) -> Checkpoint:
    """Read a model of others as a checkpoint, and compare its logits with transformers' ones.

    Args:
        path: a Hugging Face directory or a GGUF file.
        start: the token that begins a document.
        check: compare, where transformers is installed.

    Raises:
        SegptError: if it cannot be read, or the logits differ.
    """
    form, model = read_source(path, start)
    if not check:
        return checkpoint_of(path, form, model, unchecked=UNWANTED)
    if importlib.util.find_spec("transformers") is None:
        return checkpoint_of(path, form, model, unchecked=NO_TRANSFORMERS)
    if form == "gguf" and importlib.util.find_spec("accelerate") is None:
        return checkpoint_of(path, form, model, unchecked=NO_ACCELERATE)
    from segpt.convert import agreement

    measured = agreement.compare(model, path)
    agreement.check(measured)
    whole = checkpoint_of(path, form, model)
    assert whole.about.source is not None
    about = dataclasses.replace(whole.about.source, agreement=measured)
    return dataclasses.replace(whole, about=dataclasses.replace(whole.about, source=about))


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
