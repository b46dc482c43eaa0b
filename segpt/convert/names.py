"""What each weight of a Llama-shaped model is called elsewhere."""

from dataclasses import dataclass
from typing import Final

from segpt.config.layout import Weight, layout
from segpt.config.model import ModelSpec
from segpt.errors import SpecError

# Of a layer: ours, Hugging Face's and GGUF's; two names are rows one below the other.
_LAYER: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "mixer.gain": (("input_layernorm.weight",), ("attn_norm.weight",)),
    "mixer.body.query": (("self_attn.q_proj.weight",), ("attn_q.weight",)),
    "mixer.body.key": (("self_attn.k_proj.weight",), ("attn_k.weight",)),
    "mixer.body.value": (("self_attn.v_proj.weight",), ("attn_v.weight",)),
    "mixer.body.out": (("self_attn.o_proj.weight",), ("attn_output.weight",)),
    "mixer.body.query_bias": (("self_attn.q_proj.bias",), ("attn_q.bias",)),
    "mixer.body.key_bias": (("self_attn.k_proj.bias",), ("attn_k.bias",)),
    "mixer.body.value_bias": (("self_attn.v_proj.bias",), ("attn_v.bias",)),
    "mixer.body.out_bias": (("self_attn.o_proj.bias",), ("attn_output.bias",)),
    "mixer.body.query_key_parts.0.query_gain": (
        ("self_attn.q_norm.weight",),
        ("attn_q_norm.weight",),
    ),
    "mixer.body.query_key_parts.0.key_gain": (
        ("self_attn.k_norm.weight",),
        ("attn_k_norm.weight",),
    ),
    "feed.gain": (("post_attention_layernorm.weight",), ("ffn_norm.weight",)),
    "feed.body.up": (
        ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        ("ffn_gate.weight", "ffn_up.weight"),
    ),
    "feed.body.down": (("mlp.down_proj.weight",), ("ffn_down.weight",)),
    "feed.body.up_bias": (
        ("mlp.gate_proj.bias", "mlp.up_proj.bias"),
        ("ffn_gate.bias", "ffn_up.bias"),
    ),
    "feed.body.down_bias": (("mlp.down_proj.bias",), ("ffn_down.bias",)),
}
_OUTSIDE: Final[dict[str, tuple[str, str]]] = {
    "table": ("model.embed_tokens.weight", "token_embd.weight"),
    "head.gain": ("model.norm.weight", "output_norm.weight"),
    "head.matrix": ("lm_head.weight", "output.weight"),
}


@dataclass(frozen=True)
class Counterpart:
    """A weight of ours and the tensors that hold it elsewhere, which stack to its rows."""

    weight: Weight
    hugging_face: tuple[str, ...]
    gguf: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of each tensor elsewhere."""
        rows, *rest = self.weight.shape
        return rows // len(self.gguf), *rest


def counterparts(spec: ModelSpec) -> list[Counterpart]:
    """All weights of a Llama-shaped model, in our order.

    Raises:
        SpecError: if it has a weight that has no name elsewhere.
    """
    pairs = []
    for weight in layout(spec):
        if weight.name in _OUTSIDE:
            theirs, gguf = _OUTSIDE[weight.name]
            pairs.append(Counterpart(weight, (theirs,), (gguf,)))
            continue
        _, number, name = weight.name.split(".", 2)
        if weight.layer is None or name not in _LAYER:
            raise SpecError(f"weight {weight.name!r} has no name in other formats")
        names, short = _LAYER[name]
        pairs.append(
            Counterpart(
                weight,
                tuple(f"model.layers.{number}.{part}" for part in names),
                tuple(f"blk.{number}.{part}" for part in short),
            )
        )
    return pairs
