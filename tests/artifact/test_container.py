"""Artifacts: exact both ways, the same bytes everywhere, and clear about what is wrong."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpt.artifact import frame, stream
from segpt.artifact.container import budget, lanes_of, load, pack, sections, unpack, usage
from segpt.artifact.stream import MOST_STEPS
from segpt.config.head import Head
from segpt.config.layer import Attention, Dense, Layer
from segpt.config.layout import Role, layout
from segpt.config.model import ModelSpec
from segpt.config.parts import Gain, HeadGate, MixInput, Norm, Rope, Skip, Token, ValueResidual
from segpt.config.route import Visit
from segpt.errors import ArtifactError, CheckError
from segpt.values import (
    Artifact,
    Float16Weight,
    Quantized,
    QuantizedWeight,
    Tokenizer,
    TrellisWeight,
    UniformWeight,
)
from tests.artifact.weights import make_stepped, with_rows

BYTES = Tokenizer("bytes", 257)
HEAD = "head.matrix"
APART = ("prefix", "digest", "header", "tokenizer", "tables")  # not of any one weight
STYLES = ("uniform", "normal", "zero", "one value", "zero rows", "one symbol per row")


def make_grid(
    random: np.random.Generator, shape: tuple[int, int], bits: int, style: str
) -> UniformWeight:
    limit = 2 ** (bits - 1) - 1
    wide = random.integers(-limit, limit + 1, shape).astype(np.float64)
    match style:
        case "normal":
            wide = random.standard_normal(shape) * limit / 5
        case "zero":
            wide[:] = 0
        case "one value":
            wide[:] = wide[0, 0]
        case "zero rows":
            wide *= random.integers(0, 2, (shape[0], 1))
        case "one symbol per row":
            wide[:] = wide[:, :1]
        case _:
            pass
    codes = np.clip(np.round(wide), -limit, limit).astype(np.int8)
    groups = int(random.integers(1, shape[1] + 1))
    return UniformWeight(bits, codes, random.standard_normal((shape[0], groups)).astype(np.float16))


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    small = st.integers(1, 3)
    layers: list[Layer] = []
    heads, head_dim = 2 * draw(small), 2 * draw(small)
    for _ in range(draw(st.integers(1, 2))):
        mixer = Attention(
            heads=heads,
            kv_heads=2,
            head_dim=head_dim,
            query_key=draw(st.sampled_from([(), (Norm(), Rope(dims=2, base=500), Gain(init=5))])),
            value=draw(st.sampled_from([(), (ValueResidual(),)])),
            output=draw(st.sampled_from([(), (HeadGate(inputs=3),)])),
        )
        layers.append(
            Layer(
                mixer=draw(st.sampled_from([None, mixer])),
                feed=draw(st.sampled_from([None, Dense(hidden=5), Dense(hidden=2, act="swiglu")])),
                norm_scale=draw(st.sampled_from([1, 0.1, 3**-0.5])),
                join=draw(st.sampled_from([(), (MixInput(),)])),
            )
        )
    visits = [Visit(layer=i) for i in range(len(layers))]
    if draw(st.booleans()):
        visits.append(Visit(layer=0, join=(Skip(source=0), MixInput()), since=0.35))
    return ModelSpec(
        vocab=draw(st.integers(1, 40)),
        width=draw(st.integers(3, 12)),
        context=8,
        embed=(Token(),),
        layers=tuple(layers),
        visits=tuple(visits),
        head=Head(tied=draw(st.booleans()), softcap=draw(st.sampled_from([None, 30, 15.5]))),
    )


@st.composite
def quantizeds(draw: st.DrawFn) -> Quantized:
    spec = draw(models())
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights: dict[str, QuantizedWeight] = {}
    for weight in layout(spec):
        bits = draw(st.sampled_from([0, 0, 2, 3, 4, 5, 6, 7, 8, 16]))
        if len(weight.shape) == 2 and bits == 0:
            shape, states = (weight.shape[0], weight.shape[1]), draw(st.sampled_from([1, 4, 8, 16]))
            stepped = make_stepped(random, shape, states, sigma=draw(st.floats(0.2, 60)))
            weights[weight.name] = with_rows(random, stepped, draw(st.integers(0, 3)))
        elif len(weight.shape) == 2 and bits != 16:
            rows, columns = weight.shape
            style = draw(st.sampled_from(STYLES))
            weights[weight.name] = make_grid(random, (rows, columns), bits, style)
        else:
            weights[weight.name] = Float16Weight(
                random.standard_normal(weight.shape).astype(np.float16)
            )
    tokenizer = draw(
        st.sampled_from([BYTES, Tokenizer("merges", 9, b"x" * 99), Tokenizer("bytes", 1, b"\0")])
    )
    origin = draw(st.dictionaries(st.sampled_from(["text", "größe"]), st.just("0123456789abcdef")))
    return Quantized(spec, weights, tokenizer, origin)


def check_round_trip(quantized: Quantized) -> None:
    artifact = pack(quantized)
    again = unpack(artifact)
    assert again == quantized
    assert list(again.weights) == [weight.name for weight in layout(quantized.spec)]
    assert again.fingerprint == unpack(Artifact(bytes(artifact.data))).fingerprint
    assert pack(again).data == artifact.data
    assert sum(section.bytes for section in sections(artifact)) == artifact.size


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(quantizeds())
def test_models_come_back_bit_for_bit(quantized: Quantized) -> None:
    check_round_trip(quantized)


@pytest.mark.campaign
@settings(max_examples=30, deadline=None)
@given(quantizeds())
def test_many_models_come_back_bit_for_bit(quantized: Quantized) -> None:
    check_round_trip(quantized)


def make_quantized(seed: int = 0, vocab: int = 64, width: int = 16) -> Quantized:
    """A small model with all roles: 4 bits in the table, 3 in a matrix; the others are stepped."""
    random = np.random.default_rng(seed)
    spec = ModelSpec(
        vocab=vocab,
        width=width,
        context=8,
        embed=(Token(),),
        layers=(Layer(mixer=None, feed=Dense(hidden=width)),),
        visits=(Visit(layer=0),),
        head=Head(tied=False),
    )
    weights: dict[str, QuantizedWeight] = {}
    for weight in layout(spec):
        if weight.role is Role.VECTOR:
            weights[weight.name] = Float16Weight(np.ones(weight.shape, np.float16))
            continue
        rows, columns = weight.shape
        if weight.name == HEAD:
            stepped = make_stepped(random, (rows, columns), 8)
            weights[weight.name] = with_rows(random, stepped, 3)
        elif weight.name.endswith("down"):
            weights[weight.name] = make_stepped(random, (rows, columns), 4)
        else:
            bits = 3 if weight.role is Role.MATRIX else 4
            weights[weight.name] = make_grid(random, (rows, columns), bits, "uniform")
    return Quantized(spec, weights, BYTES, {"text": "0123456789abcdef"})


def test_models_without_a_grid_come_back() -> None:
    quantized = make_quantized()
    halves = {n: Float16Weight(np.ones(c.shape, np.float16)) for n, c in quantized.weights.items()}
    check_round_trip(replace(quantized, weights=halves))


@pytest.mark.slow
def test_codes_that_cost_nothing_still_decode_in_few_steps() -> None:
    quantized = make_quantized(vocab=1, width=2)
    spec = replace(quantized.spec, vocab=1 << 16, width=65, head=Head())
    weights: dict[str, QuantizedWeight] = {}
    for w in layout(spec):
        if len(w.shape) == 1:
            weights[w.name] = Float16Weight(np.ones(w.shape, np.float16))
        else:
            scales = np.ones((w.shape[0], 1), np.float16)
            weights[w.name] = UniformWeight(8, np.zeros(w.shape, np.int8), scales)
    artifact = pack(replace(quantized, spec=spec, weights=weights))
    held = {section.name: section.bytes for section in sections(artifact)}
    assert held["codes"] == 2 + 4 * 32
    assert MOST_STEPS >= 65 * -(-(1 << 16) // 32)
    assert unpack(artifact).weights == weights


PROGRAM = """
import sys, hashlib
sys.path.insert(0, sys.argv[1])
from tests.artifact.test_container import make_quantized
from segpt.artifact.container import pack
print(hashlib.sha256(pack(make_quantized(7, 300, 64)).data).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.parametrize("hashseed", ["0", "1", pytest.param("random", marks=pytest.mark.campaign)])
def test_every_process_packs_the_same_bytes(hashseed: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(Path(__file__).parents[2])],
        env=os.environ | {"PYTHONHASHSEED": hashseed},
        capture_output=True,
        text=True,
        check=True,
    )
    here = hashlib.sha256(pack(make_quantized(7, 300, 64)).data).hexdigest()
    assert run.stdout.split() == [here]


