"""A model to a directory or file that the programs of others load."""

from pathlib import Path
from typing import NamedTuple

from segpt.artifact.container import unpack
from segpt.config.layout import parameters
from segpt.config.model import ModelSpec
from segpt.convert import gguf_write, hugging_face
from segpt.convert.gguf_write import NumberType
from segpt.convert.modeling.write import write_modeling
from segpt.convert.shape import shape_of
from segpt.errors import SpecError
from segpt.values import Arrays, Artifact, Checkpoint, Tokenizer

from .open_model import without_unjoined_visits
from .read_model import Value
from .value_directory import TEMPLATE


class ExportedModel(NamedTuple):
    """What was written: where, as which form, and how many numbers and bytes of weights."""

    out: Path
    form: str
    parameters: int
    bytes: int


class ExportedFile(NamedTuple):
    """What was written: where, of which type, how many numbers and bytes, and how far it is off.

    ``error`` is the root of the squared differences over that of the squared weights.
    """

    out: Path
    type: str
    parameters: int
    bytes: int
    error: float


def export_hugging_face(value: Value, path: Path, out: Path, form: str = "auto") -> ExportedModel:
    """Write a model as a new Hugging Face directory, in float32.

    Args:
        value: what carries the model.
        path: where it was read, which names it, and may hold a template for chats.
        out: the directory, which is not there yet or empty.
        form: ``llama`` for a class that transformers has, ``modeling`` for source of the model's
            own, ``auto`` for the first where it can say the model.

    Raises:
        SegptError: if the model is damaged or cannot be written in this form, or ``out`` holds
            other things.
    """
    spec, weights, tokenizer = _whole(value)
    if form == "auto":
        form = "llama" if _is_llama_shaped(spec) else "modeling"
    if form == "llama":
        hugging_face.write(out, spec, weights, tokenizer, _template(path))
    else:
        write_modeling(spec, weights, tokenizer, out, name=path.stem)
    return ExportedModel(out, form, parameters(spec), hugging_face.weight_bytes(out))


def export_gguf(
    value: Value, path: Path, out: Path, number_type: NumberType = "f32"
) -> ExportedFile:
    """Write a model as a GGUF file.

    Args:
        value: what carries the model.
        path: where it was read, which may hold a template for chats.
        out: the file; one that is there is replaced.
        number_type: of the matrices.

    Raises:
        SegptError: if the model is damaged, or llama.cpp knows none of its shape or tokenizer.
    """
    spec, weights, tokenizer = _whole(value)
    template = _template(path)
    if template is None and isinstance(value, Checkpoint) and value.about.source is not None:
        said = value.about.source.template
        template = None if said is None else said.encode()
    written = gguf_write.write(out, spec, weights, tokenizer, number_type, template)
    return ExportedFile(out, number_type, parameters(spec), written.bytes, written.error)


def _template(path: Path) -> bytes | None:
    template = path / TEMPLATE
    return template.read_bytes() if template.is_file() else None


def _whole(value: Value) -> tuple[ModelSpec, Arrays, Tokenizer]:
    """Spec, weights and tokenizer; of a checkpoint the visits that have joined."""
    source = unpack(value) if isinstance(value, Artifact) else value
    if isinstance(source, Checkpoint):
        joined = without_unjoined_visits(source)
        return joined.spec, joined.weights, joined.tokenizer
    weights = {name: coded.decoded() for name, coded in source.weights.items()}
    return source.spec, weights, source.tokenizer


def _is_llama_shaped(spec: ModelSpec) -> bool:
    try:
        shape_of(spec)
    except SpecError:
        return False
    return True
