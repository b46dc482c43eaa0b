"""The guide to adding a part, followed to the letter in a copy of the package."""

import re
from pathlib import Path

import pytest

from tests.house.guide import copied, replaced, run, steps

CHECKS = "everything or compiling"


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
    line = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", CHECKS, "-rs", "--no-header"]
    line += ["tests/model/test_model.py", "tests/model/test_build.py", "tests/model/test_loops.py"]
    passed = run(tmp_path, *line)
    assert int(re.findall(r"(\d+) passed", passed)[0]) > 15
    script = (
        "from segpt.model import parts; from segpt.config.expand import expand\n"
        "from segpt.config.layout import layout, parameters; import segpt; print(segpt.__file__)\n"
        "mixer = dict(heads=4, kv_heads=2, head_dim=8)\n"
        "short = dict(vocab=9, width=32, context=8, depth=3)\n"
        "plain = expand(short | dict(layer=dict(mixer=mixer, feed=None)))\n"
        "mixer = mixer | dict(value=['value_gain'])\n"
        "more = expand(short | dict(layer=dict(mixer=mixer, feed=None)))\n"
        "print(parameters(more) - parameters(plain), layout(more)[4 + 2].name)\n"
    )
    shown = run(tmp_path, "-c", script).split()
    assert Path(shown[0]).is_relative_to(tmp_path)
    assert shown[1:] == ["6", "layers.0.mixer.body.value_parts.0.gain"]
