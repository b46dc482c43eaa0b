"""GGUF files of Llama-shaped models, read through the ``gguf`` package."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from segpt.data.bpe import files
from segpt.data.bpe.as_tokenizer import from_bpe
from segpt.errors import CheckpointError, SegptError, SpecError
from segpt.values import Tokenizer

from .imported import Imported, sized
from .names import Counterpart, counterparts
from .shape import Shape, spec_of

if TYPE_CHECKING:
    from gguf import GGUFReader

Fields = Mapping[str, object]

MAGIC: Final = b"GGUF"
_FAMILIES: Final = ("llama", "qwen2", "qwen3")
# Of an architecture: what is read, by the key after its name.
_READ: Final = frozenset(
    {
        *("block_count", "context_length", "embedding_length", "feed_forward_length"),
        *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
        *("attention.value_length", "attention.layer_norm_rms_epsilon", "rope.freq_base"),
        *("rope.dimension_count", "vocab_size"),
    }
)
_ROOMS: Final = ("general.", "tokenizer.", "GGUF.", "quantize.", "split.")


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read(path: Path, *, start: str | None = None) -> Imported:
    """A Llama-shaped model of a GGUF file, its weights dequantized.

    Args:
        path: the file.
        start: the token that begins a document, instead of the file's beginning token.

    Raises:
        SegptError: naming what is missing, damaged or not known.
    """
    reader = open_file(path)
    try:
        fields = {name: field.contents() for name, field in reader.fields.items()}
        shape, permuted = _shape(fields, reader)
        tokenizer, opens = sized(_tokenizer(fields, start), shape.vocab)
        spec = spec_of(shape, opens)
        weights = _weights(reader, counterparts(spec), shape if permuted else None)
    except SegptError as error:
        raise type(error)(f"{path}: {error}") from None
    except (ValueError, IndexError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}; fetch it again") from None
    template = fields.get("tokenizer.chat_template")
    kept = template.encode() if isinstance(template, str) else None
    return Imported(spec, weights, tokenizer, kept)


def permuted_rows(
    rows: NDArray[np.float32], heads: int, *, back: bool = False
) -> NDArray[np.float32]:
    """The rows of queries or keys (rows, ...) as GGUF's llama has them: pairs that are neighbours.

    Args:
        rows: whose halves of each head are pairs, or neighbours if ``back``.
        heads: how many there are.
        back: from neighbours to halves.
    """
    pairs = len(rows) // heads // 2
    sides = (heads, pairs, 2) if back else (heads, 2, pairs)
    return rows.reshape(*sides, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def open_file(path: Path) -> "GGUFReader":
    """A GGUF file with its fields and tensors, which stay on the disk until they are asked for.

    Raises:
        CheckpointError: if it is none, or damaged, or the package is missing.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise CheckpointError(
            f"{path} is a GGUF file; reading it needs the gguf package: pip install 'segpt[gguf]'"
        ) from None
    if not is_gguf(path):
        raise CheckpointError(f"{path} is not a GGUF file")
    try:
        return GGUFReader(path)
    except Exception as error:  # noqa: BLE001 - a damaged file fails in as many ways as there are
        raise CheckpointError(f"{path} is damaged: {error!r}; fetch it again") from None


