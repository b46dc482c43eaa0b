"""Specs to plain values and back; errors that name the place; fingerprints."""

import dataclasses
import json
import random
import string
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segpt.config.base import canonical, decode, encode, fingerprint, kind, nearest, patch, spec
from segpt.config.head import Head
from segpt.config.layer import Attention, Dense, Layer
from segpt.config.model import ModelSpec
from segpt.config.optimizer import Adam, Muon
from segpt.config.parts import Gain, Norm, Rope, Skip, Token, ValueResidual
from segpt.config.recipe import Recipe, names, read_recipe
from segpt.config.route import Visit
from segpt.config.schedule import Schedule
from segpt.config.score import ScoreSpec, Sgd
from segpt.config.train import Average, TrainSpec
from segpt.errors import SpecError

TINY = ModelSpec(
    vocab=7,
    width=4,
    context=8,
    embed=(Token(),),
    layers=(
        Layer(
            mixer=Attention(
                heads=2, kv_heads=1, head_dim=2, query_key=(Norm(), Rope(dims=2), Gain(init=5.25))
            ),
            feed=Dense(hidden=6),
        ),
    ),
    visits=(Visit(layer=0), Visit(layer=0, join=(Skip(source=0),), since=0.5)),
    head=Head(),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_shipped_recipes_survive_a_round_trip(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.name == name
    plain = encode(recipe)
    assert decode(Recipe, plain) == recipe
    assert decode(Recipe, json.loads(canonical(recipe))) == recipe
    assert decode(Recipe, yaml.safe_load(yaml.safe_dump(plain))) == recipe


@pytest.mark.slow
@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_recipes_survive_a_round_trip(
    data: st.DataObject, random_recipe: st.SearchStrategy[Recipe]
) -> None:
    recipe = data.draw(random_recipe)
    again = decode(Recipe, json.loads(canonical(recipe)))
    assert again == recipe
    assert hash(again) == hash(recipe)
    assert fingerprint(again) == fingerprint(recipe) == fingerprint(encode(recipe))


def test_short_tags_stand_for_tables_of_defaults() -> None:
    parts = ["norm", {"kind": "rope", "dims": 2}, {"kind": "gain"}]
    plain = {"heads": 2, "kv_heads": 1, "head_dim": 2, "query_key": parts}
    assert decode(Attention, plain).query_key == (Norm(), Rope(dims=2), Gain(init=1.0))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("vocab", "7", r"\$\.vocab: expected a whole number, got '7'"),
        ("vocab", True, r"\$\.vocab: expected a whole number, got True"),
        ("vocab", 7.0, r"\$\.vocab: expected a whole number, got 7\.0"),
        ("vocab", 0, r"\$: vocab must be positive, got 0"),
        ("layers", {}, r"\$\.layers: expected a list, got \{\}"),
        ("layers.0", 3, r"\$\.layers\[0\]: expected a table for layer, got 3"),
        ("layers.0", "dense", r"\$\.layers\[0\]: unknown kind 'dense'; known: layer"),
        ("layers.0.wiring", "serail", r"\.wiring: unknown kind 'serail'; did you mean 'serial'\?"),
        ("layers.0.wiring", None, r"\.wiring: unknown kind None; known: lanes, parallel, serial"),
        ("layers.0.norm_scale", "1", r"\$\.layers\[0\]\.norm_scale: expected a number, got '1'"),
        ("layers.0.norm_scale", float("nan"), r"norm_scale: expected a finite number, got nan"),
        ("layers.0.norm_scale", float("inf"), r"norm_scale: expected a finite number, got inf"),
        ("layers.0.norm_scale", 10**400, r"norm_scale: expected a finite number, got 1000"),
        ("layers.0.mixer", 3, r"\$\.layers\[0\]\.mixer: unknown kind 3; known: attention"),
        ("layers.0.mixer", "attention", r"\.mixer: missing key 'head_dim' in attention"),
        ("layers.0.mixer.query_key.1", "ropee", r"query_key\[1\]: unknown kind 'ropee'; did you "),
        ("layers.0.mixer.query_key.1.dims", 3, r"query_key\[1\]: rope rotates pairs"),
        ("layers.0.mixer.query_key.1.dims", 4, r"mixer: rope rotates 4 of 2 channels"),
        ("layers.0.mixer.query_key.1.base", 0, r"query_key\[1\]: rope needs a positive base"),
        ("layers.0.mixer.heads", 3.5, r"\.heads: expected a whole number"),
        ("layers.0.mixer.kv_heads", 0, r"\.mixer: 2 heads do not divide among 0 kv_heads"),
        ("layers.0.mixer.kv_heads", 4, r"\.mixer: 2 heads do not divide among 4 kv_heads"),
        ("layers.0.mixer.output", ["head_gate"], r"\$: a head gate reads 12 of 4 channels"),
        ("layers.0.mixer.output", [{"kind": "head_gate", "inputs": 0}], r"output\[0\]: a head "),
        ("layers.0.feed.hidden", 0, r"\.feed: hidden must be positive, got 0"),
        ("visits.1.layer", 1, r"\$: visits\[1\] names layer 1 of 1"),
        ("visits.1.since", 1.5, r"\$: visits\[1\]\.since is a fraction of training, got 1\.5"),
        ("visits.1.join.0.source", 1, r"\$: visits\[1\] skips from visit 1, which is not earlier"),
        ("visits.1.join.0.source", -1, r"\$: visits\[1\] skips from visit -1"),
        ("visits", [], r"\$: layer 0 is never visited"),
        ("visits", [{"layer": 0, "since": 0.5}], r"\$: no visit runs from the start"),
        ("head.softcap", 0, r"\$\.head: softcap must be positive or null, got 0"),
    ],
)
def test_errors_name_the_path(path: str, value: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        decode(ModelSpec, changed(encode(TINY), path, value))


def test_value_residuals_need_one_shape() -> None:
    def layer(kv_heads: int, *value: ValueResidual) -> Layer:
        return Layer(
            mixer=Attention(heads=2, kv_heads=kv_heads, head_dim=2, value=value), feed=None
        )

    def model(*layers: Layer) -> ModelSpec:
        visits = tuple(Visit(layer=i) for i in range(len(layers)))
        return dataclasses.replace(TINY, layers=layers, visits=visits)

    residual = ValueResidual()
    assert model(layer(1, residual), layer(2), layer(1, residual)).layers[1].mixer is not None
    with pytest.raises(SpecError, match="must share kv_heads and head_dim"):
        model(layer(1, residual), layer(2, residual))


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (Muon, {"momentum": 1.0}, r"momentum and betas lie in \[0, 1\)"),
        (Muon, {"rate": -1}, "rate and decay are not negative"),
        (Muon, {"coefficients": "polar", "iterations": 6}, "polar iterations are 1 to 5: 6"),
        (Muon, {"iterations": 0}, "polar iterations are 1 to 5: 0"),
        (Adam, {"beta2": 1.0}, r"momentum and betas lie in \[0, 1\)"),
        (Schedule, {"warmup": 0.5, "warmdown": 0.6}, "sum to at most 1"),
        (Schedule, {"warmup": -0.1}, "sum to at most 1"),
        (Average, {"decay": 1.0}, "average.decay is below 1"),
        (TrainSpec, {"length": {"kind": "steps", "count": 0}, "batch": 1}, "length must be pos"),
        (TrainSpec, {"length": {"kind": "hours", "count": 1}, "batch": 1}, "unknown kind 'hours'"),
        (
            TrainSpec,
            {"length": {"kind": "steps", "count": 1}, "batch": 6, "accumulation": 4},
            "a batch of 6 sequences does not divide into 4 micro-batches",
        ),
        (
            TrainSpec,
            {"length": {"kind": "steps", "count": 1}, "batch": 1, "clip": 0},
            "clip must be positive or null",
        ),
        (
            TrainSpec,
            {"length": {"kind": "steps", "count": 1}, "batch": 1, "keep": 0},
            "keep must be at least 1",
        ),
        (ScoreSpec, {"stride": 0}, "stride and batch must be at least 1"),
        (ScoreSpec, {"context": 8, "stride": 9}, "stride 9 is longer than the context 8"),
        (Sgd, {"epochs": 0}, "chunk, epochs and batch must be at least 1"),
        (Sgd, {"clip": 0}, "clip is positive"),
        (Sgd, {"roles": []}, "roles names at least one"),
        (Sgd, {"roles": ["tables"]}, r"\$\.roles\[0\]: unknown value 'tables'; did you mean 'ta"),
    ],
)
def test_values_out_of_range_are_refused(
    cls: type[Any], fields: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        decode(cls, fields)


def typos(word: str, chance: random.Random) -> Iterator[str]:
    """One slip of each kind: a letter left out, doubled, swapped with the next, or mistaken."""
    i = chance.randrange(len(word) - 1)
    yield word[:i] + word[i + 1 :]
    yield word[:i] + word[i] + word[i:]
    yield word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    yield word[:i] + chance.choice(string.ascii_lowercase) + word[i + 1 :]


def keys(plain: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every key of every table, with the path of its table."""
    if isinstance(plain, dict):
        for key, value in plain.items():
            if key != "kind":
                yield path, key
            yield from keys(value, f"{path}.{key}" if path else key)
    elif isinstance(plain, list):
        for i, value in enumerate(plain):
            yield from keys(value, f"{path}.{i}")


@pytest.mark.slow
def test_misspelt_keys_are_recognised() -> None:
    plain = encode(read_recipe("golf16"))
    found = {(at(plain, path)["kind"], key): path for path, key in keys(plain)}
    chance = random.Random(0)
    right = wrong = 0
    for (tag, key), path in sorted(found.items()):
        known = {k for t, k in found if t == tag}
        for typo in set(typos(key, chance)) - known:
            with pytest.raises(SpecError) as caught:
                decode(Recipe, changed(plain, f"{path}.{typo}" if path else typo, 1))
            place = "".join(f"[{s}]" if s.isdigit() else f".{s}" for s in path.split(".") if s)
            name = tag.removesuffix("_spec")
            assert str(caught.value).startswith(f"${place}: unknown key {typo!r} in {name}; ")
            hit = f"did you mean {key!r}?" in str(caught.value)
            right, wrong = right + hit, wrong + (not hit)
    assert right + wrong >= 200
    assert right / (right + wrong) >= 0.95, (right, wrong)


def test_misspelt_kinds_and_choices_are_recognised() -> None:
    chance = random.Random(0)
    right = total = 0
    for word in ("rope", "norm", "gain"):
        for typo in set(typos(word, chance)) - {word}:
            with pytest.raises(SpecError) as caught:
                decode(ModelSpec, changed(encode(TINY), "layers.0.mixer.query_key.0", typo))
            right, total = right + (f"did you mean {word!r}?" in str(caught.value)), total + 1
    for word in ("relu2", "leaky_relu2", "silu", "swiglu"):
        for typo in set(typos(word, chance)) - {word}:
            with pytest.raises(SpecError) as caught:
                decode(ModelSpec, changed(encode(TINY), "layers.0.feed.act", typo))
            right, total = right + (f"did you mean {word!r}?" in str(caught.value)), total + 1
    assert total >= 20
    assert right / total >= 0.95, (right, total)


def test_a_far_word_gets_no_wrong_hint() -> None:
    assert nearest("zzzz", ["norm", "rope"]) == "known: norm, rope"


def test_messages_stay_short_whatever_the_value() -> None:
    bomb: Any = "x"
    for _ in range(40):
        bomb = [bomb] * 9  # 9^40 items if written out
    for path in ("vocab", "head", "layers.0.wiring", "layers.0.mixer"):
        table = encode(TINY)
        place, _, last = path.rpartition(".")
        at(table, place)[last] = bomb
        with pytest.raises(SpecError) as caught:
            decode(ModelSpec, table)
        assert len(str(caught.value)) < 1000


def test_fingerprints_are_stable() -> None:
    assert fingerprint(TINY) == "6093ae4d8087cf31"
    assert canonical({"b": (1, 2.0), "a": "é"}) == '{"a":"é","b":[1,2.0]}'.encode()


def test_fingerprints_do_not_depend_on_how_numbers_are_written() -> None:
    plain = encode(TINY)
    for path in ("head.softcap", "layers.0.norm_scale", "layers.0.mixer.query_key.1.base"):
        value = at(plain, path)
        assert value == int(value)
        assert fingerprint(decode(ModelSpec, changed(plain, path, int(value)))) == fingerprint(TINY)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "golf16", "imu1-small", "daisy-small", "frontier-small"])
def test_every_field_counts_in_the_fingerprint(name: str) -> None:
    plain = encode(read_recipe(name))
    seen = {fingerprint(plain)}
    leaves = list(leaf_paths(plain))
    for path in leaves:
        seen.add(fingerprint(changed(plain, path, "another value")))
    assert len(seen) == len(leaves) + 1
    # What came later is left out while it holds its default.
    fields = {f.name for f in dataclasses.fields(Recipe) if not f.metadata.get("added")}
    assert {path.split(".")[0] for path in leaves} - {"kind"} == fields


def leaf_paths(plain: Any, path: str = "") -> Iterator[str]:
    items: Any = ()
    if isinstance(plain, dict):
        items = plain.items()
    elif isinstance(plain, list):
        items = enumerate(plain)
    if not items:
        yield path
    for key, value in items:
        yield from leaf_paths(value, f"{path}.{key}" if path else str(key))


def test_kinds_are_snake_cased_class_names() -> None:
    assert kind(ValueResidual) == kind(ValueResidual()) == "value_residual"
    assert kind(Sgd()) == "sgd"


def test_specs_are_frozen_and_given_by_name() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.vocab = 8  # type: ignore[misc]

    @spec
    class Point:
        x: int
        y: int = 2

    with pytest.raises(TypeError):
        Point(1)  # type: ignore[call-arg]
    assert encode(Point(x=1)) == {"kind": "point", "x": 1, "y": 2}


def test_patches_merge_tables_and_replace_everything_else() -> None:
    table = {
        "wiring": "serial",
        "mixer": {"heads": 2, "output": ["head_gate"]},
        "feed": {"kind": "dense", "hidden": 8, "act": "silu"},
        "norm_scale": 1.0,
    }
    before = json.dumps(table)
    assert patch(table, {"mixer": {"heads": 4}}) == table | {
        "mixer": {"heads": 4, "output": ["head_gate"]}
    }
    assert patch(table, {"mixer": {"output": []}})["mixer"] == {"heads": 2, "output": []}
    assert patch(table, {"mixer": None})["mixer"] is None
    assert patch(table, {"feed": {"kind": "dense", "hidden": 4}})["feed"] == {
        "kind": "dense",
        "hidden": 4,
        "act": "silu",
    }
    assert patch(table, {"feed": {"kind": "experts", "count": 4}})["feed"] == {
        "kind": "experts",
        "count": 4,
    }
    assert patch(table, {"wiring": {"kind": "lanes"}})["wiring"] == {"kind": "lanes"}
    assert patch(table, {"join": ["mix_input"]}) == table | {"join": ["mix_input"]}
    assert json.dumps(table) == before


def at(plain: Any, path: str) -> Any:
    """What plain values hold at a path such as ``layers.0.mixer``; the empty one is the root."""
    for step in filter(None, path.split(".")):
        plain = plain[int(step) if step.isdigit() else step]
    return plain


def changed(plain: Any, path: str, value: object) -> Any:
    """A copy of plain values with another value at a path."""
    copy = json.loads(json.dumps(plain))
    place, _, last = path.rpartition(".")
    at(copy, place)[int(last) if last.isdigit() else last] = value
    return copy
