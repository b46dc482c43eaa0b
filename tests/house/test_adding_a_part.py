"""The guide to adding a part, followed to the letter in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / ".github" / "CONTRIBUTING.md"
CHECKS = "everything or compiling"


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path.name} has {old!r} {text.count(old)} times"
    path.write_text(text.replace(old, new), encoding="utf-8")


def steps() -> tuple[str, str, str]:
    """What the guide says to write: a spec and its union, a module, a case."""
    guide = GUIDE.read_text(encoding="utf-8")
    (section,) = re.findall(r"## Adding a part\n(.*?)\n## ", guide, re.DOTALL)
    spec, module, case = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    places = re.findall(r"^\(\d\) In `(.*?)`", section, re.MULTILINE)
    assert places == ["segpt/config/parts.py", "segpt/model/parts.py", "segpt/model/build.py"]
    return spec, module, case


def follow(package: Path) -> None:
    """Do what the guide says, and no more."""
    spec, module, case = steps()
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
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "segpt", tmp_path / "segpt", ignore=ignored)
    shutil.copytree(ROOT / "tests" / "model", tmp_path / "tests" / "model", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    follow(tmp_path / "segpt")
    parts = tmp_path / "tests" / "model" / "conftest.py"
    everything = re.compile(r'(EVERYTHING.*?"value": \["value_residual")', re.DOTALL)
    text, count = everything.subn(r'\1, "value_gain"', parts.read_text(encoding="utf-8"), count=1)
    assert count == 1
    parts.write_text(text, encoding="utf-8")
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", CHECKS]
    line += ["tests/model/test_model.py", "tests/model/test_build.py", "tests/model/test_loops.py"]
    done = subprocess.run(
        [*line, "-rs", "--no-header"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 15
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
    shown = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert Path(shown[0]).is_relative_to(tmp_path)
    assert shown[1:] == ["6", "layers.0.mixer.body.value_parts.0.gain"]
