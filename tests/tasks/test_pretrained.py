"""Foreign checkpoints as they are found: incomplete, wrapped, with other caches and limits."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from segpt.errors import ScoreError
from segpt.tasks.continuations import continuations
from segpt.tasks.subject import of_hugging_face
from tests.tasks.test_continuations import examples, expected, save

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

Weights = dict[str, torch.Tensor]
SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 48,
}
MAMBA = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SIZES),
    "sliding": ("MistralConfig", SIZES | {"sliding_window": 6}),
    "mamba": ("MambaConfig", MAMBA | {"state_size": 4}),
    "mamba2": (
        "Mamba2Config",
        MAMBA | {"state_size": 8, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
    ),
    "jamba": (
        "JambaConfig",
        SIZES
        | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 4}
        | {"mamba_dt_rank": 4, "use_mamba_kernels": False, "pad_token_id": 0},
    ),
    "bamba": (
        "BambaConfig",
        SIZES
        | {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 4}
        | {"attn_layer_indices": [1], "pad_token_id": 0},
    ),
    "minimax": (
        "MiniMaxConfig",
        SIZES
        | {"head_dim": 8, "block_size": 4, "num_local_experts": 2, "num_experts_per_tok": 1}
        | {"pad_token_id": 0},
    ),
    "mpt": ("MptConfig", {"vocab_size": 32, "d_model": 16, "n_layers": 2, "n_heads": 2}),
}
FAMILIES["mpt"][1].update(max_seq_len=48, expansion_ratio=2)


def written(place: Path, family: str) -> Any:
    """A random model of a family, beside a tokenizer of letters."""
    transformers = pytest.importorskip("transformers")
    save(place, "gpt2", start="bos_token")  # whose weights are replaced
    name, sizes = FAMILIES[family]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**sizes))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4.0)
    model.save_pretrained(place)
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_cache_gives_the_numbers_of_full_passes(tmp_path: Path, family: str) -> None:
    model = written(tmp_path, family)
    who: Any = of_hugging_face(tmp_path)
    assert who.forward.reuses == (family in ("llama", "mpt"))
    assert who.context == (None if family.startswith("mamba") else 48)
    requests = examples(8, longest=60)
    wanted = [
        [
            expected(lambda ids: model(ids, use_cache=False).logits, request, who.context)
            for request in each
        ]
        for each in requests
    ]
    for found, want in zip(chain(*continuations(who, requests)), chain(*wanted), strict=True):
        assert found[1:] == want[1:]
        assert found.nats == pytest.approx(want.nats, rel=1e-4)


def rewrite(place: Path, change: Callable[[Weights], Weights]) -> None:
    from safetensors.torch import load_file, save_file

    changed = change(load_file(place / "model.safetensors"))
    save_file(changed, place / "model.safetensors", metadata={"format": "pt"})


def renamed(before: str) -> Callable[[Weights], Weights]:
    return lambda weights: {before + name: value for name, value in weights.items()}


@pytest.mark.parametrize(
    "before", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_names_of_compiled_and_parallel_models_are_understood(tmp_path: Path, before: str) -> None:
    model = save(tmp_path, "gpt2", start="bos_token")
    rewrite(tmp_path, renamed(before))
    who: Any = of_hugging_face(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, who.model.state_dict()[name]), name


def test_names_of_a_compiled_part_are_understood(tmp_path: Path) -> None:
    model = save(tmp_path, "gpt2", start="bos_token")
    rewrite(tmp_path, lambda w: {k.replace(".h.1.", ".h.1._orig_mod."): v for k, v in w.items()})
    who: Any = of_hugging_face(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, who.model.state_dict()[name]), name


SPOILT: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "a layer is missing": (
        lambda w: {k: v for k, v in w.items() if ".h.1." not in k},
        r"12 missing \(transformer\.h\.1\.attn\.c_attn\.bias, .*, and 9 more\)",
    ),
    "one is missing": (
        lambda w: {k: v for k, v in w.items() if "wpe" not in k},
        r"1 missing \(transformer\.wpe\.weight\)",
    ),
    "one is too many": (
        lambda w: w | {"transformer.h.7.extra": torch.ones(3)},
        r"1 not of this model \(transformer\.h\.7\.extra\)",
    ),
    "one has another shape": (
        lambda w: {k: v[:20].clone() if "wte" in k else v for k, v in w.items()},
        r"1 of another shape \(transformer\.wte\.weight: \(20, 16\), not \(32, 16\)\)",
    ),
    "none is known": (renamed("somebodys."), r"26 missing|missing \("),
}


@pytest.mark.parametrize("what", SPOILT)
def test_weights_that_are_not_in_the_files_are_named(tmp_path: Path, what: str) -> None:
    save(tmp_path, "gpt2", start="bos_token")
    change, message = SPOILT[what]
    rewrite(tmp_path, change)
    with pytest.raises(ScoreError, match=message) as refused:
        of_hugging_face(tmp_path)
    assert "\n" not in str(refused.value)


def test_tied_weights_and_masks_are_neither_missing_nor_too_many(tmp_path: Path) -> None:
    save(tmp_path, "gpt2", start="bos_token")
    mask = torch.ones(1, 1, 48, 48).tril()
    extra = {
        "transformer.h.0.attn.bias": mask,
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    }
    rewrite(tmp_path, lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"} | extra)
    assert of_hugging_face(tmp_path).vocab == 32


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save(tmp_path, "gpt2", start="bos_token")
    sizes = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
    config = transformers.BertConfig(**sizes)
    model = transformers.BertLMHeadModel(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(10.0)
    model.save_pretrained(tmp_path)
    with pytest.raises(ScoreError, match="depends on the tokens that come later"):
        of_hugging_face(tmp_path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda place: (place / "model.safetensors").write_bytes(b"\xff" * 20),
        lambda place: (place / "config.json").write_text("{"),
        lambda place: (place / "config.json").write_text('{"model_type": "no such"}'),
        lambda place: (place / "config.json").write_text('{"model_type": "t5"}'),
        lambda place: (place / "tokenizer.json").write_text("[]"),
        lambda place: (place / "model.safetensors").unlink(),
    ],
    ids=range(6),
)
def test_what_the_library_raises_is_one_line(tmp_path: Path, spoil: Callable[[Path], Any]) -> None:
    save(tmp_path, "gpt2", start="bos_token")
    spoil(tmp_path)
    with pytest.raises(ScoreError, match="not a causal language model that") as refused:
        of_hugging_face(tmp_path)
    assert "\n" not in str(refused.value)


def test_an_error_while_it_runs_is_one_line(tmp_path: Path) -> None:
    save(tmp_path, "gpt2", start="bos_token")
    who: Any = of_hugging_face(tmp_path)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: of some kind\nCompile with ...")

    who.model.forward = broken
    with pytest.raises(ScoreError, match=r"and run \(CUDA error: of some kind\)"):
        continuations(who, examples(2))


@pytest.mark.parametrize(
    ("config", "limit", "expect"),
    [
        ({"max_position_embeddings": 64}, 10**30, 64),
        ({"n_positions": 64}, 32, 64),
        ({"max_seq_len": 64}, 10**30, 64),
        ({"n_ctx": 64}, 10**30, 64),
        ({"seq_length": 64}, 10**30, 64),
        ({"n_ctx": 64, "n_positions": 48}, 10**30, 48),
        ({}, 64, 64),
        ({}, 10**30, None),
        ({"max_position_embeddings": None, "n_positions": True, "n_ctx": "64"}, None, None),
        ({"max_position_embeddings": 64, "rope_scaling": {"type": "linear", "factor": 4.0}},
         10**30, 256),
        ({"max_position_embeddings": 64, "rope_scaling": {"rope_type": "default"}}, 10**30, 64),
        ({"max_position_embeddings": 128, "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
         10**30, 128),
        ({"max_position_embeddings": 32, "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
         10**30, 128),
    ],
)  # fmt: skip
def test_limits_have_many_names(config: dict[str, Any], limit: Any, expect: int | None) -> None:
    from segpt.tasks.pretrained import context_of

    tokenizer = SimpleNamespace(model_max_length=limit)
    assert context_of(SimpleNamespace(**config), tokenizer) == expect
