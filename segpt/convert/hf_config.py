"""``config.json`` of Llama-shaped models: a closed list of keys, each understood or refused."""

from collections.abc import Mapping
from typing import Final, Literal

from segpt.config.parts import Llama3Scaling
from segpt.errors import SpecError

from .shape import Shape

Table = Mapping[str, object]

FAMILIES: Final = ("llama", "mistral", "qwen2", "qwen3")
_ARCHITECTURES: Final = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_READ: Final = frozenset(
    {
        *("model_type", "architectures", "vocab_size", "hidden_size", "intermediate_size"),
        *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "rope_theta"),
        *("rope_scaling", "rope_parameters", "sliding_window", "use_sliding_window"),
        *("max_window_layers", "layer_types", "hidden_act", "attention_bias", "mlp_bias"),
        *("rope_interleaved", "pretraining_tp"),
    }
)
# What says nothing about what the model computes.
_IDLE: Final = frozenset(
    {
        *("torch_dtype", "dtype", "transformers_version", "initializer_range", "use_cache"),
        *("pad_token_id", "bos_token_id", "eos_token_id", "attention_dropout", "_name_or_path"),
        *("is_llama_config", "transformers.js_config", "return_dict", "output_hidden_states"),
        "output_attentions",
    }
)


def shape_of_config(table: Table) -> Shape:
    """The shape that a config says.

    Raises:
        SpecError: naming the key that is missing, not known, or has a value we do not do.
    """
    family = table.get("model_type")
    if family not in FAMILIES:
        raise _refused("model_type", family, f"known: {', '.join(FAMILIES)}")
    if unknown := sorted(set(table) - _READ - _IDLE):
        raise _refused(unknown[0], table[unknown[0]], "this key is not known")
    if table.get("architectures", [_ARCHITECTURES[family]]) != [_ARCHITECTURES[family]]:
        raise _refused("architectures", table["architectures"], f"not {_ARCHITECTURES[family]}")
    if "quantization_config" in table:
        raise _refused("quantization_config", "...", "give the model that is not quantized")
    for key, only in (("hidden_act", "silu"), ("rope_interleaved", False), ("pretraining_tp", 1)):
        if table.get(key, only) != only:
            raise _refused(key, table[key], f"only {only!r} is known")
    heads, width = _count(table, "num_attention_heads"), _count(table, "hidden_size")
    attention_bias, feed_bias = _flag(table, "attention_bias"), _flag(table, "mlp_bias")
    bias: Literal["none", "qkv", "all"] = "all" if attention_bias else "none"
    if family == "qwen2":
        bias = "qkv"
    if feed_bias and family != "llama":
        raise _refused("mlp_bias", True, "only known of llama")
    if attention_bias and family not in ("llama", "qwen3"):
        raise _refused("attention_bias", True, "only known of llama and qwen3")
    layers = _count(table, "num_hidden_layers")
    window = _window(table, family)
    kinds = table.get("layer_types")
    wanted = "full_attention" if window is None else "sliding_attention"
    if kinds is not None and kinds != [wanted] * layers:
        raise _refused("layer_types", "...", f"only {wanted!r} in all layers is known")
    base, scaling = _rope(table)
    return Shape(
        vocab=_count(table, "vocab_size"),
        width=width,
        hidden=_count(table, "intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=_count(table, "num_key_value_heads", heads if family == "llama" else None),
        head_dim=_count(table, "head_dim", 128 if family == "qwen3" else width // heads),
        context=_count(table, "max_position_embeddings"),
        eps=_number(table, "rms_norm_eps"),
        base=base,
        scaling=scaling,
        window=window,
        tied=_flag(table, "tie_word_embeddings"),
        bias=bias,
        feed_bias=feed_bias,
        head_norm=family == "qwen3",
    )


def family_of(shape: Shape) -> str:
    """The family whose config says this shape.

    Raises:
        SpecError: if none does.
    """
    if shape.head_norm:
        family, fits = "qwen3", shape.bias != "qkv" and not shape.feed_bias and not shape.window
    elif shape.bias == "qkv":
        family, fits = "qwen2", not shape.feed_bias and not shape.window
        fits = fits and shape.head_dim * shape.heads == shape.width
    elif shape.window is not None:
        family, fits = "mistral", shape.bias == "none" and not shape.feed_bias
    else:
        family, fits = "llama", True
    if not fits:
        raise SpecError("no family has this mix of biases, windows and norms of heads")
    return family


def config_of(shape: Shape, start: int, end: int | None) -> dict[str, object]:
    """A config that says a shape, which :func:`shape_of_config` reads back.

    Raises:
        SpecError: if no family has this shape.
    """
    family = family_of(shape)
    rope: dict[str, object] = {"rope_theta": shape.base, "rope_scaling": None}
    if (slow := shape.scaling) is not None:
        rope["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": slow.factor,
            "low_freq_factor": slow.low,
            "high_freq_factor": slow.high,
            "original_max_position_embeddings": slow.context,
        }
    own: dict[str, object] = {}
    if family == "llama":
        own = {"attention_bias": shape.bias == "all", "mlp_bias": shape.feed_bias}
    elif family == "qwen3":
        own = {"attention_bias": shape.bias == "all", "use_sliding_window": False}
    elif family == "qwen2":
        own = {"use_sliding_window": False}
    else:
        own = {"sliding_window": shape.window}
    if family != "qwen2":
        own["head_dim"] = shape.head_dim
    return {
        "architectures": [_ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": shape.vocab,
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.eps,
        "tie_word_embeddings": shape.tied,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "bos_token_id": start,
        "eos_token_id": end,
        **rope,
        **own,
    }


def _window(table: Table, family: str) -> int | None:
    size = table.get("sliding_window")
    if family == "mistral":
        if "sliding_window" not in table:
            raise _refused("sliding_window", None, "it is missing, and mistral needs it said")
        return None if size is None else _count(table, "sliding_window")
    if family == "llama" and size is not None:
        raise _refused("sliding_window", size, "not known of llama")
    if _flag(table, "use_sliding_window"):
        raise _refused("use_sliding_window", True, "layers with different windows are not known")
    return None


def _rope(table: Table) -> tuple[float, Llama3Scaling | None]:
    said = dict(_mapping(table, "rope_parameters"))
    older = dict(_mapping(table, "rope_scaling"))
    if said and older:
        raise _refused("rope_scaling", "...", "it stands beside rope_parameters")
    said = said or older
    base = _number({"rope_theta": 10_000.0, **table, **said}, "rope_theta")
    said.pop("rope_theta", None)
    kind = said.pop("rope_type", said.pop("type", "default"))
    said.pop("type", None)
    if kind == "default" and not said:
        return base, None
    keys = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    if kind != "llama3" or set(said) != keys:
        raise _refused("rope_scaling", kind, f"only default and llama3 with {sorted(keys)}")
    return base, Llama3Scaling(
        factor=_number(said, "factor"),
        low=_number(said, "low_freq_factor"),
        high=_number(said, "high_freq_factor"),
        context=_count(said, "original_max_position_embeddings"),
    )


def _mapping(table: Table, key: str) -> Table:
    value = table.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _refused(key, value, "expected a table")
    return value


def _count(table: Table, key: str, default: int | None = None) -> int:
    value = table.get(key)
    value = default if value is None else value
    if type(value) is not int or value < 1:
        raise _refused(key, value, "expected a whole number above zero")
    return value


def _number(table: Table, key: str) -> float:
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise _refused(key, value, "expected a number above zero")
    return float(value)


def _flag(table: Table, key: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise _refused(key, value, "expected true or false")
    return value


def _refused(key: str, value: object, why: str) -> SpecError:
    return SpecError(f"config key {key!r} is {str(value)[:60]!r}: {why}")
