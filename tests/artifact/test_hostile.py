"""Hostile files: whatever the bytes, the answer is a model or an ArtifactError, fast and small."""

import copy
import functools
import hashlib
import json
import lzma
import pickle
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segpt.artifact import codec, frame, header
from segpt.artifact.codec import SectionCodec, Stored
from segpt.artifact.container import load, pack, sections, unpack, usage
from segpt.artifact.reader import open_artifact
from segpt.config.base import canonical
from segpt.config.head import Head
from segpt.config.layer import Attention, Dense, Layer
from segpt.config.layout import layout, parameters
from segpt.config.model import ModelSpec
from segpt.config.parts import Gain, Rope, Token
from segpt.config.route import Visit
from segpt.errors import ArtifactError
from segpt.values import (
    Artifact,
    Float16Weight,
    Quantized,
    QuantizedWeight,
    Tokenizer,
    UniformWeight,
)
from tests.artifact.weights import make_stepped, with_rows

resource = pytest.importorskip("resource")

NUMBERS = [0, -1, 1, 2, 255, 2**16, 2**20, 2**31 - 1, 2**32, 2**53, 10**15, -(2**63), 0.5, 1e308]
VALUES: list[object] = [
    *NUMBERS,
    None,
    True,
    "",
    "x" * 300,
    "merges",
    [],
    [[]],
    {},
    {"kind": "rope"},
    [8] * 5000,
]


