"""GGUF files: dequantized, rows of queries and keys in our order, fields checked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segpt.convert import gguf_file
from segpt.convert.names import counterparts
from segpt.convert.shape import Shape, spec_of
from segpt.errors import CheckpointError, SegptError, SpecError

gguf = pytest.importorskip("gguf")
pytest.importorskip("tokenizers")
pytestmark = pytest.mark.slow

Arrays = dict[str, NDArray[np.float32]]
SHAPE = Shape(
    vocab=260,
    width=64,
    hidden=96,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    context=32,
    eps=1e-5,
    base=5000.0,
)


def file(path: Path, kind: str = "F32", scale: float = 1.0, **fields: Any) -> Arrays:
    """A random llama as a GGUF file; its tensors before they are quantized."""
    from segpt.data.bpe.model import in_letters

    rng = np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(SHAPE.layers)
    writer.add_context_length(SHAPE.context)
    writer.add_embedding_length(SHAPE.width)
    writer.add_feed_forward_length(SHAPE.hidden)
    writer.add_head_count(SHAPE.heads)
    writer.add_head_count_kv(SHAPE.kv_heads)
    writer.add_layer_norm_rms_eps(SHAPE.eps)
    writer.add_rope_freq_base(SHAPE.base)
    writer.add_rope_dimension_count(SHAPE.head_dim)
    writer.add_vocab_size(SHAPE.vocab)
    for name, value in fields.items():
        writer.add_string(name, value)
    letters = [in_letters(bytes([i])) for i in range(256)]
    pieces = ["<s>", *letters, "ab", "cd", "abcd"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(pieces)
    writer.add_token_types([3] + [1] * 259)
    writer.add_token_merges(["a b", "c d", "ab cd"])
    writer.add_bos_token_id(0)
    writer.add_chat_template("{{ messages }}")
    own: Arrays = {}
    for part in counterparts(spec_of(SHAPE, 0)):
        for name in part.gguf:
            own[name] = (rng.normal(size=part.shape) * scale).astype(np.float32)
            packing = gguf.GGMLQuantizationType[kind if len(part.shape) > 1 else "F32"]
            writer.add_tensor(name, gguf.quantize(own[name], packing), raw_dtype=packing)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return own


def test_weights_tokenizer_and_template_are_those_of_the_file(tmp_path: Path) -> None:
    own = file(tmp_path / "a.gguf")
    model = gguf_file.read(tmp_path / "a.gguf")
    assert model.spec == spec_of(SHAPE, 0)
    assert model.template == b"{{ messages }}"
    up = np.concatenate([own["blk.1.ffn_gate.weight"], own["blk.1.ffn_up.weight"]])
    assert np.array_equal(model.weights["layers.1.feed.body.up"], up)
    query = model.weights["layers.0.mixer.body.query"]
    assert not np.array_equal(query, own["blk.0.attn_q.weight"])
    assert np.array_equal(gguf_file.permuted_rows(query, SHAPE.heads), own["blk.0.attn_q.weight"])
    head = query[: SHAPE.head_dim]
    assert np.array_equal(head[1], own["blk.0.attn_q.weight"][2])


def normed(x: NDArray[np.float64], gain: NDArray[np.float32]) -> NDArray[np.float64]:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + SHAPE.eps) * gain


def turned(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Heads (time, heads, channels) with neighbours turned by their position, as llama.cpp does."""
    time, _, size = x.shape
    angle = np.outer(np.arange(time), SHAPE.base ** (-np.arange(0, size, 2) / size))[:, None]
    out = np.empty_like(x)
    out[..., ::2] = x[..., ::2] * np.cos(angle) - x[..., 1::2] * np.sin(angle)
    out[..., 1::2] = x[..., ::2] * np.sin(angle) + x[..., 1::2] * np.cos(angle)
    return out


def logits(own: Arrays, ids: list[int]) -> NDArray[np.float64]:
    """A llama by its definition, on the tensors as they lie in the file (time, vocab)."""
    x = own["token_embd.weight"][ids].astype(np.float64)
    time = len(ids)
    for i in range(SHAPE.layers):
        at = {n.split(".", 2)[2]: w for n, w in own.items() if n.startswith(f"blk.{i}.")}
        n = normed(x, at["attn_norm.weight"])
        q, k, v = (
            (n @ at[f"attn_{name}.weight"].T).reshape(time, -1, SHAPE.head_dim) for name in "qkv"
        )
        q, k = turned(q), turned(k)
        share = SHAPE.heads // SHAPE.kv_heads
        heads = []
        for h in range(SHAPE.heads):
            a = q[:, h] @ k[:, h // share].T / np.sqrt(SHAPE.head_dim)
            a = np.exp(np.where(np.tri(time, dtype=bool), a, -np.inf))
            heads.append(a / a.sum(-1, keepdims=True) @ v[:, h // share])
        x = x + np.concatenate(heads, 1) @ at["attn_output.weight"].T
        n = normed(x, at["ffn_norm.weight"])
        gate = n @ at["ffn_gate.weight"].T
        up = gate / (1 + np.exp(-gate)) * (n @ at["ffn_up.weight"].T)
        x = x + up @ at["ffn_down.weight"].T
    return normed(x, own["output_norm.weight"]) @ own["output.weight"].T


def test_the_logits_are_those_of_the_definition(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from segpt.model.build import build, load_weights

    own = file(tmp_path / "a.gguf", scale=0.15)
    read = gguf_file.read(tmp_path / "a.gguf")
    model = build(read.spec).eval()
    load_weights(model, read.weights)
    ids = [0, 17, 200, 3, 3, 99, 258, 41]
    with torch.inference_mode():
        mine = model.logits(model.hidden(torch.tensor([ids])).x)[0].numpy()
    assert np.abs(mine - logits(own, ids)).max() < 1e-4


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_quantized_tensors_become_what_they_stand_for(kind: str, tmp_path: Path) -> None:
    own = file(tmp_path / "a.gguf", kind)
    weights = gguf_file.read(tmp_path / "a.gguf").weights
    packing = gguf.GGMLQuantizationType[kind]
    out = own["blk.0.attn_output.weight"]
    stands = gguf.dequantize(gguf.quantize(out, packing), packing).reshape(out.shape)
    assert np.array_equal(weights["layers.0.mixer.body.out"], stands)


def test_fields_that_are_not_known_are_refused_by_name(tmp_path: Path) -> None:
    gating: dict[str, Any] = {"llama.expert_gating": "yes"}
    scaling: dict[str, Any] = {"llama.rope.scaling.type": "yarn"}
    file(tmp_path / "a.gguf", **gating)
    with pytest.raises(SpecError, match=r"llama\.expert_gating"):
        gguf_file.read(tmp_path / "a.gguf")
    file(tmp_path / "b.gguf", **scaling)
    with pytest.raises(SpecError, match="yarn"):
        gguf_file.read(tmp_path / "b.gguf")


def test_damaged_files_are_one_error(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    file(path)
    whole = path.read_bytes()
    for size in (3, 8, 40, 2000, len(whole) - 40):
        path.write_bytes(whole[:size])
        with pytest.raises(SegptError, match=r"a\.gguf"):
            gguf_file.read(path)
    path.write_bytes(b"GGUF" + b"\xff" * 400)
    with pytest.raises(CheckpointError, match="damaged"):
        gguf_file.read(path)