def _shape(fields: Fields, reader: "GGUFReader") -> tuple[Shape, bool]:
    """The shape that the fields say, and whether rows of queries and keys are permuted."""
    family = fields.get("general.architecture")
    if family not in _FAMILIES:
        raise SpecError(f"general.architecture is {family!r}; known: {', '.join(_FAMILIES)}")
    own = {f"{family}.{key}" for key in _READ}
    kind = f"{family}.rope.scaling.type"
    if fields.get(kind, "none") != "none":
        raise SpecError(f"{kind} is {fields[kind]!r}; only 'none' is known")
    for name in fields:
        if name not in own and name != kind and not name.startswith(_ROOMS):
            raise SpecError(f"the field {name!r} is not known")

    def count(key: str, default: int | None = None) -> int:
        value = fields.get(f"{family}.{key}", default)
        if type(value) is not int or value < 1:
            raise SpecError(f"the field {family}.{key} is {str(value)[:60]!r}, expected a number")
        return value

    def number(key: str, default: float | None = None) -> float:
        value = fields.get(f"{family}.{key}", default)
        if not isinstance(value, float) or not value > 0:
            raise SpecError(f"the field {family}.{key} is {str(value)[:60]!r}, expected a number")
        return float(str(np.float32(value)))

    names = {tensor.name for tensor in reader.tensors}
    heads, width = count("attention.head_count"), count("embedding_length")
    size = count("attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if count(key, size) != size:
            raise SpecError(f"{family}.{key} is not the head size, {size}")
    tokens = fields.get("tokenizer.ggml.tokens")
    bias: Literal["none", "qkv", "all"] = "qkv" if family == "qwen2" else "none"
    if family == "llama" and "blk.0.attn_output.bias" in names:
        bias = "all"
    shape = Shape(
        vocab=count("vocab_size", len(tokens) if isinstance(tokens, list) else None),
        width=width,
        hidden=count("feed_forward_length"),
        layers=count("block_count"),
        heads=heads,
        kv_heads=count("attention.head_count_kv", heads),
        head_dim=size,
        context=count("context_length"),
        eps=number("attention.layer_norm_rms_epsilon"),
        base=number("rope.freq_base", 10_000.0),
        tied="output.weight" not in names,
        bias=bias,
        feed_bias=family == "llama" and "blk.0.ffn_down.bias" in names,
        head_norm=family == "qwen3",
    )
    return shape, family == "llama"


def _weights(
    reader: "GGUFReader", wanted: list[Counterpart], llama: Shape | None
) -> dict[str, NDArray[np.float32]]:
    from gguf import dequantize

    stored = {tensor.name: tensor for tensor in reader.tensors}
    if extra := sorted(set(stored) - {name for part in wanted for name in part.gguf}):
        raise CheckpointError(f"holds {extra[0]!r}, which this shape has no place for")
    weights = {}
    for part in wanted:
        pieces = []
        for name in part.gguf:
            if name not in stored:
                raise CheckpointError(f"tensor {name!r} is missing")
            tensor = stored[name]
            size = tuple(int(n) for n in reversed(tensor.shape))
            if size != part.shape:
                raise CheckpointError(f"tensor {name!r} is {size}, expected {part.shape}")
            pieces.append(dequantize(tensor.data, tensor.tensor_type).reshape(size))
        whole = np.concatenate(pieces).astype(np.float32)
        heads = None if llama is None else permuted_heads(part, llama)
        weights[part.weight.name] = (
            whole if heads is None else permuted_rows(whole, heads, back=True)
        )
    return weights


def permuted_heads(part: Counterpart, shape: Shape) -> int | None:
    """How many heads a weight has whose rows llama permutes; None of others."""
    return {"query": shape.heads, "key": shape.kv_heads}.get(part.weight.part.split("_")[0])


def _tokenizer(fields: Fields, start: str | None) -> Tokenizer:
    kind = fields.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise SpecError(
            f"tokenizer.ggml.model is {kind!r}; only gpt2, which is byte-level BPE, is known"
        )
    tokens: Any = fields["tokenizer.ggml.tokens"]
    end = fields.get("tokenizer.ggml.eos_token_id")
    opens: Any = fields.get("tokenizer.ggml.bos_token_id", end)
    if start is not None:
        if start not in tokens:
            raise SpecError(f"--start {start!r} is no token of this model")
        opens = tokens.index(start)
    if opens is None:
        raise SpecError("names no token to begin a document with; choose one with --start")
    merges: Any = fields["tokenizer.ggml.merges"]
    types: Any = fields["tokenizer.ggml.token_type"]
    pre = str(fields.get("tokenizer.ggml.pre", "default"))
    return from_bpe(files.from_gguf_fields(tokens, merges, types, pre, int(opens)))
