"""The guides of CONTRIBUTING.md, to be followed to the letter in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / ".github" / "CONTRIBUTING.md"


def steps(title: str) -> tuple[list[str], list[str]]:
    """What a section says to write, and the files that its numbered steps name."""
    guide = GUIDE.read_text(encoding="utf-8")
    (section,) = re.findall(rf"## {re.escape(title)}\n(.*?)\n## ", guide, re.DOTALL)
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return blocks, re.findall(r"^\(\d\) In `(.*?)`", section, re.MULTILINE)


def replaced(path: Path, old: str, new: str) -> None:
    """Write ``new`` in the place of ``old``, which stands in a file once."""
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path.name} has {old!r} {text.count(old)} times"
    path.write_text(text.replace(old, new), encoding="utf-8")


def copied(place: Path, tests: str) -> Path:
    """A copy of the package at ``place``, with one folder of its tests; the package."""
    for folder in ("segpt", f"tests/{tests}"):  # with what is compiled of them
        shutil.copytree(ROOT / folder, place / folder)
    shutil.copy(ROOT / "pyproject.toml", place)
    return place / "segpt"


def run(place: Path, *arguments: str) -> str:
    """What Python prints with the copy at ``place``; it has to end well."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout
