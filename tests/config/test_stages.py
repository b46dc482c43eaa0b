"""One file holds several recipes: stages, experiments, and a base that it changes."""

from pathlib import Path

import pytest
import yaml

from segpt.config.base import differences, fingerprint
from segpt.config.mixture import Mixture, read_mixture
from segpt.config.recipe import read_recipe, read_whole
from segpt.config.resolved import resolve, yaml_lines
from segpt.config.stages import Choice
from segpt.errors import SpecError

CHANGES = """
base: demo256
name: mine
anchors: {rates: &rates {matrix: {rate: 0.5}}}
"""
STAGES = """
stages:
  first: {data: {sources: [{path: a, weight: 1}, {path: b, weight: 2.5}]}}
  second:
    start: {after: first, optimizer: kept}
    model: {context: 32}
    train: {seed: 7, optimizer: *rates}
  third: {name: other, start: {after: second}}
"""
EXPERIMENTS = """
experiments:
  one: {train: {seed: 8}}
  two: {train: {seed: 9, optimizer: *rates}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.yaml"


def test_a_stage_changes_the_rest_of_the_file(file: Path) -> None:
    file.write_text(CHANGES + STAGES)
    base = read_recipe("demo256")
    first = read_whole(file, ())
    assert first.recipe.name == "mine-first"
    assert first.stage is not None
    assert first.stage.name == "first"
    assert first.stage.start is None
    assert first.recipe.data is not None
    assert len(first.recipe.data.sources) == 2
    second = read_whole(file, ["train.batch=2"], Choice(stage="second"))
    assert second.stage is not None
    assert second.stage.start is not None
    assert (second.stage.before, second.stage.start.optimizer) == ("mine-first", "kept")
    assert (second.recipe.train.seed, second.recipe.train.batch) == (7, 2)
    changed = {path for path, *_ in differences(base, second.recipe)}
    paths = {"name", "model.context", "train.seed", "train.batch", "train.optimizer.matrix.rate"}
    assert changed == paths
    third = read_whole(file, (), Choice(stage="third"))
    assert third.recipe.name == "other"
    assert third.stage is not None
    assert third.stage.before == "mine-second"
    assert third.stage.start is not None
    assert third.stage.start.optimizer == "fresh"
    assert third.recipe.train.seed == base.train.seed


def test_what_show_prints_is_the_stage_again(file: Path) -> None:
    file.write_text(CHANGES + STAGES)
    for stage in ("first", "second"):
        resolved = resolve(file, (), Choice(stage=stage))
        again = file.with_name("again.yaml")
        again.write_text("\n".join(yaml_lines(resolved)))
        assert fingerprint(read_recipe(again)) == fingerprint(resolved.recipe)


def test_an_experiment_has_to_be_named(file: Path) -> None:
    file.write_text(CHANGES + EXPERIMENTS)
    two = read_recipe(file, (), Choice(experiment="two"))
    assert (two.name, two.train.seed) == ("mine-two", 9)
    with pytest.raises(SpecError, match="choose one with --config-key: 'one', 'two'"):
        read_recipe(file)


@pytest.mark.parametrize(
    ("text", "choice", "match"),
    [
        (CHANGES, Choice(stage="x"), "holds no stages; leave out --stage x"),
        (CHANGES, Choice(experiment="x"), "holds no experiments"),
        (CHANGES + STAGES, Choice(stage="secnd"), "no stage 'secnd'; did you mean 'second'"),
        (CHANGES + EXPERIMENTS, Choice(experiment="tow"), "no experiment 'tow'"),
        ("base: [demo]", Choice(), "base: expected the name"),
        ("base: mine.yaml", Choice(), "base: more than 8 recipes that name each other"),
        ("base: gone.yaml", Choice(), "cannot read recipe"),
        (CHANGES + "stages: 3", Choice(), "stages: expected a table"),
        (CHANGES + "stages: {a: 3}", Choice(), "stages.a: expected a name with a table"),
        (
            CHANGES + "stages: {a: {start: {after: b}}, b: {}}",
            Choice(),
            "no stage before it is called 'b'",
        ),
        (
            CHANGES + "stages: {a: {}, b: {start: {after: a, optimizer: halved}}}",
            Choice(stage="b"),
            "unknown value 'halved'",
        ),
    ],
)
def test_what_there_is_not_is_named(file: Path, text: str, choice: Choice, match: str) -> None:
    file.write_text(text)
    with pytest.raises(SpecError, match=match):
        read_recipe(file, (), choice)


@pytest.mark.parametrize("size", ["", "-small"])
def test_the_stages_of_imu1_are_the_recipes_of_their_names(size: str) -> None:
    """Their content is pinned: runs that were begun before go on."""
    known = {
        "": ("5f41cae6049d9354", "074dd2db27c855f4", "e77d78d9e0ad7441"),
        "-small": ("e3242a94b4ba3304", "4aa4488cac5565bd", "5cda3ce1da2c266d"),
    }[size]
    names = [f"imu1{size}", f"imu1-decay{size}", f"imu1-midtrain{size}"]
    before = None
    for stage, name, wanted in zip(("stable", "decay", "midtrain"), names, known, strict=True):
        reading = read_whole(f"imu1{size}", (), Choice(stage=stage))
        assert reading.recipe == read_recipe(name)
        assert reading.recipe.name == name
        assert fingerprint(reading.recipe) == wanted
        assert reading.stage is not None
        assert reading.stage.before == before
        before = name


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_a_mix_is_read_in_both_forms(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"mix.{ending}"
    file.write_text('{"data/web": 3000, "data/code": 1000}')
    mixture = read_mixture(file)
    assert [source.called for source in mixture.sources] == ["web", "code"]
    assert [str(share) for share in mixture.shares()] == ["3/4", "1/4"]
    if ending == "yaml":
        file.write_text("data:\n  sources:\n  - {path: a, weight: 0.1}\n  - {path: b, weight: 0.2}")
        assert [str(share) for share in read_mixture(file).shares()] == ["1/3", "2/3"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"a": 3000, "a": 1}', "the key 'a' stands twice"),
        ('{"a": "3B"}', "expected a whole number of tokens for 'a'"),
        ('{"a": 0}', "tokens must be at least 1"),
        ("{}", "expected a table of sources"),
        ("[", "not valid JSON"),
        ('{"sources": [{"path": "x/a", "weight": 1}, {"path": "y/a", "weight": 1}]}', "name 'a'"),
        ('{"sources": [{"path": "a", "weight": 1}, {"path": "b", "tokens": 1}]}', "every source"),
        ('{"sources": [{"path": "a", "weight": -1}]}', "weight must be positive"),
        ('{"sources": [{"path": "a"}]}', "give every source a weight"),
        ('{"sources": [{"path": "a", "wieght": 1}]}', "did you mean 'weight'"),
    ],
)
def test_a_wrong_mix_is_refused_by_its_place(tmp_path: Path, text: str, match: str) -> None:
    file = tmp_path / "mix.json"
    file.write_text(text)
    with pytest.raises(SpecError, match=match) as error:
        read_mixture(file)
    assert str(error.value).startswith(str(file))


def test_a_mix_stays_what_it_is_in_a_recipe(file: Path) -> None:
    file.write_text(CHANGES + STAGES)
    data = read_recipe(file).data
    assert isinstance(data, Mixture)
    listed = yaml.safe_load("\n".join(yaml_lines(resolve(file))))["data"]["sources"]
    assert [source["weight"] for source in listed] == [1, 2.5]
