"""Training on linked files of ids gives the weights of training on the text prepared here."""

import itertools
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.config.recipe import read_recipe
from segpt.data.tokenizer import BYTES
from segpt.data.tokens import ids
from segpt.stages.checkpoint_io import read_checkpoint
from segpt.stages.link import link
from segpt.stages.prepare import prepare
from segpt.train.mesh import Mesh
from segpt.values import Checkpoint, Text, Tokens, arrays_digest
from tests.stages.running import train
from tests.stages.test_mixed_run import RECIPE

pytestmark = pytest.mark.slow

Splits = tuple[Tokens, Tokens]
Ids = NDArray[np.int64]
Write = Callable[[Path, Ids], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linked")
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Splits:
    def text_of(name: str) -> Text:
        documents = [f"{name} {i} comes before {i + 1}. ".encode() * 3 for i in range(40)]
        return Text(name, partial(iter, documents))

    return prepare(text_of("a"), text_of("b"), BYTES, folder / "prepared")


def run(folder: Path, splits: Splits, name: str, *, resume: Checkpoint | None = None) -> Checkpoint:
    recipe = read_recipe(str(folder / "tiny.yaml"))
    mesh = Mesh(0, 1, torch.device("cpu"))
    return read_checkpoint(train(recipe, *splits, folder / name, mesh, resume=resume), state=True)


@pytest.fixture(scope="module")
def expected(folder: Path, prepared: Splits) -> Checkpoint:
    return run(folder, prepared, "from-prepared")


def _shard(magic: int, version: int, dtype: str) -> Write:
    def write(path: Path, stream: Ids) -> None:
        head = struct.pack("<256i", magic, version, len(stream), *[0] * 253)
        path.write_bytes(head + stream.astype(dtype).tobytes())

    return write


def _headerless(path: Path, stream: Ids) -> None:
    path.write_bytes(stream.astype("<u2").tobytes())


FORMS: dict[str, tuple[str, str | None, Write]] = {
    "modded-nanogpt": (".bin", None, _shard(20240520, 1, "<u2")),
    "llm.c": (".bin", None, _shard(20240801, 1, "<u2")),
    "wide llm.c": (".bin", None, _shard(20240801, 7, "<u4")),
    "nanoGPT": (".bin", "uint16", _headerless),
    "numpy": (".npy", None, np.save),
}


def linked(folder: Path, prepared: Splits, form: str) -> Splits:
    """The ids of the prepared text in files of another program, three of them for training."""
    ending, id_type, write = FORMS[form]
    files: list[list[Path]] = []
    for tokens, cuts in zip(prepared, ([0, 700, 1900, None], [0, None]), strict=True):
        stream = ids(tokens).slice(0, tokens.count)
        paths = [folder / f"{form}-{tokens.split}-{i}{ending}" for i in range(len(cuts) - 1)]
        for path, (begin, end) in zip(paths, itertools.pairwise(cuts), strict=True):
            write(path, stream[begin:end])
        files.append(paths)
    return link(files[0], files[1], BYTES, folder / f"{form} text", id_type=id_type, source={})


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_the_same(
    folder: Path, prepared: Splits, expected: Checkpoint, form: str
) -> None:
    splits = linked(folder, prepared, form)
    made = run(folder, splits, f"from {form}")
    assert arrays_digest(made.weights) == arrays_digest(expected.weights)
    assert made.documents is not None
    assert expected.documents is not None
    assert made.documents.tolist() == expected.documents.tolist()
    assert made.about.text is not None
    assert made.about.text.place == str((folder / f"{form} text").absolute())
    assert sorted(p.name for p in (folder / f"{form} text").iterdir()) == [
        "source.json",
        "train",
        "validation",
    ]


def test_a_run_on_linked_files_goes_on(
    folder: Path, prepared: Splits, expected: Checkpoint
) -> None:
    splits = linked(folder, prepared, "llm.c")
    run(folder, splits, "whole")
    middle = read_checkpoint(sorted((folder / "whole").glob("step-*"))[5], state=True)
    assert 0 < middle.step < expected.step
    again = run(folder, splits, "again", resume=middle)
    assert arrays_digest(again.weights) == arrays_digest(expected.weights)
