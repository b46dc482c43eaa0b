"""Ids that other programs wrote are read as they are, and refused when they are damaged."""

import struct
from pathlib import Path

import numpy as np
import pytest

from segpt.data.token_files import LLM_C, open_token_file
from segpt.errors import DataError

IDS = [50256, 3, 1, 4, 1, 5]


def shard(path: Path, magic: int, version: int, dtype: str, count: int = len(IDS)) -> Path:
    head = struct.pack("<256i", magic, version, count, *[0] * 253)
    path.write_bytes(head + np.array(IDS, dtype).tobytes())
    return path


@pytest.mark.parametrize(
    ("magic", "version", "dtype", "form"),
    [
        (20240520, 1, "<u2", "modded-nanogpt"),
        (LLM_C, 1, "<u2", "llm.c"),
        (LLM_C, 7, "<u4", "llm.c"),
    ],
)
def test_shards(tmp_path: Path, magic: int, version: int, dtype: str, form: str) -> None:
    read = open_token_file(shard(tmp_path / "a.bin", magic, version, dtype))
    assert (read.form, read.ids.tolist(), read.span()) == (form, IDS, (1, 50256))


def test_a_headerless_file_is_read_as_declared_only(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(np.array(IDS, "<u2").tobytes())
    assert open_token_file(path, "uint16").ids.tolist() == IDS
    with pytest.raises(DataError, match="declare what its ids are"):
        open_token_file(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="no whole number"):
        open_token_file(path, "uint16")


def test_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array(IDS, np.uint16))
    assert open_token_file(path).ids.tolist() == IDS
    np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match="not an array"):
        open_token_file(path)
    np.save(path, np.array([1, -2]))
    with pytest.raises(DataError, match="negative"):
        open_token_file(path).span()


def test_damaged_shards(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for magic, version, dtype, count, message in [
        (20240520, 1, "<u2", 7, "are not 7 tokens"),
        (20240520, 9, "<u2", 6, "version 9"),
        (struct.unpack(">i", struct.pack("<i", 20240520))[0], 1, "<u2", 6, "big-endian"),
    ]:
        with pytest.raises(DataError, match=message):
            open_token_file(shard(path, magic, version, dtype, count))
    path.write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        open_token_file(path)
