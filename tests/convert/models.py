"""Random models of Hugging Face, small, as transformers saves them."""

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

VOCAB = 300
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rms_norm_eps": 1e-3}),
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3.1": ("Llama", {"rope_parameters": LLAMA3}),
    "mistral": ("Mistral", {"sliding_window": 7}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 20}),
}


def model_directory(place: Path, family: str, dtype: str = "float32", **more: Any) -> Path:
    """A random model of a family with a byte-level tokenizer, as transformers saves it."""
    name, settings = FAMILIES[family]
    sizes = {"vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 80}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0}
    config = getattr(transformers, f"{name}Config")(**(sizes | settings))
    torch.manual_seed(3)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.to(getattr(torch, dtype)).save_pretrained(place, **more)
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    library.train_from_iterator(["the cat sat on the mat and the dog sat too"] * 9, trainer)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=library, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    wrapped.chat_template = "{{ messages }}\n"
    wrapped.save_pretrained(place)
    return place
