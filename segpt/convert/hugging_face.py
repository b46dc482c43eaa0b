"""Hugging Face model directories, read and written."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpt.atomic import new_directory
from segpt.config.model import ModelSpec
from segpt.data.bpe import export, files
from segpt.data.bpe.as_tokenizer import from_bpe
from segpt.data.tokenizer import from_model_file, load
from segpt.data.tokenizer_facts import as_bpe
from segpt.errors import CheckpointError, DataError, SpecError
from segpt.values import Arrays, Tokenizer

from .hf_config import Table, config_of, shape_of_config
from .imported import TEMPLATE, Imported, sized
from .names import counterparts
from .shape import shape_of, spec_of
from .tensor_file import SINGLE, StoredTensor, tensors

LARGEST = 16 << 20  # of a file of JSON
_ROTARY = "rotary_emb.inv_freq"  # that older files hold, and that is computed


def is_model_directory(path: Path) -> bool:
    """Whether a directory looks like a model of Hugging Face."""
    return (path / "config.json").is_file() and not (path / "header.json").is_file()


def read(directory: Path, *, start: str | None = None) -> Imported:
    """A Llama-shaped model of a Hugging Face directory.

    Args:
        directory: with a config, weights as safetensors and a tokenizer.
        start: the token that begins a document, instead of what the directory says.

    Raises:
        SegptError: naming what is missing, damaged or not known.
    """
    try:
        shape = shape_of_config(_table(directory / "config.json"))
    except SpecError as error:
        raise SpecError(f"{directory / 'config.json'}: {error}") from None
    stored = tensors(directory)
    tokenizer, opens = sized(_tokenizer(directory, start), shape.vocab)
    spec = spec_of(shape, opens)
    wanted = counterparts(spec)
    expected = {name: part.shape for part in wanted for name in part.hugging_face}
    extra = [name for name in stored if name not in expected and not name.endswith(_ROTARY)]
    if shape.tied and "lm_head.weight" in extra:
        _check_tied(directory, stored)
        extra.remove("lm_head.weight")
    if extra:
        raise CheckpointError(f"{directory}: holds {extra[0]!r}, which this shape has no place for")
    for name, size in expected.items():
        if name not in stored:
            raise CheckpointError(f"{directory}: tensor {name!r} is missing")
        if stored[name].shape != size:
            raise CheckpointError(
                f"{directory}: tensor {name!r} is {stored[name].shape}, expected {size}"
            )
    weights = {
        part.weight.name: np.concatenate([stored[name].floats() for name in part.hugging_face])
        for part in wanted
    }
    return Imported(spec, weights, tokenizer, _template(directory))


def write(
    out: Path,
    spec: ModelSpec,
    weights: Arrays,
    tokenizer: Tokenizer,
    template: bytes | None = None,
) -> None:
    """Write a model as a new Hugging Face directory in float32, and read its tensors back.

    Args:
        out: the directory, which is not there yet or empty.
        spec: of a Llama-shaped model.
        weights: those of its layout, each (rows, columns) or (channels,).
        tokenizer: what makes its tokens.
        template: for chats, kept as it is.

    Raises:
        SegptError: if the model is not Llama-shaped, or ``out`` is there and not empty.
    """
    import safetensors.numpy

    shape = shape_of(spec)
    codec = load(tokenizer)
    config = config_of(shape, codec.start, None)
    named = tensors_of(spec, weights)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out}: is there and not empty; choose a new folder with --out")
    contents = export.folder(as_bpe(tokenizer))
    if template is not None:
        contents[TEMPLATE] = template
    contents["config.json"] = _json(config)
    contents["generation_config.json"] = _json({"bos_token_id": codec.start})
    with new_directory(out) as directory:
        for name, data in contents.items():
            (directory / name).write_bytes(data)
        safetensors.numpy.save_file(named, directory / SINGLE, {"format": "pt"})
        back = tensors(directory)
        for name, array in named.items():
            if not np.array_equal(back[name].floats(), array, equal_nan=True):
                raise CheckpointError(f"{out}: {name!r} was not written as it is")


def tensors_of(spec: ModelSpec, weights: Arrays) -> dict[str, NDArray[np.float32]]:
    """The weights by their names in Hugging Face's files, each of its own shape (rows, columns)."""
    named = {}
    for part in counterparts(spec):
        pieces = np.split(weights[part.weight.name], len(part.hugging_face))
        for name, piece in zip(part.hugging_face, pieces, strict=True):
            named[name] = np.array(piece, np.float32, order="C")
    return named


def weight_bytes(directory: Path) -> int:
    """The bytes of all files of weights in a directory."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def _check_tied(directory: Path, stored: dict[str, StoredTensor]) -> None:
    head, table = stored["lm_head.weight"], stored.get("model.embed_tokens.weight")
    if table is None or head.shape != table.shape or _differ(head, table):
        raise CheckpointError(
            f"{directory}: tie_word_embeddings is true, but lm_head.weight is not the table"
        )


def _differ(head: StoredTensor, table: StoredTensor) -> bool:
    return not np.array_equal(head.floats(), table.floats())


def _tokenizer(directory: Path, start: str | None) -> Tokenizer:
    if files.is_folder(directory):
        return from_bpe(files.from_folder(directory, start))
    model = directory / "tokenizer.model"
    if not model.is_file():
        raise DataError(f"{directory}: neither tokenizer.json nor tokenizer.model in it")
    if start is not None:
        raise DataError(f"{model}: says itself what begins a document (no --start)")
    return from_model_file(model)


def _template(directory: Path) -> bytes | None:
    place = directory / TEMPLATE
    if place.is_file() and place.stat().st_size <= LARGEST:
        return place.read_bytes()
    about = directory / "tokenizer_config.json"
    text = _table(about).get("chat_template") if about.is_file() else None
    return text.encode() if isinstance(text, str) else None


def _table(path: Path) -> Table:
    try:
        if path.stat().st_size > LARGEST:
            raise CheckpointError(f"{path} is too large")
        table = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if not isinstance(table, dict):
        raise CheckpointError(f"{path} is damaged: expected a table")
    return table


def weights_equal(a: Arrays, b: Arrays) -> bool:
    """Whether two sets of weights are the same, bit for bit."""
    return a.keys() == b.keys() and all(a[n].tobytes() == b[n].tobytes() for n in a)


def _json(table: Table) -> bytes:
    return json.dumps(table, indent=2).encode() + b"\n"
