"""A model of others whose logits are compared with transformers' before anything is written."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Final

from segpt.convert import agreement
from segpt.values import Checkpoint

from .import_model import checkpoint_of, read_source

NO_TRANSFORMERS: Final = "transformers is not installed"
NO_ACCELERATE: Final = "transformers reads GGUF with accelerate, which is not installed"
UNWANTED: Final = "not asked for (--no-check)"


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
    measured = agreement.compare(model, path)
    agreement.check(measured)
    whole = checkpoint_of(path, form, model)
    assert whole.about.source is not None
    about = dataclasses.replace(whole.about.source, agreement=measured)
    return dataclasses.replace(whole, about=dataclasses.replace(whole.about, source=about))
