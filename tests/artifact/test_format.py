"""The formats as artifacts/README.md tells them, against a reader in plain Python.

The reader shares no code with the package beyond the list of weights that a spec implies, and
none at all for the example in the README. What it finds of a weight are plain values.
"""

import hashlib
import json
import lzma
import math
import re
import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import pytest

from segpt.artifact.container import load, pack, sections, unpack
from segpt.config.head import Head
from segpt.config.layer import Attention, Dense, Layer
from segpt.config.layout import layout
from segpt.config.model import ModelSpec
from segpt.config.parts import Gain, MixInput, Token
from segpt.config.route import Visit
from segpt.values import (
    OCTAVE,
    Artifact,
    Float16Weight,
    Quantized,
    QuantizedWeight,
    Tokenizer,
    TrellisWeight,
    UniformWeight,
)
from tests.artifact.weights import make_stepped, with_rows

ARTIFACTS = Path(__file__).parents[2] / "artifacts"

Shape = tuple[int, ...]
Table = dict[int, tuple[int, int]]  # the frequency and the start of each code
Fields = dict[str, Any]

SECTIONS = {
    1: "header tokenizer classes tables codes scales halves",
    2: "header tokenizer classes tables codes steps rows columns stored scales halves",
}
OCTAVES = [
    *("0x1p0", "0x1.172b84p0", "0x1.306fep0", "0x1.4bfdaep0"),
    *("0x1.6a09e6p0", "0x1.8ace54p0", "0x1.ae89fap0", "0x1.d5818ep0"),
]


def unwrap(data: bytes) -> tuple[int, dict[str, bytes]]:
    """The format and the unpacked sections of a file."""
    magic, version, count = struct.unpack_from("<6sHB", data)
    names = SECTIONS[version].split()
    assert (magic, count) == (b"\x93SEGPT", len(names))
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    found, position = {}, 9 + 9 * count
    for name, (codec, stored, size) in zip(
        names, struct.iter_unpack("<BII", data[9:position]), strict=True
    ):
        part = data[position : position + stored]
        if codec == 1:
            filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
            part = lzma.decompress(part, lzma.FORMAT_RAW, filters=filters)
        elif codec == 2:
            part = brotli.decompress(part)
        elif codec == 3:
            part = unstream(part, size)
        assert len(part) == size
        found[name] = part
        position += stored
    assert position + 32 == len(data)
    return version, found


def unstream(data: bytes, size: int) -> bytes:
    """Bytes that are coded with one table."""
    rest = iter(data)
    (levels,) = read_levels(rest, 1, 1)
    lanes = 1 + size // 4096
    stream = Stream(bytes(rest), lanes)
    found = [stream.code(i % lanes, shares(levels)) for i in range(size)]
    stream.end()
    return bytes(code % 256 for code in found)


def read_levels(data: Iterator[int], count: int, stride: int) -> list[dict[int, int]]:
    """The level of each code in each table."""
    reaches = list(islice(data, count))
    lopsided = next(data)
    numbers: list[list[int]] = []
    for table, reach in enumerate(reaches):
        before = numbers[table - stride] if table >= stride else []
        before = [*before, *[0] * 128]
        numbers.append([(next(data) + before[m]) % 256 for m in range(reach + 1)])
    found = []
    for number in numbers:
        level, step = {0: number[0]}, 0
        for m in range(1, len(number)):
            step += number[m]
            level[m] = (level[m - 1] + step) % 256
        found.append(level)
    return mirror(found, reaches, data if lopsided else None)


def mirror(
    found: list[dict[int, int]], reaches: Sequence[int], data: Iterator[int] | None
) -> list[dict[int, int]]:
    for reach, level in zip(reaches, found, strict=True):
        for m in range(1, reach + 1):
            level[-m] = (level[m] + (next(data) if data else 0)) % 256
    return found


