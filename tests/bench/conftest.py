"""A tiny checkpoint and its text, for the benchmark of the codec."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from bench.codec import Subject
from bench.measure import HeldOut
from segpt.config.expand import expand
from segpt.config.run_about import RunAbout
from segpt.config.train import Scaling
from segpt.data.tokenizer import BYTES, load
from segpt.data.tokens import write_tokens
from segpt.model.build import build
from segpt.model.params import weights
from segpt.model.scaling import initialise
from segpt.stages.calibrate import in_order
from segpt.stages.open_model import from_checkpoint
from segpt.values import Checkpoint, Text, Tokens

MODEL = {
    "vocab": 257,
    "width": 32,
    "context": 16,
    "depth": 2,
    "head": {"tied": True, "softcap": 30.0},
    "layer": {
        "mixer": {"heads": 2, "kv_heads": 1, "head_dim": 16, "query_key": ["norm"]},
        "feed": {"hidden": 48},
    },
}


class Made(NamedTuple):
    """A checkpoint with the text it claims to be trained on."""

    checkpoint: Checkpoint
    train: Tokens
    validation: Tokens


def _text(name: str, seed: int, documents: int) -> Text:
    generator = np.random.default_rng(seed)
    words = [bytes(generator.integers(97, 123, 5, dtype=np.uint8)) for _ in range(30)]

    def document(number: int) -> bytes:
        chosen = np.random.default_rng([seed, number]).integers(30, size=20 + 7 * number)
        return b" ".join(words[i] for i in chosen)

    return Text(name, lambda: iter([document(i) for i in range(documents)]))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Weights that were not trained, on text that no tokenizer was trained for."""
    place: Path = tmp_path_factory.mktemp("text")
    splits = [
        write_tokens(_text(split, seed, 12), BYTES, place / split, split=split)
        for seed, split in enumerate(("train", "validation"))
    ]
    spec = expand(MODEL)
    model = build(spec)
    initialise(model, Scaling(), seed=0)
    generator = np.random.default_rng(0)
    noise = {
        w.name: (0.2 * generator.standard_normal(w.tensor.shape)).astype(np.float32)
        for w in weights(model)
    }
    checkpoint = Checkpoint(
        spec=spec,
        weights=noise,
        tokenizer=BYTES,
        step=1,
        progress=1.0,
        documents=splits[0].documents,
        origin={"tokens": splits[0].fingerprint},
        about=RunAbout(tokens=16, seconds=1.0, recipe={"train": {"seed": 0}}),
    )
    return Made(checkpoint, *splits)


@pytest.fixture
def subject(made: Made, hold_out: Callable[[Made], HeldOut]) -> Subject:
    """The tiny checkpoint as the benchmark takes it."""
    return Subject(made.checkpoint, made.train, hold_out(made), "cpu")


@pytest.fixture
def hold_out() -> Callable[[Made], HeldOut]:
    """All of the held-out text, as the float model sees it."""

    def make(made: Made) -> HeldOut:
        codec = load(BYTES)
        blocks = in_order(made.validation, made.checkpoint.spec.context, made.validation.count)
        return HeldOut(from_checkpoint(made.checkpoint), blocks, codec.sizes, codec.start)

    return make