def turn(coded: QuantizedWeight) -> QuantizedWeight:
    """The same weight with its columns together in memory."""
    match coded:
        case UniformWeight(bits=bits, codes=codes, scales=scales):
            return UniformWeight(bits, np.asfortranarray(codes), np.asfortranarray(scales))
        case TrellisWeight():
            return replace(
                coded, codes=np.asfortranarray(coded.codes), rows=coded.rows.repeat(2)[::2]
            )
        case Float16Weight():
            return coded


def test_memory_layout_does_not_change_the_bytes() -> None:
    quantized = make_quantized()
    turned: dict[str, QuantizedWeight] = {
        name: turn(c) for name, c in reversed(list(quantized.weights.items()))
    }
    assert pack(replace(quantized, weights=turned)).data == pack(quantized).data


def with_codes(change: Callable[[UniformWeight], QuantizedWeight]) -> Quantized:
    quantized = make_quantized()
    table = quantized.weights["table"]
    assert isinstance(table, UniformWeight)
    return replace(quantized, weights={**quantized.weights, "table": change(table)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda g: UniformWeight(2, g.codes, g.scales),
            "table: codes of 2 bits are int8 from -1 to 1",
        ),
        (lambda g: UniformWeight(8, np.full_like(g.codes, -128), g.scales), "from -127 to 127"),
        (lambda g: UniformWeight(4, g.codes.astype(np.int16), g.scales), "these are int16"),
        (
            lambda g: UniformWeight(4, g.codes, g.scales * np.float16("nan")),
            "table: .* finite float16",
        ),
        (lambda g: UniformWeight(4, g.codes, g.scales / np.float16(0)), "table: .* finite float16"),
        (
            lambda g: UniformWeight(4, g.codes, g.scales.astype(np.float32)),
            "table: .* finite float16",
        ),
        (lambda g: UniformWeight(4, g.codes[:-1], g.scales), r"table: codes \(63, 16\)"),
        (lambda g: UniformWeight(4, g.codes, g.scales[:-1]), r"table: codes .* scales \(63, "),
        (lambda g: UniformWeight(4, g.codes, g.scales[:, 0]), r"table: codes .* scales \(64,\)"),
        (
            lambda g: UniformWeight(4, g.codes, np.ones((64, 17), np.float16)),
            "17 groups for 16 columns",
        ),
        (lambda g: UniformWeight(9, g.codes, g.scales), "bits are 2 to 8"),
        (
            lambda g: Float16Weight(np.ones((2, 2), np.float16)),
            r"\(2, 2\) values for a weight \(64, 16\)",
        ),
        (lambda g: Float16Weight(np.full(g.shape, np.inf, np.float16)), "table: .* finite float16"),
        (lambda g: Float16Weight(np.ones(g.shape, np.float64)), "table: .* finite float16"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_weights_the_format_cannot_hold_are_refused(
    change: Callable[[UniformWeight], QuantizedWeight], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        pack(with_codes(change))


def with_steps(change: Callable[[TrellisWeight], QuantizedWeight]) -> Quantized:
    quantized = make_quantized()
    head = quantized.weights[HEAD]
    assert isinstance(head, TrellisWeight)
    return replace(quantized, weights={**quantized.weights, HEAD: change(head)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: replace(w, states=2), "states are one of"),
        (lambda w: replace(w, states=0), "states are one of"),
        (lambda w: replace(w, codes=np.full_like(w.codes, -128)), "codes are int8 from -127"),
        (lambda w: replace(w, codes=w.codes.astype(np.int16)), "codes are .*int16"),
        (lambda w: replace(w, codes=w.codes[1:]), "codes are"),
        (lambda w: replace(w, rows=w.rows[1:]), "rows are"),
        (lambda w: replace(w, rows=np.full_like(w.rows, 121)), "exponent is beyond 120"),
        (lambda w: replace(w, columns=np.full_like(w.columns, -128)), "exponent is beyond 120"),
        (lambda w: replace(w, columns=w.columns.astype(np.int16)), "columns are"),
        (lambda w: replace(w, centre=None, stored=None), "codes are"),
        (lambda w: replace(w, centre=w.centre[1:]), "centre are"),
        (lambda w: replace(w, centre=w.centre * np.float16("inf")), "finite float16"),
        (lambda w: replace(w, shared=w.shared * np.float16("nan")), "finite float16"),
        (lambda w: replace(w, shared=None), "shared are None"),
        (lambda w: replace(w, stored=None), "codes are"),
        (lambda w: replace(w, stored=w.stored[1:]), "are"),
        (lambda w: replace(w, stored=np.zeros_like(w.stored)), "some are stored but not all"),
        (lambda w: replace(w, stored=np.ones_like(w.stored)), "some are stored but not all"),
        (lambda w: replace(w, stored=w.stored.astype(np.int8)), "bitmap of rows is bool"),
        (lambda w: replace(w, step=0.0), "a step is positive"),
        (lambda w: replace(w, step=-1.0), "a step is positive"),
        (lambda w: replace(w, step=float("nan")), "a step is positive"),
        (lambda w: replace(w, step=float("inf")), "a step is positive"),
        (lambda w: replace(w, step=0.1), "a step is a float32"),
        (lambda w: replace(w, step=2.0**-140), "too small or too large"),
        (lambda w: replace(w, step=1e300), "too small or too large"),
        (lambda w: replace(w, step=2.0**118), "too small or too large"),
        (lambda w: replace(w, step=2.0**-125), "too small or too large"),
    ],
)
def test_steps_the_format_cannot_hold_are_refused(
    change: Callable[[TrellisWeight], QuantizedWeight], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        pack(with_steps(change))


def test_rows_cannot_share_values_where_all_are_stored() -> None:
    quantized = make_quantized()
    stepped = make_stepped(np.random.default_rng(0), (64, 16), 8)
    shared = replace(stepped, shared=np.zeros(16, np.float16))
    with pytest.raises(ArtifactError, match="shared are"):
        pack(replace(quantized, weights={**quantized.weights, HEAD: shared}))


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [-120, 120])
@pytest.mark.parametrize("states", [1, 16])
def test_the_farthest_steps_decode_to_normal_numbers(exponent: int, states: int) -> None:
    stepped = make_stepped(np.random.default_rng(0), (64, 16), states, sigma=40)
    extreme = replace(
        stepped,
        codes=np.where(stepped.codes == 0, 127, stepped.codes).astype(np.int8),
        rows=np.full(64, exponent, np.int8),
        columns=np.full(16, exponent, np.int8),
        step=float(np.float32(2.0**-96 if exponent < 0 else np.nextafter(np.float32(2.0**89), 0))),
    )
    quantized = make_quantized()
    packed = replace(quantized, weights={**quantized.weights, HEAD: extreme})
    check_round_trip(packed)
    size = np.abs(extreme.decoded())
    assert np.isfinite(size).all()
    assert size.min() >= np.finfo(np.float32).tiny
    further = replace(extreme, step=float(np.float32(extreme.step * 2.0 ** np.sign(exponent))))
    with pytest.raises(ArtifactError, match="too small or too large"):
        pack(replace(quantized, weights={**quantized.weights, HEAD: further}))


def test_vectors_have_no_codes() -> None:
    quantized = make_quantized()
    grid = UniformWeight(8, np.ones((1, 16), np.int8), np.ones((1, 1), np.float16))
    stepped = make_stepped(np.random.default_rng(0), (1, 16), 8)
    for coded in (grid, stepped):
        weights = {**quantized.weights, "layers.0.feed.gain": coded}
        with pytest.raises(ArtifactError, match="one dimension"):
            pack(replace(quantized, weights=weights))


def test_weights_that_are_not_those_of_the_spec_are_refused() -> None:
    quantized = make_quantized()
    weights = dict(quantized.weights)
    extra = weights | {"bias": weights["table"]}
    with pytest.raises(ArtifactError, match="no weight named bias"):
        pack(replace(quantized, weights=extra))
    del weights["layers.0.feed.gain"]
    with pytest.raises(ArtifactError, match=r"layers\.0\.feed\.gain"):
        pack(replace(quantized, weights=weights))


@pytest.mark.slow
def test_models_beyond_the_caps_are_refused() -> None:
    quantized = make_quantized()
    for spec, message in (
        (replace(quantized.spec, vocab=1 << 21), "sides are 1 to"),
        (replace(quantized.spec, vocab=1 << 20, width=1 << 12), "parameters"),
        (replace(quantized.spec, visits=quantized.spec.visits * 9000), "commas"),
    ):
        with pytest.raises(ArtifactError, match=message):
            pack(replace(quantized, spec=spec))
    nameless = replace(quantized, tokenizer=Tokenizer("bytes", 0))
    with pytest.raises(ArtifactError, match="vocab"):
        pack(nameless)
    long = replace(quantized, tokenizer=Tokenizer("merges", 9, bytes((1 << 24) + 1)))
    with pytest.raises(ArtifactError, match="tokenizer"):
        pack(long)


def test_the_origin_holds_strings_only() -> None:
    numbers = replace(make_quantized(), origin={"text": 7})  # type: ignore[dict-item]
    with pytest.raises(ArtifactError, match="origin"):
        pack(numbers)


def test_specs_with_whole_numbers_for_fractions_pack_like_any_other() -> None:
    quantized = make_quantized()
    capped = [
        replace(quantized, spec=replace(quantized.spec, head=head))
        for head in (Head(tied=False, softcap=30), Head(tied=False, softcap=30.0))
    ]
    assert pack(capped[0]).data == pack(capped[1]).data
    infinite = replace(quantized.spec, head=Head(tied=False, softcap=float("inf")))
    with pytest.raises(ArtifactError, match="not a number"):
        pack(replace(quantized, spec=infinite))


@pytest.mark.slow
def test_a_file_is_made_again_with_the_lanes_that_it_has() -> None:
    quantized = make_quantized(0, 1024, 64)
    artifact = pack(quantized, 40)
    assert lanes_of(artifact) == 40
    assert unpack(artifact) == quantized
    assert pack(unpack(artifact), lanes_of(artifact)) == artifact != pack(quantized)


def test_usage_of_a_model_at_hand_decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    quantized = make_quantized(0, 1024, 64)
    artifact = pack(quantized)
    expected = usage(artifact)
    monkeypatch.setattr(stream, "decode", pytest.fail)
    assert usage(artifact, quantized) == expected


@pytest.mark.slow
def test_usage_adds_up_and_tells_bits_per_weight() -> None:
    quantized = make_quantized(0, 1024, 64)
    artifact = pack(quantized)
    found = {use.role: use for use in usage(artifact)}
    assert found.keys() == {Role.TABLE, Role.MATRIX, Role.HEAD, Role.VECTOR}
    total = sum(s.bytes for s in sections(artifact) if s.name not in APART)
    assert sum(use.bytes for use in found.values()) == pytest.approx(total)
    assert sum(use.parameters for use in found.values()) == 2 * 1024 * 64 + 64 + 2 * 64 * 64
    plain: dict[str, QuantizedWeight] = {}
    for name, coded in quantized.weights.items():
        plain[name] = coded
        if isinstance(coded, UniformWeight):
            plain[name] = replace(coded, scales=np.ones((len(coded.codes), 1), np.float16))
        elif name != HEAD and isinstance(coded, TrellisWeight):
            grid = quantized.weights["layers.0.feed.body.up"]
            assert isinstance(grid, UniformWeight)
            plain[name] = replace(grid, scales=np.ones((64, 1), np.float16))
    rates = {u.role: u.bits_per_weight for u in usage(pack(replace(quantized, weights=plain)))}
    assert rates[Role.TABLE] == pytest.approx(np.log2(15), rel=0.01)
    assert rates[Role.MATRIX] == pytest.approx(np.log2(7), rel=0.02)


@pytest.mark.slow
def test_usage_knows_what_steps_take() -> None:
    quantized = make_quantized(1, 1024, 64)
    uses = {use.role: use.bytes for use in usage(pack(quantized))}
    head = quantized.weights[HEAD]
    assert isinstance(head, TrellisWeight)
    bare = replace(head, centre=None, rows=np.zeros_like(head.rows))
    without = replace(quantized, weights={**quantized.weights, HEAD: bare})
    fewer = {use.role: use.bytes for use in usage(pack(without))}
    assert uses[Role.HEAD] - fewer[Role.HEAD] > 64 + len(head.rows) / 2
    assert uses[Role.TABLE] == pytest.approx(fewer[Role.TABLE], rel=0.01)


def test_without_brotli_files_are_written_and_brotli_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quantized = make_quantized()
    artifact = pack(quantized)
    assert "brotli" in {section.codec for section in sections(artifact)}
    monkeypatch.setitem(sys.modules, "brotli", None)
    with pytest.raises(ArtifactError, match="pip install 'brotli"):
        unpack(artifact)
    plain = pack(quantized)
    assert {section.codec for section in sections(plain)} <= {"stored", "lzma", "rans"}
    assert unpack(plain) == quantized
    monkeypatch.undo()
    assert unpack(plain) == quantized


def test_files_load(tmp_path: Path) -> None:
    artifact = pack(make_quantized())
    path = tmp_path / "model.segpt"
    path.write_bytes(artifact.data)
    assert load(path) == artifact


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\x80\x04\x95", "pickle"),
        (b"PK\x03\x04rest", "torch checkpoint"),
        (b"\x10\0\0\0\0\0\0\0{}", "safetensors"),
        (b"hello there", "it starts with b'hello '"),
        (frame.MAGIC, "truncated"),
        (frame.MAGIC + b"\1\0\7", "truncated"),
        (frame.MAGIC + b"\2\0\13", "truncated"),
        (frame.MAGIC + b"\3\0\7" + bytes(100), "format 3 is unknown; .* reads formats 1 to 2"),
        (frame.MAGIC + b"\0\0\7" + bytes(100), "format 0 is unknown"),
        (frame.MAGIC + b"\1\0\7" + bytes(200), "SHA-256"),
        (frame.MAGIC + b"\2\0\13" + bytes(200), "SHA-256"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "model.segpt"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_missing_and_huge_files_are_refused_unread(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"No such file.*segpt pack"):
        load(tmp_path / "absent.segpt")
    with pytest.raises(ArtifactError, match="cannot read"):
        load(tmp_path)
    sparse = tmp_path / "huge.segpt"
    with sparse.open("wb") as file:
        file.truncate(frame.MOST_BYTES + 1)
    with pytest.raises(ArtifactError, match="at most"):
        load(sparse)


def test_the_budget_is_met_or_the_overshoot_named() -> None:
    artifact = pack(make_quantized())
    budget(artifact, artifact.size)
    with pytest.raises(CheckError, match=r"takes .* bytes, 1 over .*--budget"):
        budget(artifact, artifact.size - 1)