@functools.cache
def make_artifact(seed: int, vocab: int = 24, width: int = 8) -> Artifact:
    """A small model of every kind of weight; which is of which kind depends on the seed."""
    generator = np.random.default_rng(seed)
    mixer = Attention(heads=2, kv_heads=1, head_dim=width // 2, query_key=(Rope(dims=2), Gain()))
    spec = ModelSpec(
        vocab=vocab,
        width=width,
        context=8,
        embed=(Token(),),
        layers=(Layer(mixer=mixer, feed=Dense(hidden=width + 4)),),
        visits=(Visit(layer=0), Visit(layer=0)),
        head=Head(),
    )
    weights: dict[str, QuantizedWeight] = {}
    for i, weight in enumerate(layout(spec)):
        if "gain" in weight.name:
            weights[weight.name] = Float16Weight(
                generator.standard_normal(weight.shape).astype("f2")
            )
        elif (i + seed) % 2 or seed % 5 == 4:
            codes = generator.integers(-7, 8, weight.shape).astype(np.int8)
            scales = generator.random((len(codes), 1 + i % 2)).astype("f2")
            weights[weight.name] = UniformWeight(4 + i % 2, codes, scales)
        else:
            shape, states = (weight.shape[0], weight.shape[1]), (1, 4, 8, 16)[(i // 2 + seed) % 4]
            stepped = make_stepped(generator, shape, states)
            weights[weight.name] = with_rows(generator, stepped, 3 - i % 4)
    tokenizer = Tokenizer("merges", 24, b"tokens " * 9)
    return pack(Quantized(spec, weights, tokenizer, {"text": "0123456789abcdef"}))


SEED = make_artifact(0)
FIRST = Path(__file__).with_name("format-1.segpt")  # weights on grids and float16
NAMES = frame.SECTIONS[frame.FORMAT]


def seal(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


def rejoin(data: bytes, **changes: Stored) -> bytes:
    """A file with some sections replaced; everything around them is right."""
    version, parts = frame.split(data)
    table = [changes.get(name, part) for name, part in parts.items()]
    return seal(
        frame.PREFIX.pack(frame.MAGIC, version, len(table))
        + b"".join(frame.ENTRY.pack(part.codec, len(part.data), part.size) for part in table)
        + b"".join(part.data for part in table)
    )


def reframe(**changes: Stored) -> bytes:
    return rejoin(SEED.data, **changes)


def plain(name: str, data: bytes = SEED.data) -> bytes:
    return codec.unpack(frame.split(data).sections[name], name)


def refuses(data: bytes, message: str | None = None) -> None:
    with pytest.raises(ArtifactError, match=message):
        unpack(Artifact(data))


def damage(data: bytes, chance: random.Random) -> bytes:
    """One to four byte-level accidents."""
    for _ in range(chance.randint(1, 4)):
        place, other = chance.randrange(len(data) + 1), chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0 | 1:
                data = data[:place] + chance.randbytes(1) + data[place + 1 :]
            case 2:
                data = data[:place]
            case 3:
                data = data[:place] + chance.randbytes(chance.randint(1, 9)) + data[place:]
            case _:
                length = chance.randint(1, 64)
                data = data[:place] + data[other : other + length] + data[place + length :]
        if not data:
            return data
    return data


def leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a tree of tables and lists, as a container and a key."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from leaves(value[key])


def twist_header(data: bytes, chance: random.Random) -> bytes:
    """A header with one to three values replaced, removed, doubled or added."""
    table = json.loads(plain("header", data))
    for _ in range(chance.randint(1, 3)):
        if not (places := list(leaves(table))):
            break
        container, key = chance.choice(places)
        match chance.randrange(6):
            case 0:
                del container[key]
            case 1 if isinstance(container, list):
                container.extend((container * chance.choice([1, 100]))[:2000])
            case 2 if isinstance(container, dict):
                container[chance.choice(["kind", "x", "bits", "parts"])] = copy.deepcopy(
                    chance.choice(VALUES)
                )
            case _:
                container[key] = copy.deepcopy(chance.choice(VALUES))
    return rejoin(data, header=codec.verbatim(canonical(table)))


def twist_table(data: bytes, chance: random.Random) -> bytes:
    """An entry of the table of sections with a hostile codec or size."""
    body = bytearray(data[: -frame.DIGEST])
    place = frame.PREFIX.size + chance.randrange(body[8]) * frame.ENTRY.size
    entry = list(frame.ENTRY.unpack_from(body, place))
    entry[chance.randrange(3)] = chance.choice([0, 1, 2, 3, 255, entry[1], entry[2], entry[2] + 1])
    if chance.random() < 0.5:
        entry[chance.choice([1, 2])] = chance.choice([2**16, 2**28, 2**31, 2**32 - 1])
    frame.ENTRY.pack_into(body, place, entry[0] & 255, *entry[1:])
    return seal(bytes(body))


def twist_section(data: bytes, chance: random.Random) -> bytes:
    """A section with damaged contents and the right size, so that its own parser meets them."""
    name = chance.choice([name for name in frame.split(data).sections if name != "tokenizer"])
    return rejoin(data, **{name: codec.verbatim(damage(plain(name, data), chance))})


def mutate(data: bytes, chance: random.Random) -> bytes:
    match chance.randrange(8):
        case 0 | 1 | 2:
            return damage(data, chance)
        case 3 | 4:
            return seal(damage(data[: -frame.DIGEST], chance))
        case 5:
            return twist_header(data, chance)
        case 6:
            return twist_table(data, chance)
        case _:
            return twist_section(data, chance)


class Watch:
    """Opens hostile files, and keeps account of what became of them."""

    def __init__(self) -> None:
        self.opened = self.accepted = 0
        self.slowest = 0.0
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def open(self, data: bytes, original: bytes) -> None:
        """Open one file: a model of its own or an ArtifactError, and in a moment.

        With the digest of ``original`` it can only be that file.
        """
        start = time.thread_time()
        self.opened += 1
        try:
            found = unpack(Artifact(data))
        except ArtifactError:
            return
        finally:
            self.slowest = max(self.slowest, time.thread_time() - start)
        assert data == original or data[-frame.DIGEST :] != original[-frame.DIGEST :]
        self.accepted += 1
        if self.accepted % 20 == 1:
            assert unpack(pack(found)) == found

    def check(self) -> None:
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before
        assert grown < 200_000  # kilobytes on Linux
        assert self.slowest < 2.0
        assert self.accepted < self.opened / 2

    def __str__(self) -> str:
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before
        return (
            f"{self.opened:,} files, {self.accepted:,} accepted, slowest {self.slowest:.3f} s, "
            f"memory grown by {grown // 1024} MiB"
        )


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_mutations_end_in_a_model_or_an_artifact_error(version: int) -> None:
    data = SEED.data if version == 2 else load(FIRST).data
    chance, watch = random.Random(0), Watch()
    for _ in range(1000):
        watch.open(mutate(data, chance), data)
    watch.check()
    assert watch.accepted


@pytest.mark.slow
def test_many_mutations_end_in_a_model_or_an_artifact_error() -> None:
    chance, watch = random.Random(1), Watch()
    for _ in range(1_500):
        watch.open(mutate(SEED.data, chance), SEED.data)
    watch.check()


def check_bits_and_cuts(data: bytes, watch: Watch) -> None:
    """Every single bit flipped, and every shorter file, as it is and with its digest made right."""
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        watch.open(bytes(flipped), data)
    assert not watch.accepted
    for size in range(len(data)):
        watch.open(data[:size], data)
    for size in range(len(data) - frame.DIGEST):
        watch.open(seal(data[:size]), data)
    assert not watch.accepted


@pytest.mark.campaign
def test_a_campaign_of_mutations() -> None:
    files = [load(FIRST).data, *(make_artifact(seed).data for seed in range(19))]
    chance, watch = random.Random(2), Watch()
    for i in range(100_000):
        data = files[i % len(files)]
        hurt = damage(data, chance) if i % 40 < 20 else seal(damage(data[:-32], chance))
        watch.open(hurt, data)
    watch.check()
    print(f"\nbytes: {watch}")  # noqa: T201
    watch = Watch()
    for i in range(20_000):
        data = files[i % len(files)]
        watch.open(twist_header(data, chance), data)
    watch.check()
    print(f"headers: {watch}")  # noqa: T201


@pytest.mark.campaign
def test_a_campaign_of_bits_and_cuts() -> None:
    artifact = make_artifact(0, 1665, 80)
    assert 60_000 < artifact.size < 72_000
    watch = Watch()
    check_bits_and_cuts(artifact.data, watch)
    watch.check()
    print(f"\nbits and cuts: {watch}")  # noqa: T201
    watch = Watch()
    for bit in range(8 * (SEED.size - frame.DIGEST)):
        flipped = bytearray(SEED.data[: -frame.DIGEST])
        flipped[bit // 8] ^= 1 << bit % 8
        watch.open(seal(bytes(flipped)), SEED.data)
    watch.check()
    print(f"bits under their own digest: {watch}")  # noqa: T201


@pytest.mark.parametrize("version", [1, 2])
def test_every_flipped_bit_and_every_truncation_is_refused(version: int) -> None:
    check_bits_and_cuts(SEED.data if version == 2 else load(FIRST).data, Watch())


def test_additions_are_refused() -> None:
    for size in range(1, 65):
        refuses(SEED.data + bytes(size))
        refuses(seal(SEED.data[: -frame.DIGEST] + bytes(size)))


def test_random_files_are_refused() -> None:
    chance = random.Random(2)
    for _ in range(2000):
        body = chance.randbytes(chance.randrange(300))
        refuses(body)
        refuses(seal(frame.MAGIC + b"\1\0\7" + body))
        refuses(seal(frame.MAGIC + b"\2\0\13" + body))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b'"header"',
        b"{}",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"9" * 5000,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"kind":"header","kind":"header"}',
        b'{ "kind": "header" }',
        b'{"kind":"\\ud800"}',
        b'{"kind":"\xff"}',
        b"\xef\xbb\xbf{}",
        b'{"kind":"header"}\0',
        b"," * (header.MOST_COMMAS + 1),
    ],
)
def test_headers_that_are_not_headers_are_refused(text: bytes) -> None:
    refuses(reframe(header=codec.squeeze(text)), "^header")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.vocab", 2**20, "belong"),
        ("model.vocab", 2**21, "sides are"),
        ("model.width", 2**52, "sides are|parameters"),
        ("model.layers.0.feed.hidden", 0, "hidden|sides are"),
        ("model.layers.0.feed.hidden", -5, "hidden|sides are"),
        ("model.layers.0.feed.hidden", 2**19, "belong"),
        ("model.layers.0.mixer.heads", 0, "heads"),
        ("model.layers.0.mixer.heads", True, "expected a whole number"),
        ("model.layers.0.mixer.query_key.0.base", "x", "expected a number"),
        ("model.layers.0.mixer.query_key.0.kind", "__reduce__", "unknown kind"),
        ("model.visits.0.join", ["mix_input"] * 4100, "the format has 4096"),
        ("model.visits.0.layer", 7, "names layer 7"),
        ("model.context", 0, "context must be positive"),
        ("model.secret", 1, "unknown key 'secret'"),
        ("secret", 1, "unknown key 'secret'"),
        ("kind", "model_spec", "unknown kind"),
        ("vocab", 0, "vocab must be positive"),
        ("tokenizer", 7, "expected text"),
        ("origin", {"text": 7}, "strings"),
        ("origin", [], "expected a table"),
        ("bits.3", 9, "bits are 2 to 8"),
        ("bits.3", 1, "bits are 2 to 8"),
        ("bits.3", -1, "bits are 2 to 8"),
        ("bits.3", 16, "no groups"),
        ("bits.3", 2, "codes of 2 bits"),
        ("bits.3", 0, "states are one of"),
        ("bits.0", 8, "no states or parts"),
        ("bits.0", 16, "no groups, states or parts"),
        ("bits", [], "the header gives bits for 0"),
        ("groups", [], "the header gives groups for 0"),
        ("groups.3", 0, "0 groups"),
        ("groups.3", 9, "9 groups for 8 columns"),
        ("groups.3", 1, "scales: .* belong"),
        ("groups.0", 1, "has 1 groups"),
        ("groups.1", 2**53, "groups"),
        ("bits.1", 8, "one dimension"),
        ("states.0", 2, "states are one of"),
        ("states.0", 0, "states are one of"),
        ("states.0", 2**40, "states are one of"),
        ("states.3", 4, "no states or parts"),
        ("states.1", 4, "no groups, states or parts"),
        ("states", [], "states are one of"),
        ("states", [0], "the header gives states for 1"),
        ("states.0", 8.0, "expected a whole number"),
        ("parts.0", 4, "parts 4"),
        ("parts.0", -1, "parts -1"),
        ("parts.0", 2, "halves: .* belong"),
        ("parts.0", 1, "belong"),
        ("parts.2", 3, "belong"),
        ("parts.3", 1, "no states or parts"),
        ("parts", [], "belong"),
        ("parts", [0, 0], "the header gives parts for 2"),
    ],
)
def test_headers_that_lie_are_refused(path: str, value: object, message: str) -> None:
    table = json.loads(plain("header"))
    *steps, last = (int(step) if step.isdigit() else step for step in path.split("."))
    here = table
    for step in steps:
        here = here[step]
    here[last] = value
    refuses(reframe(header=codec.verbatim(canonical(table))), message)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("codes", lambda d: b"\0\0" + d[2:], "0 lanes"),
        ("codes", lambda d: b"\xff\xff" + d[2:], "65535 lanes"),
        ("codes", lambda d: d[:2], "does not hold"),
        ("codes", lambda d: d[:1], "belong"),
        ("codes", lambda d: d + b"\0\0", "left over"),
        ("codes", lambda d: d + b"\0", "lanes and words"),
        ("scales", lambda d: d[:-1] + b"\x7c", "finite"),
        ("halves", lambda d: d[:-1] + b"\xfe", "finite"),
        ("scales", lambda d: d[:-2], "belong"),
        ("halves", lambda d: d + b"\0\0", "belong"),
        ("classes", lambda d: d + b"\0", "classes"),
        ("tables", lambda d: d[:-1], "tables"),
        ("tables", lambda d: b"\x10" + d[1:], "no valid mode"),
        ("tables", lambda d: d[:7] + b"\xff" * 7 + b"\x7f" * 7 + d[21:], "a base is beyond 1024"),
        ("tables", lambda d: d[:21] + b"\0" + d[22:], "0 runs"),
        ("tables", lambda d: d[:21] + b"\x80" + d[22:], "runs"),
        ("tokenizer", lambda d: bytes((1 << 24) + 1), "belong"),
        ("steps", lambda d: d[:-1] + b"\x80", "positive and finite"),
        ("steps", lambda d: bytes(len(d)), "positive and finite"),
        ("steps", lambda d: b"\xff" * len(d), "positive and finite"),
        ("steps", lambda d: d[:-1] + b"\x7e", "too small or too large"),
        ("steps", lambda d: d[:-1] + b"\0", "too small or too large"),
        ("steps", lambda d: d + bytes(4), "belong"),
        ("rows", lambda d: b"\x79" + d[1:], "beyond 120"),
        ("rows", lambda d: b"\x80" + d[1:], "beyond 120"),
        ("rows", lambda d: d[1:], "belong"),
        ("columns", lambda d: d[:-1] + b"\x80", "beyond 120"),
        ("columns", lambda d: d + b"\0", "belong"),
        ("stored", lambda d: bytes(3) + d[3:], "some are stored but not all"),
        ("stored", lambda d: b"\xff" * 3 + d[3:], "some are stored but not all"),
        ("stored", lambda d: d[:-1] + bytes([d[-1] | 128]), "bits after the last"),
        ("stored", lambda d: bytes([d[0] ^ 1]) + d[1:], "belong"),
        ("stored", lambda d: d + b"\0", "belong"),
    ],
)
def test_sections_that_lie_are_refused(
    name: str, change: Callable[[bytes], bytes], message: str
) -> None:
    refuses(reframe(**{name: codec.verbatim(change(plain(name)))}), message)


