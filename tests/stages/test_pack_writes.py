"""Pack writes two files: a kill leaves the old pair or the new one, and both can be read."""

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segpt.artifact.container import unpack
from segpt.config.layout import layout
from segpt.errors import DataError, SegptError
from segpt.stages.pack import documents_path, pack, read_artifact
from segpt.values import Float16Weight, Quantized, Tokenizer, documents_digest
from tests.leaderboard.small_records import model_spec


def model(seed: int, *, listed: bool = True) -> Quantized:
    """A model that was trained on documents of its own."""
    spec, generator = model_spec(), np.random.default_rng(seed)
    weights = {
        w.name: Float16Weight(generator.normal(size=w.shape).astype(np.float16))
        for w in layout(spec)
    }
    documents = np.arange(seed, seed + 3, dtype=np.uint64)
    origin = {"documents": documents_digest(documents), "seed": str(seed)}
    tokenizer = Tokenizer("bytes", 257)
    return Quantized(spec, weights, tokenizer, origin, None, documents if listed else None)


class Killed(BaseException):
    """Nothing handles it, as nothing handles a kill."""


def kill() -> None:
    raise Killed


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def at_call(k: int, fault: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    count = itertools.count(1)
    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
        call = getattr(owner, name)

        def step(*args: Any, call: Callable[..., Any] = call, **named: Any) -> Any:
            if next(count) == k:
                fault()
            return call(*args, **named)

        patch.setattr(owner, name, step)


def seed_of(path: Path) -> str:
    """Which model an artifact holds, with the list of that model and of no other."""
    artifact = read_artifact(path)
    seed = unpack(artifact).origin["seed"]
    if artifact.documents is not None:
        assert list(artifact.documents) == [int(seed), int(seed) + 1, int(seed) + 2]
    return seed


@pytest.mark.slow
@pytest.mark.parametrize("fault", [kill, full])
@pytest.mark.parametrize("listed", [True, False])
def test_an_interrupted_pack_leaves_a_pair(
    tmp_path: Path, fault: Callable[[], None], listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.segpt"
    old, new, third = model(1), model(2, listed=listed), model(3)
    seen = set()
    for k in range(1, 12):
        for place in (out, documents_path(out)):
            place.unlink(missing_ok=True)
        pack(old, out)
        with monkeypatch.context() as patch:
            at_call(k, fault, patch)
            try:
                pack(new, out)
            except (Killed, SegptError):
                seen.add("stopped")
        seen.add(seed_of(out))
        with monkeypatch.context() as patch:  # and once more, at the next one's first rename
            at_call(3, fault, patch)
            try:
                pack(third, out)
            except (Killed, SegptError):
                assert seed_of(out) in "123"
        pack(third, out)
        assert seed_of(out) == "3"
        assert {path.name for path in tmp_path.iterdir()} == {
            "model.segpt",
            out.name + ".documents",
        }
    assert seen == {"stopped", "1", "2"}


def test_a_pack_without_a_list_leaves_none_of_another_model(tmp_path: Path) -> None:
    out = tmp_path / "model.segpt"
    pack(model(1), out)
    pack(model(2, listed=False), out)
    assert read_artifact(out).documents is None
    assert [path.name for path in tmp_path.iterdir()] == ["model.segpt"]


def test_a_list_of_another_model_is_still_refused(tmp_path: Path) -> None:
    out = tmp_path / "model.segpt"
    pack(model(1), out)
    documents_path(out).write_bytes(b"12345678")
    with pytest.raises(DataError, match=r"is not the list .*; pack the model again"):
        read_artifact(out)
    pack(model(1), out)
    assert seed_of(out) == "1"
