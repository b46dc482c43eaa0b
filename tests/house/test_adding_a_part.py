"""The guide to adding a part, followed to the letter in a copy of the package."""

import re
from pathlib import Path

import pytest

from tests.house.guide import copied, replaced, run, steps

CHECKS = "everything or compiling"
ADDED = """
from pathlib import Path

import segpt
from segpt.config.expand import expand
from segpt.config.layout import layout, parameters
from segpt.model import parts


def test_everything_that_was_added_counts():
    assert Path(segpt.__file__).is_relative_to({place!r})
    mixer = dict(heads=4, kv_heads=2, head_dim=8)
    short = dict(vocab=9, width=32, context=8, depth=3)
    plain = expand(short | dict(layer=dict(mixer=mixer, feed=None)))
    mixer = mixer | dict(value=["value_gain"])
    more = expand(short | dict(layer=dict(mixer=mixer, feed=None)))
    assert parameters(more) - parameters(plain) == 6
    assert layout(more)[4 + 2].name == "layers.0.mixer.body.value_parts.0.gain"
"""


def follow(package: Path) -> None:
    """Do what the guide says, and no more."""
    (spec, module, case), places = steps("Adding a part")
    assert places == ["segpt/config/parts.py", "segpt/model/parts.py", "segpt/model/build.py"]
    definition, union = spec.split("\n\n\n")
    name, members = union.strip().split(" = ")
    before = members.rsplit(" | ", 1)[0]
    specs = package / "config" / "parts.py"
    replaced(specs, f"\n{name} = {before}\n", f"\n{union.strip()}\n")
    replaced(specs, "\n# What each slot takes.", f"\n{definition}\n\n\n# What each slot takes.")
    modules = package / "model" / "parts.py"
    modules.write_text(modules.read_text(encoding="utf-8") + "\n\n" + module, encoding="utf-8")
    build = package / "model" / "build.py"
    (function,) = re.findall(r"def _value\(.*?\n\n\n", build.read_text("utf-8"), re.DOTALL)
    replaced(build, function, function.replace("        case _:\n", f"{case}        case _:\n"))


@pytest.mark.slow
def test_a_part_is_added_in_three_places(tmp_path: Path) -> None:
    follow(copied(tmp_path, "model"))
    parts = tmp_path / "tests" / "model" / "conftest.py"
    everything = re.compile(r'(EVERYTHING.*?"value": \["value_residual")', re.DOTALL)
    text, count = everything.subn(r'\1, "value_gain"', parts.read_text(encoding="utf-8"), count=1)
    assert count == 1
    parts.write_text(text, encoding="utf-8")
    (tmp_path / "tests" / "model" / "test_added.py").write_text(ADDED.format(place=str(tmp_path)))
    line = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", CHECKS, "-rs", "--no-header"]
    line += [f"tests/model/test_{name}.py" for name in ("added", "model", "build", "loops")]
    passed = run(tmp_path, *line)
    assert int(re.findall(r"(\d+) passed", passed)[0]) > 16
