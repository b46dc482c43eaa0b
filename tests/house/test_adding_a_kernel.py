"""The guide to adding a kernel back end, followed to the letter in a copy of the package."""

import re
from pathlib import Path

import pytest

from tests.house.guide import copied, run, steps


def follow(package: Path) -> None:
    """Do what the guide says, and no more."""
    (backend, registration), places = steps("Adding a kernel back end")
    new, old = (package.parent / place for place in places)
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
    follow(copied(tmp_path, "kernels"))
    line = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "rms_norm", "-rs", "--no-header"]
    tested = run(tmp_path, *line, "tests/kernels/test_ops.py")
    assert "2 passed" in tested  # the two cases in float32
    assert "it takes float32" in tested  # and those in bfloat16 say why not
    chosen = run(
        tmp_path,
        "-c",
        "import torch; from segpt import kernels\n"
        "from segpt.kernels.rms_norm.reference import RmsNormCall\n"
        "said = kernels.OPS['rms_norm'].refusals(RmsNormCall(torch.ones(2, 4)))\n"
        "print(*(name for name, refusal in said.items() if refusal is None))\n"
        "with kernels.use(rms_norm='eager'):\n"
        "    print(kernels.rms_norm(2 * torch.ones(1, 4)).round(decimals=4).tolist())",
    )
    assert chosen.splitlines() == ["eager", "[[1.0, 1.0, 1.0, 1.0]]"]