def shares(level: dict[int, int]) -> Table:
    weights = {
        code: one if (one := level[code]) < 16 else (16 + one % 16) << (one // 16 - 1)
        for code in sorted(level, key=lambda code: code % 256)
    }
    total = sum(weights.values())
    share = {c: max(1, w * 2**14 // total) if w else 0 for c, w in weights.items()}
    share[max(weights, key=lambda code: weights[code])] += 2**14 - sum(share.values())
    starts = dict(zip(share, np.cumsum([0, *share.values()]).tolist(), strict=False))
    return {code: (one, starts[code]) for code, one in share.items() if one}


class Stream:
    """Lanes and words of a code stream."""

    def __init__(self, data: bytes, lanes: int) -> None:
        self.states = list(struct.unpack_from(f"<{lanes}I", data))
        self.words = iter(struct.unpack(f"<{len(data) // 2 - 2 * lanes}H", data[4 * lanes :]))

    def code(self, lane: int, table: Table) -> int:
        slot = self.states[lane] % 2**14
        found = next(c for c, (share, start) in table.items() if start <= slot < start + share)
        share, start = table[found]
        state = share * (self.states[lane] // 2**14) + slot - start
        self.states[lane] = state if state >= 2**16 else state * 2**16 + next(self.words)
        return found

    def end(self) -> None:
        assert next(self.words, None) is None
        assert set(self.states) == {2**16}


def read_file(data: bytes, weights: Sequence[tuple[str, Shape]]) -> dict[str, Fields]:
    """All weights of a file whose weights have these names and shapes."""
    version, parts = unwrap(data)
    head = json.loads(parts["header"])
    scales, halves = planes(parts["scales"], 2), planes(parts["halves"], 2)
    steps = planes(parts.get("steps", b""), 4)
    rows, columns = (iter(to_signed(parts.get(name, b""))) for name in ("rows", "columns"))
    bitmaps = iter(parts.get("stored", b""))
    none = [0] * len(weights)
    found: dict[str, Fields] = {}
    for (name, shape), bits, groups, states, extra in zip(
        weights,
        *(head[key] for key in ("bits", "groups")),
        *(head.get(key, none) for key in ("states", "parts")),
        strict=True,
    ):
        width = shape[-1]
        if bits == 16:
            found[name] = {"values": list(islice(halves, math.prod(shape)))}
        elif bits:
            found[name] = {"bits": bits, "scales": list(islice(scales, shape[0] * groups))}
        else:
            one = found[name] = {"states": states, "step": next(steps)}
            height = shape[0]
            if extra & 2:
                marks = list(islice(bitmaps, -(-height // 8)))
                one["stored"] = [marks[i // 8] >> i % 8 & 1 for i in range(height)]
                height = sum(one["stored"])
            one |= {"rows": list(islice(rows, height)), "columns": list(islice(columns, width))}
            one |= {"centre": list(islice(halves, width))} if extra & 1 else {}
            one |= {"shared": list(islice(halves, width))} if extra & 2 else {}
        if bits < 16:
            height = len(found[name].get("rows", range(shape[0])))
            found[name]["codes"] = [[0] * width for _ in range(height)]
    rest = (scales, halves, steps, rows, columns, bitmaps)
    assert [next(one, None) for one in rest] == [None] * 6
    read_codes = read_first_codes if version == 1 else read_second_codes
    read_codes(parts, [one for one in found.values() if "codes" in one])
    return found


def read_second_codes(parts: dict[str, bytes], weights: list[Fields]) -> None:
    """Fill in the codes of a file of format 2."""
    grids = 2 if any(w.get("states", 1) > 1 for w in weights) else 1
    data, side = iter(parts["tables"]), iter(to_signed(parts["classes"]))
    modes = list(islice(data, len(weights)))
    low, high = (list(islice(data, len(weights))) for _ in range(2))
    bases = [x + 256 * y - (y >= 128) * 65536 for x, y in zip(low, high, strict=True)]
    sizes = list(islice(data, next(data)))
    tables = [shares(level) for level in read_levels(data, len(sizes) * grids, grids)]
    assert next(data, None) is None
    run_of = [run for run, size in enumerate(sizes) for _ in range(size)]
    classes: dict[str, list[list[int]]] = {"rows": [], "columns": []}
    for key, found in classes.items():
        for mode, base, w in zip(modes, bases, weights, strict=True):
            unit = [0, 1, 2, 4][mode % 4 if key == "rows" else mode // 4]
            known = w.get(key) or [0] * len(w["codes"] if key == "rows" else w["codes"][0])
            start = base if key == "rows" else 0
            found.append([start - one + (unit and unit * next(side)) for one in known])
    assert next(side, None) is None
    (lanes,) = struct.unpack_from("<H", parts["codes"])
    stream = Stream(parts["codes"][2:], lanes)
    for width in dict.fromkeys(len(w["codes"][0]) for w in weights):
        stack = [
            (row, classes["rows"][t][i], classes["columns"][t], w.get("states", 1))
            for t, w in enumerate(weights)
            for i, row in enumerate(w["codes"])
            if len(row) == width
        ]
        for first in range(0, len(stack), lanes):
            band = stack[first : first + lanes]
            registers = [0] * len(band)
            for j in range(width):
                for lane, (row, across, along, states) in enumerate(band):
                    run = run_of[min(max(across + along[j], 0), len(run_of) - 1)]
                    grid = grid_of(registers[lane], states)
                    row[j] = stream.code(lane, tables[run * grids + grid])
                    registers[lane] = follow(registers[lane], row[j], states)
    stream.end()


MASKS = {1: (0, 0), 4: (1, 2), 8: (1, 6), 16: (3, 10)}


def grid_of(register: int, states: int) -> int:
    return (register & MASKS[states][0]).bit_count() % 2


def follow(register: int, code: int, states: int) -> int:
    bit = (code + (register & MASKS[states][1]).bit_count()) % 2
    return (2 * register + bit) % states


def read_first_codes(parts: dict[str, bytes], weights: list[Fields]) -> None:
    """Fill in the codes of a file of format 1."""
    data = iter(parts["tables"])
    count = next(data)
    shared, reaches = (list(islice(data, count)) for _ in range(2))
    levels: list[dict[int, int]] = []
    for reach in reaches:
        levels.append({0: next(data)})
        for m in range(1, reach + 1):
            levels[-1][m] = (levels[-1][m - 1] + next(data)) % 256
    tables = [shares(level) for level in mirror(levels, reaches, data)]
    table_of = [k for k, times in enumerate(shared) for _ in range(times)]
    side = iter(to_signed(parts["classes"]))
    modes = [next(side) for _ in weights]
    across = [
        [next(side) for _ in w["codes"]] if mode & 1 else [next(side)] * len(w["codes"])
        for mode, w in zip(modes, weights, strict=True)
    ]
    (lanes,) = struct.unpack_from("<H", parts["codes"])
    stream, turn = Stream(parts["codes"][2:], lanes), 0
    for mode, w, rows in zip(modes, weights, across, strict=True):
        width = len(w["codes"][0])
        along = [next(side) for _ in range(width)] if mode & 2 else [0] * width
        for row, one in zip(w["codes"], rows, strict=True):
            for j, other in enumerate(along):
                table = table_of[min(max(one + other, 0), len(table_of) - 1)]
                row[j] = stream.code(turn % lanes, tables[table])
                turn += 1
    assert [next(one, None) for one in (data, side)] == [None, None]
    stream.end()


def decoded(weight: Fields) -> list[list[str]]:
    """A stepped weight, each number as the eight digits of its float32."""
    step = f32(struct.pack("<I", weight["step"]))
    kept = []
    for row, exponent in zip(weight["codes"], weight["rows"], strict=True):
        register, numbers = 0, []
        for j, code in enumerate(row):
            eighths = exponent + weight["columns"][j]
            octave = float.fromhex(OCTAVES[eighths % 8])
            size = math.ldexp(rounded(step * octave), eighths // 8)
            point = code
            if weight["states"] > 1:
                sign = (code > 0) - (code < 0)
                point = 2 * code - sign * grid_of(register, weight["states"])
            numbers.append(rounded(point * size))
            if "centre" in weight:
                numbers[-1] = rounded(numbers[-1] + half(weight["centre"][j]))
            register = follow(register, code, weight["states"])
        kept.append(numbers)
    rows, given = iter(kept), weight.get("stored", [1] * len(kept))
    whole = [next(rows) if mark else list(map(half, weight["shared"])) for mark in given]
    return [[struct.pack(">f", number).hex() for number in row] for row in whole]


def rounded(number: float) -> float:
    """To the nearest float32; doubles are wide enough that rounding twice changes nothing."""
    return f32(struct.pack("<f", number))


def f32(data: bytes) -> float:
    return float(struct.unpack("<f", data)[0])


def half(bits: int) -> float:
    return float(struct.unpack("<e", struct.pack("<H", bits))[0])


def planes(data: bytes, size: int) -> Iterator[int]:
    """Unsigned numbers whose lowest bytes come first, then the next, and so on."""
    count = len(data) // size
    return (sum(data[p * count + i] << 8 * p for p in range(size)) for i in range(count))


def to_signed(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"{len(data)}b", data)


def plain(coded: QuantizedWeight) -> Fields:
    """The same of a weight as the reader finds."""
    match coded:
        case Float16Weight(values=values):
            return {"values": bits_of(values)}
        case UniformWeight(bits=bits, codes=codes, scales=scales):
            return {"bits": bits, "scales": bits_of(scales), "codes": codes.tolist()}
        case TrellisWeight(states=states, step=step):
            (bits,) = struct.unpack("<I", struct.pack("<f", step))
            arrays = {
                name: bits_of(array) if array.dtype == np.float16 else array.astype(int).tolist()
                for name, array in coded.arrays().items()
            }
            return {"states": states, "step": bits} | arrays


def bits_of(values: np.typing.NDArray[np.float16]) -> list[int]:
    return values.view(np.uint16).ravel().tolist()


def check_against_reader(quantized: Quantized, data: bytes) -> None:
    shapes = [(weight.name, weight.shape) for weight in layout(quantized.spec)]
    read = read_file(data, shapes)
    assert read == {name: plain(coded) for name, coded in quantized.weights.items()}
    assert unwrap(data)[1]["tokenizer"] == quantized.tokenizer.payload
    for name, coded in quantized.weights.items():
        if isinstance(coded, TrellisWeight):
            digits = coded.decoded().astype(">f4").view(">u4").tolist()
            assert decoded(read[name]) == [[f"{one:08x}" for one in row] for row in digits]


def make_quantized(seed: int) -> Quantized:
    """A small model that uses every kind of weight and every codec it can."""
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
    weights: dict[str, QuantizedWeight] = {}
    for i, weight in enumerate(layout(spec)):
        if "gain" in weight.name or "mix" in weight.name.split("."):
            weights[weight.name] = Float16Weight(
                (1 + random.standard_normal(weight.shape)).astype("f2")
            )
            continue
        rows, columns = weight.shape
        if (i + seed) % 3 or weight.name == "table":
            states, spread = (8, 1, 4, 16)[(i + seed) % 4], random.choice([0.1, 0.5])
            stepped = make_stepped(random, (rows, columns), states, 5.0, float(spread), 0.3)
            weights[weight.name] = with_rows(random, stepped, 3 if i % 2 else 0)
            continue
        bits, groups = 2 + i % 7, 1 + i % 3
        limit = 2 ** (bits - 1) - 1
        spreads = np.exp(random.standard_normal((rows, 1))), np.exp(random.standard_normal(columns))
        codes = random.standard_normal(weight.shape) * limit / 6 * spreads[i % 2]
        codes = np.clip(np.round(codes), -limit, limit).astype(np.int8)
        weights[weight.name] = UniformWeight(
            bits, codes, random.random((rows, groups)).astype("f2")
        )
    payload = b"".join(b"piece %d\n" % i for i in range(200))
    return Quantized(spec, weights, Tokenizer("merges", 200, payload), {"text": "0" * 16})


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_reader_that_knows_only_the_format_agrees(seed: int) -> None:
    quantized = make_quantized(seed)
    artifact = pack(quantized)
    check_against_reader(quantized, artifact.data)
    modes = unwrap(artifact.data)[1]["tables"][
        : sum("codes" in plain(c) for c in unpack(artifact).weights.values())
    ]
    assert any(mode % 4 for mode in modes)
    assert any(mode // 4 for mode in modes)
    assert {s.codec for s in sections(artifact)} >= {"stored", "brotli", "rans"}


@pytest.mark.slow
def test_the_reader_agrees_on_format_1() -> None:
    artifact = load(ARTIFACTS / "demo256-1.segpt")
    check_against_reader(unpack(artifact), artifact.data)


def example() -> Quantized:
    """The model in the README."""
    spec = ModelSpec(
        vocab=8,
        width=4,
        context=4,
        embed=(Token(),),
        layers=(Layer(mixer=None, feed=Dense(hidden=4)),),
        visits=(Visit(layer=0),),
        head=Head(),
    )
    table = TrellisWeight(
        states=8,
        codes=np.array(
            [[3, -2, 0, 1], [-1, 1, 2, -3], [0, 0, 4, 1], [2, -1, -1, 0], [-5, 1, 0, 2]], np.int8
        ),
        step=float(np.float32(0.05)),
        rows=np.array([0, 3, -8, 1, 12], np.int8),
        columns=np.array([-2, 0, 5, 1], np.int8),
        centre=np.array([0.01, -0.25, 0, 1], np.float16),
        stored=np.array([1, 1, 0, 1, 0, 0, 1, 1], np.bool_),
        shared=np.array([0.5, -0.125, 0.001, 3], np.float16),
    )
    up = np.array([[0, 1, -1, 1], [0, 1, -1, -1], [0, -1, 2, -1], [0, 0, 2, 3]], np.int8)
    weights: dict[str, QuantizedWeight] = {
        "table": table,
        "layers.0.feed.gain": Float16Weight(np.array([1.25, 1.125, 1, 0.875], np.float16)),
        "layers.0.feed.body.up": UniformWeight(
            3, up, np.array([[0.02], [0.01], [0.04], [0.06]], "f2")
        ),
        "layers.0.feed.body.down": TrellisWeight(
            1, up.T.copy(), 0.125, np.zeros(4, np.int8), np.array([0, 1, 2, 4], np.int8)
        ),
    }
    return Quantized(spec, weights, Tokenizer("bytes", 257), {})


def test_the_example_in_the_readme_reads_as_told() -> None:
    text = (ARTIFACTS / "README.md").read_text(encoding="utf-8")
    (dump,) = re.findall(r"```hex\n(.*?)```", text, re.DOTALL)
    (told,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    artifact = Artifact(bytes.fromhex(dump))
    quantized = unpack(artifact)
    assert quantized == example()
    check_against_reader(quantized, artifact.data)
    assert json.loads(told) == {name: shown(c) for name, c in quantized.weights.items()}


def shown(coded: QuantizedWeight) -> Fields:
    """A weight as the README prints it."""
    fields: Fields = {
        name: f"{value:08x}"
        if name == "step"
        else [f"{bits:04x}" for bits in value]
        if name in ("values", "scales", "centre", "shared")
        else value
        for name, value in plain(coded).items()
    }
    return fields | ({"weights": decoded(plain(coded))} if isinstance(coded, TrellisWeight) else {})


def test_the_readme_tells_the_constants() -> None:
    text = (ARTIFACTS / "README.md").read_text(encoding="utf-8")
    assert OCTAVE.tolist() == [float.fromhex(octave) for octave in OCTAVES]
    for octave in OCTAVES:
        assert f"`{octave}`" in text