def test_codes_beyond_their_bits_are_refused_on_reading() -> None:
    table = json.loads(plain("header"))
    table["bits"] = [3 if 1 < bits < 16 else bits for bits in table["bits"]]
    refuses(reframe(header=codec.verbatim(canonical(table))), "codes of 3 bits are int8 from -3")


@pytest.mark.parametrize("name", ["states", "parts"])
def test_format_1_has_no_steps(name: str) -> None:
    data = load(FIRST).data
    table = json.loads(plain("header", data)) | {name: [1] * 10}
    refuses(rejoin(data, header=codec.verbatim(canonical(table))), "states")


def test_format_1_has_no_code_streams_for_sections() -> None:
    data = load(FIRST).data
    stream = Stored(SectionCodec.RANS, len(plain("scales", data)), b"")
    refuses(rejoin(data, scales=stream), "unknown way to store")


def test_files_beyond_the_largest_are_refused() -> None:
    refuses(bytes(frame.MOST_BYTES + 1), "at most")
    large = {"halves": codec.verbatim(bytes(frame.MOST_BYTES))}
    with pytest.raises(ArtifactError, match="the format ends at"):
        frame.join(frame.split(SEED.data).sections | large)


def test_accounts_of_hostile_files_are_refused_too() -> None:
    for account in (sections, usage):
        with pytest.raises(ArtifactError):
            account(Artifact(SEED.data[:-1] + b"\0"))


