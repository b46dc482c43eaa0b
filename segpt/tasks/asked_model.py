"""Which model is asked: one of ours by its path, or one that ``transformers`` reads."""

from pathlib import Path
from typing import Any

import torch

from segpt.config.precision import Computed
from segpt.errors import SegptError
from segpt.stages.open_model import open_model
from segpt.stages.read_model import Value, read_model

from .subject import Subject, of_hugging_face, of_model


def subject_of(
    model: str | Path,
    value: Value | None,
    device: str,
    context: int | None,
    precision: Computed = "float32",
) -> tuple[Subject, dict[str, Any]]:
    """Who is asked, and what names it as JSON values.

    Args:
        model: a path of ours; or else what ``transformers`` reads, a directory or owner/name.
        value: what is at the path, if it has been read.
        device: where it computes.
        context: tokens that a model of ours is given at most; its own if None.
        precision: what weights of a Hugging Face model are held in. Ours are float32, and
            :func:`segpt.kernels.precision.computing` says what they are multiplied in.

    Raises:
        SegptError: if there is no such model, or it is damaged.
    """
    if value is None and _is_foreign(Path(model)):
        if context is not None:
            raise SegptError(f"{model}: the context of a Hugging Face model is its own")
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
        return of_hugging_face(model, device, dtype), {"hugging_face": str(model)}
    opened = open_model(value or read_model(Path(model)), device)
    identity = {"path": str(model), "fingerprint": opened.identity}
    return of_model(opened.model, opened.codec, context), identity


def _is_foreign(path: Path) -> bool:
    """Whether ``transformers`` is asked: for its directories, and owner/name on its hub."""
    if path.exists():
        return (path / "config.json").exists()
    named = len(path.parts) == 2 and not path.is_absolute() and path.suffix != ".segpt"
    return named and not path.parent.exists()  # a misspelt runs/name is no owner's
