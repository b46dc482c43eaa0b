"""``segpt recipes``: what comes with the product, and where each value is from."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from segpt.__main__ import load_commands
from segpt.config.recipe import names, read_recipe
from segpt.config.resolved import resolve, yaml_lines


def segpt(*args: str) -> str:
    done = CliRunner().invoke(load_commands().main, ["recipes", *args])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.slow
def test_the_recipes_are_listed() -> None:
    rows = json.loads(segpt("--json"))["recipes"]
    assert [row["name"] for row in rows] == names()
    (demo,) = [row for row in rows if row["name"] == "demo"]
    assert demo["parameters"] > 1_000_000
    assert demo["about"].startswith("A small model for a laptop")
    table = segpt()
    assert all(name in table for name in names())


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_what_is_shown_is_the_same_recipe_again(name: str, tmp_path: Path) -> None:
    file = tmp_path / "again.yaml"
    file.write_text("\n".join(yaml_lines(resolve(name))), encoding="utf-8")
    assert read_recipe(file) == read_recipe(name)


SETTINGS: dict[str, Any] = {
    "train.batch": 6,
    "train.optimizer.vector": {"rate": 0.1},
    "model.layer.mixer.query_key[-1].init": 2.0,
    "adapt": "sgd",
    "quantize.rules[1].bits": 4,
    "name": "a: b # 'c'",
}


def test_every_value_has_an_origin(tmp_path: Path) -> None:
    settings = [f"{path}={json.dumps(value)}" for path, value in SETTINGS.items()]
    found = resolve("demo", settings)
    assert found.recipe == read_recipe("demo", settings)
    origins = found.origins
    expected = {
        "name": "--set",
        "about": "recipe",
        "train.batch": "--set",
        "train.clip": "default",
        "train.optimizer.vector.rate": "--set",
        "train.optimizer.vector.beta1": "default",
        "train.optimizer.table.rate": "recipe",
        "model.layer.mixer.query_key[2].init": "--set",
        "model.layer.mixer.query_key[2].kind": "recipe",
        "model.layer.mixer.query_key[0].kind": "recipe",
        "model.layer.wiring": "recipe",
        "model.layer.norms": "default",
        "adapt.kind": "--set",
        "adapt.rate": "default",
        "quantize.rules[1].bits": "--set",
        "quantize.rules[1].role": "default",
        "quantize.search": "recipe",
    }
    assert {path: origins[path] for path in expected} == expected
    lines = segpt("show", "demo", *[w for s in settings for w in ("--set", s)])
    assert "  batch: 6  # --set\n" in lines
    assert "  clip: 1.0  # default\n" in lines
    file = tmp_path / "again.yaml"
    file.write_text(lines, encoding="utf-8")
    assert read_recipe(file) == found.recipe
    assert yaml.safe_load(lines)["train"]["batch"] == 6
    shown = json.loads(segpt("show", "demo", "--json"))
    assert shown["recipe"]["train"]["batch"] == 8
    assert shown["origins"]["train.batch"] == "recipe"


@pytest.mark.slow
def test_a_recipe_is_shown_without_torch() -> None:
    code = (
        "import sys\nfrom segpt.__main__ import main\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    for args in ((), ("show", "demo")):
        done = subprocess.run(
            [sys.executable, "-c", code, "recipes", *args], capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
