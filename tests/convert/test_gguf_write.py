"""GGUF files that are written: what was read comes back, and what llama.cpp lacks is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segpt.config.layout import layout
from segpt.config.parts import Llama3Scaling
from segpt.convert import gguf_file, gguf_write
from segpt.convert.gguf_write import NumberType
from segpt.convert.shape import Shape, spec_of
from segpt.data.bpe.as_tokenizer import bpe_model, from_bpe
from segpt.errors import CheckpointError, SpecError
from segpt.values import Tokenizer
from tests.convert.test_gguf import SHAPE, file, logits

gguf = pytest.importorskip("gguf")
pytest.importorskip("tokenizers")
pytestmark = pytest.mark.slow

Arrays = dict[str, NDArray[np.float32]]
SHAPES = {
    "llama": SHAPE,
    "tied": dataclasses.replace(SHAPE, tied=True),
    "biases": dataclasses.replace(SHAPE, bias="all", feed_bias=True),
    "wide heads": dataclasses.replace(SHAPE, head_dim=24),
    "qwen2": dataclasses.replace(SHAPE, bias="qkv"),
    "qwen3": dataclasses.replace(SHAPE, head_norm=True, head_dim=32, base=1e6),
}


def tokenizer(tmp_path: Path) -> Tokenizer:
    file(tmp_path / "tokenizer.gguf")
    return gguf_file.read(tmp_path / "tokenizer.gguf").tokenizer


def random(shape: Shape, scale: float = 0.15) -> Arrays:
    rng = np.random.default_rng(9)
    return {
        weight.name: (rng.normal(size=weight.shape) * scale).astype(np.float32)
        for weight in layout(spec_of(shape, 0))
    }


def stored(path: Path) -> dict[str, Any]:
    """The tensors of a file as they lie in it, by name."""
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_a_file_that_is_read_and_written_has_the_same_tensors(kind: str, tmp_path: Path) -> None:
    file(tmp_path / "a.gguf", kind)
    model = gguf_file.read(tmp_path / "a.gguf")
    number_type: Any = kind.lower()
    done = gguf_write.write(
        tmp_path / "b.gguf", model.spec, model.weights, model.tokenizer, number_type, model.template
    )
    before, after = stored(tmp_path / "a.gguf"), stored(tmp_path / "b.gguf")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.tensor_type == after[name].tensor_type, name
        assert tensor.shape.tolist() == after[name].shape.tolist(), name
        if kind != "Q8_0":
            assert tensor.data.tobytes() == after[name].data.tobytes(), name
    assert done.bytes == (tmp_path / "b.gguf").stat().st_size
    assert done.error == 0 if kind != "Q8_0" else done.error < 1e-3
    again = gguf_file.read(tmp_path / "b.gguf")
    assert (again.spec, again.template) == (model.spec, model.template)
    assert again.tokenizer.payload == model.tokenizer.payload


@pytest.mark.parametrize("name", SHAPES)
def test_every_family_comes_back(name: str, tmp_path: Path) -> None:
    spec, weights = spec_of(SHAPES[name], 0), random(SHAPES[name])
    done = gguf_write.write(tmp_path / "a.gguf", spec, weights, tokenizer(tmp_path))
    back = gguf_file.read(tmp_path / "a.gguf")
    assert back.spec == spec
    assert done.error == 0
    for weight, array in weights.items():
        assert np.array_equal(back.weights[weight], array), weight
    family = gguf.GGUFReader(tmp_path / "a.gguf").fields["general.architecture"].contents()
    assert family == (name if name.startswith("qwen") else "llama")


def test_the_logits_of_the_file_by_definition_are_those_of_the_model(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from segpt.model.build import build, load_weights

    spec, weights = spec_of(SHAPE, 0), random(SHAPE)
    gguf_write.write(tmp_path / "a.gguf", spec, weights, tokenizer(tmp_path))
    model = build(spec).eval()
    load_weights(model, weights)
    ids = [0, 17, 200, 3, 3, 99, 258, 41]
    with torch.inference_mode():
        ours = model.logits(model.hidden(torch.tensor([ids])).x)[0].numpy()
    own = {name: np.asarray(tensor.data) for name, tensor in stored(tmp_path / "a.gguf").items()}
    assert np.abs(ours - logits(own, ids)).max() < 1e-4


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_the_error_is_that_of_the_type(kind: NumberType, tmp_path: Path) -> None:
    weights = random(SHAPE)
    done = gguf_write.write(
        tmp_path / "a.gguf", spec_of(SHAPE, 0), weights, tokenizer(tmp_path), kind
    )
    low, high = {"f16": (1e-5, 1e-3), "bf16": (1e-4, 5e-3), "q8_0": (1e-3, 2e-2)}[kind]
    assert low < done.error < high
    for name, tensor in stored(tmp_path / "a.gguf").items():
        assert tensor.tensor_type.name == (kind.upper() if "norm" not in name else "F32")


def test_ids_without_pieces_and_added_tokens_come_back(tmp_path: Path) -> None:
    model = bpe_model(tokenizer(tmp_path))
    added = len(model.pieces)
    larger = from_bpe(
        dataclasses.replace(
            model, pieces=(*model.pieces, b"<tool>", b"", b""), added=frozenset({added})
        )
    )
    shape = dataclasses.replace(SHAPE, vocab=added + 3)
    gguf_write.write(tmp_path / "a.gguf", spec_of(shape, 0), random(shape), larger)
    assert gguf_file.read(tmp_path / "a.gguf").tokenizer.payload == larger.payload
    kinds = gguf.GGUFReader(tmp_path / "a.gguf").fields["tokenizer.ggml.token_type"].contents()
    assert kinds[-3:] == [4, 5, 5]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"window": 7}, "windows"),
        ({"scaling": Llama3Scaling(factor=8.0, low=1.0, high=4.0, context=16)}, "rope"),
        ({"head_norm": True, "bias": "all"}, "biases"),
    ],
)
def test_shapes_that_are_not_known_are_refused(
    change: dict[str, Any], word: str, tmp_path: Path
) -> None:
    shape = dataclasses.replace(SHAPE, **change)
    with pytest.raises(SpecError, match=word):
        gguf_write.write(tmp_path / "a.gguf", spec_of(shape, 0), random(shape), tokenizer(tmp_path))
    assert not (tmp_path / "a.gguf").exists()


def test_tokenizers_that_would_cut_otherwise_are_refused(tmp_path: Path) -> None:
    model = bpe_model(tokenizer(tmp_path))
    for change, word in (({"pattern": "digits"}, "digits"), ({"whole_words": True}, "whole")):
        changed = from_bpe(dataclasses.replace(model, **change))
        with pytest.raises(SpecError, match=word):
            gguf_write.write(tmp_path / "a.gguf", spec_of(SHAPE, 0), random(SHAPE), changed)


def test_numbers_that_a_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    words, path = tokenizer(tmp_path), tmp_path / "a.gguf"
    path.write_bytes(b"before")
    weights = random(SHAPE)
    weights["table"][3, 3] = 1e6
    with pytest.raises(SpecError, match=r"token_embd\.weight.*f16"):
        gguf_write.write(path, spec_of(SHAPE, 0), weights, words, "f16")
    weights["table"][3, 3] = np.nan
    with pytest.raises(CheckpointError, match="finite"):
        gguf_write.write(path, spec_of(SHAPE, 0), weights, words)
    narrow = dataclasses.replace(SHAPE, hidden=80)
    with pytest.raises(SpecError, match=r"ffn_down\.weight.*80"):
        gguf_write.write(path, spec_of(narrow, 0), random(narrow), words, "q8_0")
    assert path.read_bytes() == b"before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "tokenizer.gguf"]


def test_rows_that_are_not_permuted_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpermuted(*_: object) -> None:
        return None

    monkeypatch.setattr(gguf_write, "permuted_heads", unpermuted)
    done = gguf_write.write(
        tmp_path / "a.gguf", spec_of(SHAPE, 0), random(SHAPE), tokenizer(tmp_path)
    )
    assert done.error > 0.1


def test_a_file_that_was_not_written_whole_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tokenizer(tmp_path)
    close = gguf.GGUFWriter.close

    def close_damaged(writer: Any) -> None:
        close(writer)
        path = writer.path
        data = bytearray(path.read_bytes())
        data[-1000] ^= 1
        path.write_bytes(data)

    monkeypatch.setattr(gguf.GGUFWriter, "close", close_damaged)
    with pytest.raises(CheckpointError, match="not written as it is"):
        gguf_write.write(tmp_path / "a.gguf", spec_of(SHAPE, 0), random(SHAPE), words)
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", lambda *_: None)
    monkeypatch.setattr(gguf.GGUFWriter, "close", close)
    with pytest.raises(CheckpointError, match="damaged"):
        gguf_write.write(tmp_path / "a.gguf", spec_of(SHAPE, 0), random(SHAPE), words)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.gguf"]
