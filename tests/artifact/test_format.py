"""The format as artifacts/README.md tells it, against a reader in plain Python.

The reader shares no code with the package beyond the list of weights that a spec implies, and
none at all for the example in the README.
"""

import hashlib
import json
import lzma
import re
import struct
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import brotli
import numpy as np
import pytest

from segpt.artifact.container import pack, sections, unpack
from segpt.spec.layout import layout
from segpt.spec.model import Attention, Dense, Gain, Head, Layer, MixInput, ModelSpec, Token, Visit
from segpt.values import Artifact, Coded, Grid, Half, Quantized, Tokenizer

README = Path(__file__).parents[2] / "artifacts" / "README.md"

Weights = dict[str, tuple[int, list[int], list[int]]]  # bits, codes, scales or halves


def unwrap(data: bytes) -> list[bytes]:
    """The unpacked sections of a file."""
    assert data[:9] == b"\x93SEGPT\x01\x00\x07"
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    found, position = [], 72
    for codec, stored, size in struct.iter_unpack("<BII", data[9:72]):
        part = data[position : position + stored]
        if codec == 1:
            filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
            part = lzma.decompress(part, lzma.FORMAT_RAW, filters=filters)
        elif codec == 2:
            part = brotli.decompress(part)
        assert len(part) == size
        found.append(part)
        position += stored
    assert position + 32 == len(data)
    return found


