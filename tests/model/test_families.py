"""Models of other families, written as specs, against ``transformers`` with the same weights."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt.config.expand import expand
from segpt.errors import DataError
from segpt.model.build import build, load_weights
from segpt.model.cache import KVCache
from segpt.model.model import Model

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

Arrays = dict[str, NDArray[Any]]
VOCAB, WIDTH, HIDDEN, LAYERS, TIME = 71, 48, 80, 3, 40


@dataclass(frozen=True)
class Family:
    """What a family's config and class are called, what is set, and what our spec says of it."""

    name: str
    settings: dict[str, Any]
    mixer: dict[str, Any]
    layer: dict[str, Any] = field(default_factory=dict)
    feed: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)


def rope(dims: int, **more: Any) -> dict[str, Any]:
    return {"kind": "rope", "dims": dims, "turn": "left"} | more


NORMED = [{"kind": "norm", "gain": True}, rope(20)]
SLOWED = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
SLOWED |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
SCALING = {"kind": "llama3_scaling", "factor": 8.0, "low": 1.0, "high": 4.0, "context": 16}
FAMILIES = {
    "llama": Family(
        "Llama",
        {"rms_norm_eps": 1e-2, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"query_key": [rope(12, base=500.0)]},
        model={"norm_eps": 1e-2},
    ),
    "llama tied": Family(
        "Llama",
        {"rms_norm_eps": 1e-6, "tie_word_embeddings": True},
        {"query_key": [rope(12)]},
        model={"norm_eps": 1e-6},
    ),
    "llama 3.1": Family(
        "Llama",
        {"rope_parameters": SLOWED},
        {"query_key": [rope(12, scaling=SCALING)]},
        model={"norm_eps": 1e-6},
    ),
    "qwen 2": Family(
        "Qwen2", {}, {"query_key": [rope(12)], "bias": "qkv"}, model={"norm_eps": 1e-6}
    ),
    "qwen 3": Family(
        "Qwen3",
        {"head_dim": 20, "rms_norm_eps": 1e-3},
        {"query_key": NORMED, "head_dim": 20},
        model={"norm_eps": 1e-3},
    ),
    "mistral": Family(
        "Mistral",
        {"sliding_window": 7, "head_dim": 12, "attn_implementation": "eager"},
        {"query_key": [rope(12)], "window": 7},
        model={"norm_eps": 1e-6},
    ),
    "gemma": Family(
        "Gemma",
        {"head_dim": 16, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True},
        {"query_key": [rope(16)], "head_dim": 16},
        feed={"act": "geglu_tanh"},
        model={"norm_eps": 1e-6, "embed": [{"kind": "token", "norm": False, "scale": WIDTH**0.5}]},
    ),
    "gpt 2": Family(
        "GPT2",
        {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_inner": HIDDEN, "n_positions": TIME},
        {"kv_heads": 4, "bias": "all"},
        {"shift": True},
        {"act": "gelu_tanh", "bias": True},
        {
            "norm": "layer",
            "norm_eps": 1e-5,
            "embed": [{"kind": "token", "norm": False}, {"kind": "position", "count": TIME}],
            "head": {"softcap": None, "gain": True, "shift": True},
        },
    ),
}


def theirs(family: Family) -> Any:
    """A random model of the family, no weight of which is zero or one."""
    settings: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    if family.name == "GPT2":
        settings = {"vocab_size": VOCAB}
    config = getattr(transformers, f"{family.name}Config")(**(settings | family.settings))
    torch.manual_seed(1)
    suffix = "LMHeadModel" if family.name == "GPT2" else "ForCausalLM"
    model = getattr(transformers, family.name + suffix)(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    return model


def ours(family: Family, model: Any) -> Model:
    """Our model of the family, with the weights of ``model``."""
    tied = model.config.tie_word_embeddings
    mixer = {"heads": 4, "kv_heads": 2, "head_dim": 12} | family.mixer
    feed = {"hidden": HIDDEN, "act": "swiglu"} | family.feed
    recipe = {
        "vocab": VOCAB,
        "width": WIDTH,
        "context": TIME,
        "depth": LAYERS,
        "embed": [{"kind": "token", "norm": False}],
        "head": {"softcap": None, "gain": True, "tied": tied},
        "layer": {"gain": "input", "mixer": mixer, "feed": feed} | family.layer,
    }
    arrays = {name: x.detach().numpy() for name, x in model.state_dict().items()}
    mapped = gpt2_weights if family.name == "GPT2" else llama_weights
    mine = build(expand(recipe | family.model))
    load_weights(mine, mapped(arrays, gain=float(family.name == "Gemma"), tied=tied))
    return mine.eval()


def llama_weights(arrays: Arrays, *, gain: float, tied: bool) -> Arrays:
    """Our names of weights as Llama and its children name them; ``gain`` is added to norms."""
    mapped = {"table": arrays["model.embed_tokens.weight"]}
    mapped["head.gain"] = arrays["model.norm.weight"] + gain
    if not tied:
        mapped["head.matrix"] = arrays["lm_head.weight"]
    for i in range(LAYERS):
        old, new = f"model.layers.{i}.", f"layers.{i}."
        mapped[f"{new}mixer.gain"] = arrays[f"{old}input_layernorm.weight"] + gain
        mapped[f"{new}feed.gain"] = arrays[f"{old}post_attention_layernorm.weight"] + gain
        for ours, name in zip(("query", "key", "value", "out"), "qkvo", strict=True):
            mapped[f"{new}mixer.body.{ours}"] = arrays[f"{old}self_attn.{name}_proj.weight"]
            if f"{old}self_attn.{name}_proj.bias" in arrays:
                bias = arrays[f"{old}self_attn.{name}_proj.bias"]
                mapped[f"{new}mixer.body.{ours}_bias"] = bias
        for ours, name in (("query", "q"), ("key", "k")):
            if f"{old}self_attn.{name}_norm.weight" in arrays:
                part = f"{new}mixer.body.query_key_parts.0.{ours}_gain"
                mapped[part] = arrays[f"{old}self_attn.{name}_norm.weight"]
        halves = [arrays[f"{old}mlp.{name}_proj.weight"] for name in ("gate", "up")]
        mapped[f"{new}feed.body.up"] = np.concatenate(halves)
        mapped[f"{new}feed.body.down"] = arrays[f"{old}mlp.down_proj.weight"]
    return mapped


def gpt2_weights(arrays: Arrays, *, gain: float, tied: bool) -> Arrays:
    """Our names of GPT-2's weights, whose matrices are (in, out)."""
    assert tied
    mapped = {"table": arrays["transformer.wte.weight"]}
    mapped["embed.1.rows"] = arrays["transformer.wpe.weight"]
    mapped["head.gain"] = arrays["transformer.ln_f.weight"] + gain
    mapped["head.shift"] = arrays["transformer.ln_f.bias"]
    for i in range(LAYERS):
        old, new = f"transformer.h.{i}.", f"layers.{i}."
        for branch, norm in (("mixer", "ln_1"), ("feed", "ln_2")):
            mapped[f"{new}{branch}.gain"] = arrays[f"{old}{norm}.weight"]
            mapped[f"{new}{branch}.shift"] = arrays[f"{old}{norm}.bias"]
        thirds = np.split(arrays[f"{old}attn.c_attn.weight"].T, 3)
        biases = np.split(arrays[f"{old}attn.c_attn.bias"], 3)
        for ours, third, bias in zip(("query", "key", "value"), thirds, biases, strict=True):
            mapped[f"{new}mixer.body.{ours}"] = third
            mapped[f"{new}mixer.body.{ours}_bias"] = bias
        for ours, name in (
            ("mixer.body.out", "attn.c_proj"),
            ("feed.body.up", "mlp.c_fc"),
            ("feed.body.down", "mlp.c_proj"),
        ):
            mapped[new + ours] = arrays[f"{old}{name}.weight"].T
            mapped[f"{new}{ours}_bias"] = arrays[f"{old}{name}.bias"]
    return mapped


def drawn() -> Tensor:
    """Token ids (2, TIME)."""
    return torch.randint(VOCAB, (2, TIME), generator=torch.Generator().manual_seed(2))


def far(mine: Tensor, other: Tensor) -> tuple[float, float]:
    """The mean and the largest difference of logits (batch, time, vocab)."""
    difference = (mine - other).abs()
    return float(difference.mean()), float(difference.max())


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_logits_are_those_of_transformers(name: str) -> None:
    model, ids = theirs(FAMILIES[name]), drawn()
    expected = model(ids).logits
    assert float(expected.std()) > 0.1
    mean, most = far(ours(FAMILIES[name], model)(ids), expected)
    assert mean < 2e-5
    assert most < 5e-4


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_cache_gives_what_the_whole_text_gives(name: str) -> None:
    model, ids = ours(FAMILIES[name], theirs(FAMILIES[name])), drawn()
    cache: KVCache = {}
    parts = [model(ids[:, :9], cache)]
    parts += [model(ids[:, i : i + 1], cache, i) for i in range(9, TIME)]
    assert far(torch.cat(parts, 1), model(ids))[1] < 1e-4


CHANGES: dict[str, Callable[[Family], Family]] = {
    "eps": lambda f: replace(f, model=f.model | {"norm_eps": None}),
    "llama": lambda f: replace(f, mixer={"query_key": [rope(12)]}),
    "llama 3.1": lambda f: replace(f, mixer={"query_key": [rope(12)]}),
    "mistral": lambda f: replace(f, mixer=f.mixer | {"window": 8}),
    "gpt 2": lambda f: replace(f, feed=f.feed | {"act": "gelu"}),
    "gemma": lambda f: replace(f, feed={"act": "swiglu"}),
}


@pytest.mark.parametrize("name", CHANGES)
@torch.no_grad()
def test_a_wrong_detail_is_seen(name: str) -> None:
    family = FAMILIES["llama" if name == "eps" else name]
    model, ids = theirs(family), drawn()
    mean, most = far(ours(CHANGES[name](family), model)(ids), model(ids).logits)
    assert mean > 2e-5 or most > 5e-4


@torch.no_grad()
def test_learned_positions_end() -> None:
    family = FAMILIES["gpt 2"]
    model, ids = ours(family, theirs(family)), drawn()
    with pytest.raises(DataError, match=f"learned {TIME} positions.*position {TIME + 1}"):
        model(torch.cat([ids, ids[:, :1]], 1))
    cache: KVCache = {}
    model(ids, cache)
    with pytest.raises(DataError, match=f"learned {TIME} positions"):
        model(ids[:, :1], cache, TIME)
