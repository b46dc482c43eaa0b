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

from segpt.errors import SpecError
from segpt.spec.base import canonical, decode, encode, fingerprint, kind, nearest, patch, spec
from segpt.spec.model import (
    Attention,
    Dense,
    Gain,
    Head,
    Layer,
    ModelSpec,
    Norm,
    Rope,
    Skip,
    Token,
    Visit,
)
from segpt.spec.recipe import Recipe, names, read_recipe
from segpt.spec.train import Muon, TrainSpec

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


@pytest.mark.parametrize("name", names())
def test_shipped_recipes_survive_a_round_trip(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.name == name
    plain = encode(recipe)
    assert decode(Recipe, plain) == recipe
    assert decode(Recipe, json.loads(canonical(recipe))) == recipe
    assert decode(Recipe, yaml.safe_load(yaml.safe_dump(plain))) == recipe


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
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
        ("vocab", "7", r"\$\.vocab: expected int, got '7'"),
        ("vocab", True, r"\$\.vocab: expected int, got True"),
        ("vocab", 7.0, r"\$\.vocab: expected int, got 7\.0"),
        ("vocab", 0, r"\$: vocab must be positive, got 0"),
        ("layers", {}, r"\$\.layers: expected a list, got \{\}"),
        ("layers.0", 3, r"\$\.layers\[0\]: expected a table for layer, got 3"),
        ("layers.0", "dense", r"\$\.layers\[0\]: unknown kind 'dense'; known: layer"),
        ("layers.0.wiring", "serail", r"\.wiring: unknown value 'serail'; did you mean 'serial'\?"),
        ("layers.0.wiring", None, r"\.wiring: unknown value None; known: parallel, serial"),
        ("layers.0.norm_scale", "1", r"\$\.layers\[0\]\.norm_scale: expected float, got '1'"),
        ("layers.0.norm_scale", float("nan"), r"norm_scale: expected a finite number, got nan"),
        ("layers.0.norm_scale", float("inf"), r"norm_scale: expected a finite number, got inf"),
        ("layers.0.norm_scale", 10**400, r"norm_scale: expected a finite number, got 1000"),
        ("layers.0.mixer", 3, r"\$\.layers\[0\]\.mixer: unknown kind 3; known: attention"),
        ("layers.0.mixer", "attention", r"\.mixer: missing key 'head_dim' in attention"),
        ("layers.0.mixer.query_key.1", "ropee", r"query_key\[1\]: unknown kind 'ropee'; did you "),
        ("layers.0.mixer.query_key.1.dims", 3, r"query_key\[1\]: rope rotates pairs"),
        ("layers.0.mixer.query_key.1.dims", 4, r"mixer: rope rotates 4 of 2 channels"),
        ("layers.0.mixer.query_key.1.base", 0, r"query_key\[1\]: rope needs a positive base"),
        ("layers.0.mixer.heads", 3.5, r"\.heads: expected int"),
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
    mixers = [
        Attention(heads=2, kv_heads=k, head_dim=2, value=decode_values) for k, decode_values in ()
    ]
    assert not mixers


def changed(plain: Any, path: str, value: object) -> Any:
    """A copy of plain values with another value at a path."""
    copy = json.loads(json.dumps(plain))
    here = copy
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in steps:
        here = here[step]
    here[last] = value
    return copy
