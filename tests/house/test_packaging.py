"""The packages that pyproject.toml lists are those on the disk."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_package_is_listed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join((prefix, *init.parent.relative_to(ROOT / source).parts))
        for prefix, source in setuptools["package-dir"].items()
        for init in (ROOT / source).rglob("__init__.py")
    }
    assert set(setuptools["packages"]) == found