def test_contents_are_never_executed() -> None:
    class Canary:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return pytest.fail, ("a pickle was opened",)

    bomb = pickle.dumps(Canary())
    refuses(bomb)
    for name in NAMES:
        if name != "tokenizer":
            refuses(reframe(**{name: codec.verbatim(bomb)}))
    payload = unpack(Artifact(reframe(tokenizer=codec.verbatim(bomb)))).tokenizer.payload
    assert payload == bomb


BOMBS = """
import hashlib, resource, sys
from segpt.artifact import frame, codec
from segpt.artifact.container import unpack
from segpt.errors import ArtifactError
from segpt.values import Artifact
files = sys.stdin.buffer.read()
codec._brotli(), hashlib.sha256(b"")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (96 << 20),) * 2)
while files:
    size, files = int.from_bytes(files[:4], "little"), files[4:]
    data, files = files[:size], files[size:]
    try:
        unpack(Artifact(data))
    except ArtifactError as error:
        print("refused:", error)
    else:
        print("accepted")
"""


def code_stream(size: int) -> bytes:
    """That many zeros, which take the state of a lane for 4096 of them."""
    return b"\0\0\xa0" + struct.pack("<I", 1 << 16) * (1 + size // 4096)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_bombs_burst_within_their_declared_size() -> None:
    import brotli

    size = 1 << 27
    zeros = bytes(size)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 20}]
    bombs = {
        SectionCodec.BROTLI: brotli.compress(zeros, quality=5),
        SectionCodec.LZMA: lzma.compress(zeros, lzma.FORMAT_RAW, filters=filters),
        SectionCodec.RANS: code_stream(size),
    }
    stored = frame.split(SEED.data).sections
    files = [
        reframe(**{name: Stored(way, declared, bomb)})
        for way, bomb in bombs.items()
        for name in NAMES
        for declared in (stored[name].size, size, 0, 100, 1 << 24)
    ]
    files += [reframe(header=codec.squeeze(bomb)) for bomb in bombs.values()]
    files += [reframe(tokenizer=Stored(SectionCodec.RANS, 1 << 24, code_stream((1 << 24) + 4096)))]
    files += [naming(1 << 20, 1 << 7, bits=bits) for bits in (4, 16)]  # a bomb of its own
    files += [naming(1 << 20, 1 << 10, bits=bits) for bits in (4, 16)]
    given = b"".join(struct.pack("<I", len(data)) + data for data in files)
    program = [sys.executable, "-c", BOMBS]
    run = subprocess.run(program, input=given, capture_output=True, check=False)
    assert run.stderr.decode() == ""
    lines = run.stdout.decode().splitlines()
    assert len(lines) == len(files)
    assert all(line.startswith("refused: ") for line in lines)


