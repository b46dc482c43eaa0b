"""Recipes by name and by file, and ``--set path=value``."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segpt.config.base import decode, differences, encode
from segpt.config.parts import Rope
from segpt.config.recipe import Bpe, Bytes, Recipe, apply_settings, names, read_recipe
from segpt.config.schedule import Seconds, Steps
from segpt.config.score import Frozen
from segpt.errors import SpecError

TINY = """
name: tiny
about: a test
tokenizer: bytes
model:
  vocab: 257
  width: 16
  context: 8
  depth: 2
  layer: {mixer: {heads: 2, kv_heads: 1, head_dim: 8, query_key: [norm]}, feed: {hidden: 32}}
train: {length: {kind: steps, count: 1}, batch: 2}
"""


def rope(recipe: Recipe) -> object:
    mixer = recipe.model.layers[0].mixer
    assert mixer is not None
    return mixer.query_key[1]


def test_recipes_are_found_by_name_and_by_file(tmp_path: Path) -> None:
    assert {"demo", "golf16", "seed004"} <= set(names())
    for suffix in ("yaml", "yml"):
        file = tmp_path / f"tiny.{suffix}"
        file.write_text(TINY)
        assert read_recipe(file).tokenizer == Bytes()
        assert read_recipe(str(file)) == read_recipe(file)
    assert read_recipe("golf16").tokenizer == Bpe(vocab=8192)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "get", "value"),
    [
        ("train.batch=64", lambda r: r.train.batch, 64),
        ("train.schedule.warmdown=0.5", lambda r: r.train.schedule.warmdown, 0.5),
        ("train.length={kind: seconds, count: 60}", lambda r: r.train.length, Seconds(count=60.0)),
        ("train.length.count=7", lambda r: r.train.length, Steps(count=7)),
        ("train.average=null", lambda r: r.train.average, None),
        ("train.average=", lambda r: r.train.average, None),
        ("train.clip=1e-1", lambda r: r.train.clip, 0.1),
        ("tokenizer=bytes", lambda r: r.tokenizer, Bytes()),
        ("adapt=frozen", lambda r: r.adapt, Frozen()),
        ("model.width=64", lambda r: r.model.width, 64),
        ("model.layer.mixer.query_key[1].dims=32", rope, Rope(dims=32)),
        ("model.layer.mixer.query_key[-2].dims=32", rope, Rope(dims=32)),
        ("model.override[0].layers='3:'", lambda r: r.model.layers[3].wiring, "parallel"),
        ("quantize.rules=[{role: matrix, bits: 4}]", lambda r: r.quantize.rules[0].bits, 4),
        ("name=a=b", lambda r: r.name, "a=b"),
    ],
)
def test_settings_reach_every_corner(setting: str, get: Any, value: object) -> None:
    plain = read_recipe("golf16")
    changed = read_recipe("golf16", [setting])
    assert get(changed) == value
    assert get(plain) != value


def test_later_settings_win_and_earlier_ones_stay() -> None:
    changes = ["train.batch=16", "train.accumulation=2", "train.batch=32"]
    recipe = read_recipe("golf16", changes)
    assert (recipe.train.batch, recipe.train.accumulation) == (32, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.batch", "--set 'train.batch': write path=value, e.g. --set train.batch=16"),
        ("=3", "--set '=3': write path=value"),
        ("", "--set '': write path=value"),
        ("train..batch=3", "write path=value"),
        (".train=3", "write path=value"),
        ("train.batch.=3", "write path=value"),
        ("train.batch[=3", "write path=value"),
        ("[0]=3", "write path=value"),
        ("train.[0]=3", "write path=value"),
        ("model.layer.mixer.query_key[7].dims=3", "nothing at 7"),
        ("model.layer.mixer.query_key[-9]=norm", "nothing at -9"),
        ("model.layer.mixer.query_key.rope.dims=3", "nothing at 'rope'"),
        ("model.layer.mixer.query_key.rope=3", "nothing at 'rope'"),
        ("train.batch.size=3", "nothing at 'size'"),
        ("name[0].x=3", "nothing at 'x'"),
        ("train.batch=[1", "--set train.batch: cannot read the value '\\[1'"),
        ("train.batch=2001-99-99", "cannot read the value"),
        ("train.batch=!!bool maybe", "cannot read the value"),
        ("train.batch=!!timestamp maybe", "cannot read the value"),
        ("train.batch=" + "9" * 5000, "cannot read the value"),
        ("train.batch=" + "[" * 1000, "cannot read the value"),
        ("train.btach=3", r"recipe golf16: train: unknown key 'btach' .* mean 'batch'\?"),
        ("trian.batch=3", r"recipe golf16: unknown key 'trian' .* did you mean 'train'\?"),
        ("train.lenght.count=3", r"train: unknown key 'lenght' .* did you mean 'length'\?"),
        ("model.rout=':'", r"recipe golf16: model: unknown key 'rout'; did you mean 'route'"),
        ("model[0]=3", r"model: unknown key '0'"),
        ("model=3", r"model: expected a table for model, got 3"),
        ("train.batch='8'", r"train\.batch: expected a whole number, got '8'"),
        ("train.batch=8e0", r"train\.batch: expected a whole number, got '8e0'"),
        ("train.clip=1e999", r"train\.clip: expected a finite number, got '1e999'"),
        ("train.batch=8.0", r"train\.batch: expected a whole number, got 8\.0"),
        ("score.policy=forzen", "unknown kind 'forzen'; did you mean 'frozen'"),
    ],
)
def test_bad_settings_are_named(setting: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_recipe("golf16", [setting])


def test_settings_do_not_change_the_table_they_are_applied_to() -> None:
    table = {"a": {"b": [1, {"c": 2}]}}
    assert apply_settings(table, ["a.b[1].c=3", "d.e=4"]) == {
        "a": {"b": [1, {"c": 3}]},
        "d": {"e": 4},
    }
    assert table == {"a": {"b": [1, {"c": 2}]}}


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"unknown recipe 'golf61'; did you mean 'golf16'\? known:"):
        read_recipe("golf61")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot read recipe .*absent\.yaml: .*No such file"):
        read_recipe(tmp_path / "absent.yaml")
    with pytest.raises(SpecError, match=r"cannot read recipe .*: .*Is a directory"):
        read_recipe(tmp_path)
    with pytest.raises(SpecError, match="cannot read recipe"):
        read_recipe("nul\0.yaml")
    file = tmp_path / "latin.yaml"
    file.write_bytes(b"name: caf\xe9")
    with pytest.raises(SpecError, match=r"cannot read recipe .*latin\.yaml"):
        read_recipe(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a table of name, tokenizer, model and train"),
        ("- 1\n- 2", "expected a table"),
        ("name: [", "not valid YAML"),
        ("name: \0", "not valid YAML"),
        ("{[1]: 2}", "not valid YAML"),
        ("name: 2001-99-99", "not valid YAML"),
        ("name: a\nmodel: {}\nname: b", "'name' stands twice in one table .*line 3"),
        ("model: {width: 8, width: 16}", "'width' stands twice"),
        ("[" * 1000, "not valid YAML"),
        ("name: tiny", "missing key 'model'"),
        (TINY.replace("width: 16", "width: 0"), r"model: width must be positive, got 0"),
        (TINY.replace("width: 16", "widht: 16"), r"model: unknown key 'widht'; did you mean"),
        (TINY.replace("batch: 2", "btach: 2"), r"train: unknown key 'btach' in train"),
        (TINY + "extra: 1", r"unknown key 'extra' in recipe"),
        (TINY.replace("name: tiny", ""), r"missing key 'name' in recipe"),
    ],
)
def test_errors_name_the_file(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(SpecError, match=rf"mine\.yaml: .*{message}"):
        read_recipe(file)


@pytest.mark.parametrize(
    "tag", ["object/apply:os.system", "object/new:os.system", "name:os.system", "module:os"]
)
@pytest.mark.parametrize("slot", ["file", "value", "setting"])
def test_yaml_runs_no_code(tag: str, slot: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    attack = f"!!python/{tag} ['touch {canary}']"
    file = tmp_path / "attack.yaml"
    file.write_text(attack if slot == "file" else TINY.replace("a test", attack))
    source, changes = ("demo", [f"about={attack}"]) if slot == "setting" else (file, [])
    with pytest.raises(SpecError, match=r"not valid YAML|cannot read the value"):
        read_recipe(source, changes)
    assert not canary.exists()


@pytest.mark.slow
@settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_mutated_files_read_or_raise_a_spec_error(data: st.DataObject, tmp_path: Path) -> None:
    lines = yaml.safe_dump(yaml.safe_load(TINY), default_flow_style=False).splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        i = data.draw(st.integers(0, len(lines) - 1))
        key, colon, _ = lines[i].partition(":")
        odd = st.sampled_from(["null", "-1", "0", "[]", "{}", "x", ".nan", "1e999", "{kind: x}"])
        value = data.draw(odd | st.text(max_size=6))
        lines[i] = f"{key}{colon} {value}" if data.draw(st.booleans()) else value
    file = tmp_path / "mutated.yaml"
    file.write_text("\n".join(lines), encoding="utf-8", errors="replace")
    try:
        recipe = read_recipe(file)
    except SpecError:
        return
    assert decode(Recipe, encode(recipe)) == recipe


def test_what_differs_is_named_as_it_is_set() -> None:
    before = read_recipe("demo")
    now = read_recipe("demo", ["train.batch=5", "quantize.rules[0].bits=5", "train.clip=null"])
    assert differences(before, before) == []
    assert {path: (old, new) for path, old, new in differences(before, now)} == {
        "train.batch": (before.train.batch, 5),
        "train.clip": (1.0, None),
        "quantize.rules[0].bits": (before.quantize.rules[0].bits, 5),
    }
