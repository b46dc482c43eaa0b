"""``make setup`` tells how far it is, and shows nothing that its user cannot mend."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_setup_says_what_it_does(tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "--dry-run", "setup", f"VENV={tmp_path / 'environment'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for step in ("1 of 3", "2 of 3", "3 of 3", "setup is done"):
        assert step in done.stdout
    install = done.stdout.partition("3 of 3")[2]
    assert "--quiet" not in install  # the long step shows what is fetched
    assert "PYTHONWARNINGS=ignore" in install  # of setuptools, about how it links a package
