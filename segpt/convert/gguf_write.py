"""Llama-shaped models as GGUF files, read back before they appear."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpt.atomic import new_file
from segpt.config.model import ModelSpec
from segpt.data.bpe.export import end_of
from segpt.data.bpe.files import CONTROL, NORMAL, UNUSED, USER_DEFINED
from segpt.data.bpe.model import BpeModel
from segpt.data.bpe.patterns import LLAMA_CPP, WHOLE_WORDS
from segpt.data.tokenizer_facts import as_bpe
from segpt.errors import CheckpointError, SpecError
from segpt.values import Arrays, Tokenizer

from . import gguf_file
from .gguf_file import permuted_heads, permuted_rows
from .hf_config import family_of
from .imported import Imported
from .names import counterparts
from .shape import Shape, shape_of

if TYPE_CHECKING:
    from gguf import GGUFWriter

NumberType = Literal["f32", "f16", "bf16", "q8_0"]
_FILE_TYPES: Final = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}
_BLOCK: Final = 32  # columns that share a scale in q8_0
_LARGEST: Final = {"f16": 65504.0, "q8_0": 127 * 65504.0}  # that a type holds
# The name that llama.cpp has for a way to cut text into words.
_PRE: Final = {
    "gpt2": "gpt-2",
    "smollm": "smollm",
    "llama3": "llama-bpe",
    "qwen2": "qwen2",
    "o200k": "gpt-4o",
    "tekken": "tekken",
}


class WrittenFile(NamedTuple):
    """Bytes of a file, and how far its weights are from those they were made of.

    ``error`` is the root of the squared differences over that of the squared weights.
    """

    bytes: int
    error: float


def write(
    out: Path,
    spec: ModelSpec,
    weights: Arrays,
    tokenizer: Tokenizer,
    number_type: NumberType = "f32",
    template: bytes | None = None,
) -> WrittenFile:
    """Write a model as a GGUF file, and read it back before it gets its name.

    Args:
        out: the file; one that is there is replaced.
        spec: of a Llama-shaped model.
        weights: those of its layout, each (rows, columns) or (channels,).
        tokenizer: a byte-level BPE.
        number_type: of the matrices; gains and biases are float32.
        template: for chats, kept as it is.

    Raises:
        SegptError: if llama.cpp knows no such model or tokenizer, or the type cannot hold it.
    """
    try:
        from gguf import GGMLQuantizationType, GGUFWriter, quantize
    except ImportError:
        raise CheckpointError(
            "writing GGUF needs the gguf package: pip install 'segpt[gguf]'"
        ) from None
    shape = shape_of(spec)
    family = family_known(shape)
    model = as_bpe(tokenizer)
    pre = _pre(model)
    named = _tensors(spec, weights, shape if family == "llama" else None)
    with new_file(out) as temporary:
        writer = GGUFWriter(temporary, family)
        _add_shape(writer, shape, out.stem, number_type)
        _add_tokenizer(writer, model, pre, template)
        stored = {}
        for name, array in named.items():
            kind = number_type if array.ndim > 1 else "f32"
            _check_fits(name, array, kind)
            packing = GGMLQuantizationType[kind.upper()]
            stored[name] = quantize(array, packing)
            writer.add_tensor(name, stored[name], raw_dtype=packing)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        _check_tensors(temporary, stored)
        error = _distance(gguf_file.read(temporary), shape, model, weights)
        size = temporary.stat().st_size
    return WrittenFile(size, error)


def family_known(shape: Shape) -> str:
    """The architecture of llama.cpp that a shape is.

    Raises:
        SpecError: if it has none, or one that is not written.
    """
    if shape.window is not None:
        raise SpecError(f"llama.cpp's llama has no windows; attention here sees {shape.window}")
    if shape.scaling is not None:
        raise SpecError("a scaled rope, as in Llama 3.1, is not written as GGUF; export hf does it")
    family = family_of(shape)
    if family == "qwen3" and shape.bias != "none":
        raise SpecError("llama.cpp's qwen3 has no biases of attention")
    return family


def _pre(model: BpeModel) -> str:
    """The name that llama.cpp has for how a tokenizer cuts text into words."""
    if model.fallback:
        raise SpecError(
            "a tokenizer with byte fallback is not written as GGUF, only byte-level BPE is; "
            "export hf does it"
        )
    if model.pattern not in _PRE:
        raise SpecError(
            f"llama.cpp has no name for how this tokenizer cuts text ({model.pattern!r}), and "
            "would cut it in another way; export hf does it"
        )
    pre = _PRE[model.pattern]
    assert LLAMA_CPP[pre] == model.pattern
    if model.whole_words != (pre in WHOLE_WORDS):
        ways = ("merges all words", "takes words that are pieces whole")
        raise SpecError(
            f"this tokenizer {ways[model.whole_words]}, and llama.cpp's {pre} does not; export hf "
            "does it"
        )
    return pre


def _tensors(
    spec: ModelSpec, weights: Arrays, llama: Shape | None
) -> dict[str, NDArray[np.float32]]:
    """The weights by their names in the file, rows of queries and keys as llama has them."""
    named = {}
    for part in counterparts(spec):
        whole = np.asarray(weights[part.weight.name], np.float32)
        heads = None if llama is None else permuted_heads(part, llama)
        if heads is not None:
            whole = permuted_rows(whole, heads)
        for name, piece in zip(part.gguf, np.split(whole, len(part.gguf)), strict=True):
            named[name] = np.ascontiguousarray(piece)
    return named


def _check_fits(name: str, array: NDArray[np.float32], kind: str) -> None:
    """Refuse numbers (rows, columns) that a type cannot hold."""
    if not np.isfinite(array).all():
        raise CheckpointError(f"tensor {name!r} has numbers that are not finite")
    if kind == "q8_0" and array.shape[-1] % _BLOCK:
        raise SpecError(
            f"q8_0 takes rows of a multiple of {_BLOCK} numbers; those of {name!r} have "
            f"{array.shape[-1]}; choose another --type"
        )
    largest = float(np.abs(array).max(initial=0))
    if largest > _LARGEST.get(kind, np.inf):
        raise SpecError(
            f"tensor {name!r} has a number of {largest:.3g}, which {kind} cannot hold; choose "
            "--type bf16 or f32"
        )


def _add_shape(writer: "GGUFWriter", shape: Shape, name: str, number_type: str) -> None:
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[number_type])
    writer.add_quantization_version(2)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_rope_freq_base(shape.base)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocab)


def _add_tokenizer(writer: "GGUFWriter", model: BpeModel, pre: str, template: bytes | None) -> None:
    """The tokenizer, whose ids without a piece get a name that is no text."""
    kinds = [
        CONTROL
        if i in model.control
        else USER_DEFINED
        if i in model.added
        else NORMAL
        if piece
        else UNUSED
        for i, piece in enumerate(model.pieces)
    ]
    tokens = [model.token_text(i) if piece else f"[PAD{i}]" for i, piece in enumerate(model.pieces)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{tokens[a]} {tokens[b]}" for a, b in model.merges.tolist()])
    writer.add_bos_token_id(model.start)
    writer.add_eos_token_id(end_of(model))
    writer.add_add_bos_token(True)
    if template is not None:
        writer.add_chat_template(template.decode())


def _check_tensors(path: Path, stored: Mapping[str, NDArray[np.generic]]) -> None:
    """Refuse a file whose tensors are not those (rows, columns) that were to be written."""
    back = {tensor.name: tensor for tensor in gguf_file.open_file(path).tensors}
    for name, array in stored.items():
        if name not in back or np.asarray(back[name].data).tobytes() != array.tobytes():
            raise CheckpointError(f"{name!r} was not written as it is")


def _distance(back: Imported, shape: Shape, model: BpeModel, weights: Arrays) -> float:
    """How far what was read is from the weights; its shape and tokenizer are the same."""
    if _as_stored(shape_of(back.spec)) != _as_stored(shape):
        raise CheckpointError("the file does not say the shape of the model")
    again = as_bpe(back.tokenizer)
    same = again.pieces == model.pieces and again.start == model.start
    same = same and again.control == model.control and again.added == model.added
    if not (same and np.array_equal(again.merges, model.merges)):
        raise CheckpointError("the file does not say the tokenizer of the model")
    apart = total = 0.0
    for name, array in weights.items():
        difference = array.astype(np.float64) - back.weights[name]
        apart += float(np.square(difference).sum())
        total += float(np.square(array.astype(np.float64)).sum())
    return (apart / total) ** 0.5 if total else 0.0


def _as_stored(shape: Shape) -> Shape:
    """A shape with eps and base as the file holds them, in float32."""
    import dataclasses

    eps, base = float(np.float32(shape.eps)), float(np.float32(shape.base))
    return dataclasses.replace(shape, eps=eps, base=base)
