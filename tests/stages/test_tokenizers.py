"""A tokenizer is named by anything that was made with it."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from segpt.config.expand import expand
from segpt.config.layout import layout
from segpt.data.tokenizer import BYTES, from_model_file, train_bpe
from segpt.errors import SegptError
from segpt.stages.checkpoint_io import save_checkpoint
from segpt.stages.pack import pack
from segpt.stages.prepare import prepare
from segpt.stages.quantized_io import save_quantized
from segpt.stages.run_directory import checkpoint_name
from segpt.stages.tokenizers import open_tokenizer, write_tokenizer
from segpt.values import Checkpoint, Float16Weight, Quantized, Text, Tokenizer

WORDS = [b"some words to learn from, and more of them, %d" % i for i in range(50)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(WORDS, 300)


@pytest.fixture(scope="module")
def place(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of everything that is made with a tokenizer."""
    place = tmp_path_factory.mktemp("made")
    texts = [Text("a", lambda: iter(WORDS[:40])), Text("b", lambda: iter(WORDS[40:]))]
    train, _ = prepare(texts[0], texts[1], tokenizer, place / "text")
    spec = expand(
        {
            "vocab": 300,
            "width": 32,
            "context": 16,
            "depth": 1,
            "layer": {
                "mixer": {"heads": 2, "kv_heads": 1, "head_dim": 16},
                "feed": {"hidden": 32},
            },
        }
    )
    weights = {w.name: np.zeros(w.shape, np.float32) for w in layout(spec)}
    checkpoint = Checkpoint(
        spec=spec,
        weights=weights,
        tokenizer=tokenizer,
        step=1,
        progress=1.0,
        documents=train.documents,
        origin={"tokens": train.fingerprint},
    )
    save_checkpoint(place / "run" / checkpoint_name(1), checkpoint)
    coded = {name: Float16Weight(value.astype(np.float16)) for name, value in weights.items()}
    quantized = Quantized(
        spec=spec,
        weights=coded,
        tokenizer=tokenizer,
        origin={"checkpoint": checkpoint.fingerprint},
        documents=None,
    )
    save_quantized(place / "quantized", quantized)
    pack(quantized, place / "model.segpt")
    write_tokenizer(place / "mine.json", tokenizer)
    write_tokenizer(place / "MINE.JSON", tokenizer)
    return place


@pytest.mark.parametrize(
    "name",
    ["text", "text/train", "run", "run/step-00000001", "quantized", "model.segpt", "mine.json"],
)
def test_what_was_made_with_a_tokenizer_names_it(
    place: Path, tokenizer: Tokenizer, name: str
) -> None:
    assert open_tokenizer(str(place / name)) == tokenizer


def test_an_artifact_under_another_name(place: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "best-model"
    path.write_bytes((place / "model.segpt").read_bytes())
    assert open_tokenizer(str(path)) == tokenizer


def test_a_model_file_under_any_name(tmp_path: Path) -> None:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words to learn"] * 20),
        model_writer=written,
        model_type="bpe",
        vocab_size=290,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
    )
    for name in ("a.model", "A.MODEL", "tokenizer"):
        (tmp_path / name).write_bytes(written.getvalue())
        assert open_tokenizer(str(tmp_path / name)) == from_model_file(tmp_path / name)
    assert open_tokenizer("bytes") == BYTES


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", b'{"kind": "bytes", "vocab": 300, "payload": ""}'),
        ("a.json", b'{"kind": "merges", "vocab": 1e400, "payload": ""}'),
        ("a.json", b'{"kind": "merges", "vocab": 300, "payload": "!"}'),
        ("a.json", b'{"kind": "\\ud800", "vocab": 300, "payload": ""}'),
        ("a.json", b'{"vocab": ' + b"9" * 5000 + b"}"),
        ("a.json", b"[" * 100_000),
        ("a.json", b"[]"),
        ("a.model", b"no model"),
        ("a.segpt", b"no artifact"),
        ("a", b""),
    ],
)
def test_what_is_no_tokenizer_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(SegptError, match=name) as caught:
        open_tokenizer(str(path))
    assert "\n" not in str(caught.value)


def test_other_places_are_told_what_is_taken(place: Path, tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "nowhere", Path("/dev/null"), place):
        with pytest.raises(SegptError, match="segpt data prepare"):
            open_tokenizer(str(source))
    damaged = tmp_path / "model.segpt"
    damaged.write_bytes((place / "model.segpt").read_bytes()[:-1] + b"x")
    with pytest.raises(SegptError, match=r"model\.segpt"):
        open_tokenizer(str(damaged))
    header = tmp_path / "quantized" / "header.json"
    header.parent.mkdir()
    header.write_text(json.dumps({"kind": "quantized"}))
    with pytest.raises(SegptError, match="quantized"):
        open_tokenizer(str(header.parent))