def read_tables(data: bytes) -> tuple[list[int], list[dict[int, tuple[int, int]]]]:
    """The table of each class; the frequency and the start of each code in each table."""
    count, rest = data[0], iter(data[1:])
    shared, reaches = ([next(rest) for _ in range(count)] for _ in range(2))
    levels: list[dict[int, int]] = []
    for reach in reaches:
        levels.append({0: next(rest)})
        for m in range(1, reach + 1):
            levels[-1][m] = (levels[-1][m - 1] + next(rest)) % 256
    for reach, level in zip(reaches, levels, strict=True):
        for m in range(1, reach + 1):
            level[-m] = (level[m] + next(rest)) % 256
    assert next(rest, None) is None
    found = []
    for level in levels:
        weights = {
            code: one if (one := level[code]) < 16 else (16 + one % 16) << (one // 16 - 1)
            for code in sorted(level, key=lambda code: code % 256)
        }
        total = sum(weights.values())
        shares = {c: max(1, w * 2**14 // total) if w else 0 for c, w in weights.items()}
        shares[max(weights, key=lambda code: weights[code])] += 2**14 - sum(shares.values())
        starts = dict(zip(shares, np.cumsum([0, *shares.values()]).tolist(), strict=False))
        found.append({c: (share, starts[c]) for c, share in shares.items() if share})
    return [k for k, times in enumerate(shared) for _ in range(times)], found


def read_codes(
    data: bytes, tables: list[int], found: list[dict[int, tuple[int, int]]]
) -> Iterator[int]:
    """One code per entry of ``tables``."""
    (lanes,) = struct.unpack_from("<H", data)
    states = list(struct.unpack_from(f"<{lanes}I", data, 2))
    words = iter(struct.unpack(f"<{(len(data) - 2 - 4 * lanes) // 2}H", data[2 + 4 * lanes :]))
    for i, table in enumerate(tables):
        slot = states[i % lanes] % 2**14
        code = next(c for c, (share, start) in found[table].items() if slot < start + share)
        share, start = found[table][code]
        state = share * (states[i % lanes] // 2**14) + slot - start
        states[i % lanes] = state if state >= 2**16 else state * 2**16 + next(words)
        yield code
    assert next(words, None) is None
    assert states == [2**16] * lanes


def read_file(data: bytes, shapes: list[tuple[str, tuple[int, ...]]]) -> Weights:
    """All weights of a file whose weights have these names and shapes."""
    header, _, classes, tables, codes, scales, halves = unwrap(data)
    head = json.loads(header)
    table_of, found = read_tables(tables)
    coded = list(zip(shapes, head["bits"], head["groups"], strict=True))
    grids = [shape for (_, shape), bits, _ in coded if bits < 16]
    side = iter(struct.unpack(f"{len(classes)}b", classes))
    modes = [next(side) for _ in grids]
    rows = [
        [next(side) for _ in range(shape[0])] if mode & 1 else [next(side)] * shape[0]
        for mode, shape in zip(modes, grids, strict=True)
    ]
    columns = [
        [next(side) for _ in range(shape[1])] if mode & 2 else [0] * shape[1]
        for mode, shape in zip(modes, grids, strict=True)
    ]
    assert next(side, None) is None
    wanted = [
        table_of[min(max(row + column, 0), len(table_of) - 1)]
        for one, other in zip(rows, columns, strict=True)
        for row in one
        for column in other
    ]
    decoded = read_codes(codes, wanted, found)
    planes = [
        iter(
            [low + 256 * high for low, high in zip(p[: len(p) // 2], p[len(p) // 2 :], strict=True)]
        )
        for p in (scales, halves)
    ]
    weights: Weights = {}
    for (name, shape), bits, groups in coded:
        size = int(np.prod(shape))
        if bits == 16:
            weights[name] = (bits, [], [next(planes[1]) for _ in range(size)])
        else:
            values = [next(planes[0]) for _ in range(shape[0] * groups)]
            weights[name] = (bits, [next(decoded) for _ in range(size)], values)
    assert next(decoded, None) is None
    return weights


def plain(weights: dict[str, Coded]) -> Weights:
    return {
        name: (coded.bits, coded.codes.ravel().tolist(), bits_of(coded.scales))
        if isinstance(coded, Grid)
        else (16, [], bits_of(coded.values))
        for name, coded in weights.items()
    }


def bits_of(values: np.typing.NDArray[np.float16]) -> list[int]:
    return values.view(np.uint16).ravel().tolist()


def make_quantized(seed: int) -> Quantized:
    """A small model that uses rows, columns, groups, several widths and every codec it can."""
    random = np.random.default_rng(seed)
    layer = Layer(
        mixer=Attention(heads=4, kv_heads=2, head_dim=8, query_key=(Gain(),)),
        feed=Dense(hidden=96),
        join=(MixInput(),),
    )
    spec = ModelSpec(
        vocab=200,
        width=32,
        context=16,
        embed=(Token(),),
        layers=(layer, layer),
        visits=(Visit(layer=0), Visit(layer=1, join=(MixInput(),)), Visit(layer=0)),
        head=Head(tied=False),
    )
    weights: dict[str, Coded] = {}
    for i, weight in enumerate(layout(spec)):
        if "gain" in weight.name or "mix" in weight.name.split("."):
            weights[weight.name] = Half((1 + random.standard_normal(weight.shape)).astype("f2"))
            continue
        rows, columns = weight.shape
        bits, groups = 2 + i % 7, 1 + i % 3
        limit = 2 ** (bits - 1) - 1
        spread = np.exp(random.standard_normal((rows, 1))), np.exp(random.standard_normal(columns))
        codes = random.standard_normal(weight.shape) * limit / 6 * spread[i % 2]
        codes = np.clip(np.round(codes), -limit, limit).astype(np.int8)
        weights[weight.name] = Grid(bits, codes, random.random((rows, groups)).astype("f2"))
    payload = b"".join(b"piece %d\n" % i for i in range(200))
    return Quantized(spec, weights, Tokenizer("merges", 200, payload), {"text": "0" * 16})


@pytest.mark.parametrize("seed", range(3))
def test_a_reader_that_knows_only_the_format_agrees(seed: int) -> None:
    quantized = make_quantized(seed)
    artifact = pack(quantized)
    shapes = [(weight.name, weight.shape) for weight in layout(quantized.spec)]
    assert read_file(artifact.data, shapes) == plain(dict(quantized.weights))
    assert unwrap(artifact.data)[1] == quantized.tokenizer.payload
    modes = set(unwrap(artifact.data)[2][: len([s for s in shapes if "gain" not in s[0]])])
    assert {1, 2} <= modes
    assert {s.codec for s in sections(artifact)} >= {"stored", "brotli"}


def test_the_example_in_the_readme_reads_as_told() -> None:
    text = README.read_text(encoding="utf-8")
    (dump,) = re.findall(r"```hex\n(.*?)```", text, re.DOTALL)
    (told,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    expected: Weights = {
        name: (value["bits"], list(chain(*value["codes"])), halves(chain(*value["scales"])))
        if isinstance(value, dict)
        else (16, [], halves(value))
        for name, value in json.loads(told).items()
    }
    artifact = Artifact(bytes.fromhex(dump))
    quantized = unpack(artifact)
    assert plain(dict(quantized.weights)) == expected
    shapes = [(name, coded.shape) for name, coded in quantized.weights.items()]
    assert read_file(artifact.data, shapes) == expected


def halves(digits: Iterable[str]) -> list[int]:
    return [int(four, 16) for four in digits]
