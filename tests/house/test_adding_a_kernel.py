"""The guide to adding a kernel back end, followed to the letter in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / ".github" / "CONTRIBUTING.md"


def follow(package: Path) -> None:
    """Do what the guide says, and no more."""
    guide = GUIDE.read_text(encoding="utf-8")
    (section,) = re.findall(r"## Adding a kernel back end\n(.*?)\n## ", guide, re.DOTALL)
    backend, registration = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    new, old = (
        package.parent / p for p in re.findall(r"^\(\d\) In `(.*?)`", section, re.MULTILINE)
    )
    assert not new.exists()
    new.write_text(backend, encoding="utf-8")
    text = old.read_text(encoding="utf-8")
    imports, op = registration.strip().split("\n\n")
    text = text.replace("from .reference", f"{imports}\nfrom .reference", 1)
    text, count = re.subn(r"^RMS_NORM = .*$", op, text, flags=re.MULTILINE)
    assert count == 1
    old.write_text(text, encoding="utf-8")


@pytest.mark.slow
def test_a_back_end_is_added_in_two_places(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "segpt", tmp_path / "segpt", ignore=ignored)
    shutil.copytree(ROOT / "tests" / "kernels", tmp_path / "tests" / "kernels", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    follow(tmp_path / "segpt")

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        return done.stdout

    line = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "rms_norm", "-rs", "--no-header"]
    tested = run(*line, "tests/kernels/test_ops.py")
    assert "2 passed" in tested  # the two cases in float32
    assert "it takes float32" in tested  # and those in bfloat16 say why not
    chosen = run(
        "-c",
        "import torch; from segpt import kernels\n"
        "from segpt.kernels.rms_norm.reference import RmsNormCall\n"
        "print(kernels.OPS['rms_norm'].refusals(RmsNormCall(torch.ones(2, 4))))\n"
        "with kernels.use(rms_norm='eager'):\n"
        "    print(kernels.rms_norm(2 * torch.ones(1, 4)).round(decimals=4).tolist())",
    )
    assert chosen.splitlines() == ["{'eager': None}", "[[1.0, 1.0, 1.0, 1.0]]"]