def test_code_streams_of_the_size_they_declare_are_what_they_are() -> None:
    zeros = Stored(SectionCodec.RANS, 1 << 20, code_stream(1 << 20))
    assert unpack(Artifact(reframe(tokenizer=zeros))).tokenizer.payload == bytes(1 << 20)
    for size in (0, 1, 31, 5000):
        assert (
            codec.unpack(codec.squeeze(bytes(range(100)) * size), "x") == bytes(range(100)) * size
        )


def naming(vocab: int, width: int, *, bits: int, tokenizer: bytes = b"") -> bytes:
    """A small file of a model that is one table, (vocab, width), whose codes take no bits."""
    small = make_artifact(4, 2, 8)  # all on grids
    table = json.loads(plain("header", small.data))
    table["model"] |= {
        "vocab": vocab,
        "width": width,
        "layers": [{"mixer": None, "feed": None}],
        "visits": [{"layer": 0}],
    }
    table |= {"bits": [bits], "groups": [int(bits < 16)], "states": [], "parts": []}
    sections = dict.fromkeys(NAMES, codec.verbatim(b""))
    sections |= {"header": codec.verbatim(canonical(table)), "tokenizer": codec.verbatim(tokenizer)}
    sections["codes"] = codec.verbatim(b"\1\0" + struct.pack("<I", 1 << 16))
    if bits < 16:
        sections["tables"] = codec.verbatim(b"\0\0\0\1\1\0\0\xa0")
        sections["scales"] = codec.squeeze(b"\0\x3c" * vocab)
    else:
        sections["halves"] = Stored(SectionCodec.RANS, 2 * vocab * width, b"")
    return rejoin(small.data, **sections)


def test_a_header_cannot_demand_more_steps_than_a_reader_takes() -> None:
    refuses(naming(1, 1 << 19, bits=4), "1 lanes for 1")


def test_a_large_model_is_paid_for_in_bytes() -> None:
    refuses(naming(1 << 20, 1 << 10, bits=4), "1,073,741,824 parameters in a file of [0-9,]+ bytes")
    refuses(naming(1 << 20, 1 << 10, bits=16), "parameters in a file")
    rows, width = 1 << 18, 576  # 150,994,944 numbers, which take 2,359,296 bytes at least
    random_bytes = random.Random(1).randbytes(2_400_000)
    opened = open_artifact(Artifact(naming(rows, width, bits=4, tokenizer=random_bytes)))
    assert parameters(opened.header.model) == rows * width > header.FREE_PARAMETERS
    refuses(naming(rows, width, bits=4, tokenizer=random_bytes[:2_000_000]), "parameters in a file")
