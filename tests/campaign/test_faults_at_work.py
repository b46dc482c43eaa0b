"""A run of the campaign of kills, full disks and rivals, and its figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("faults_at_work.py")


@pytest.mark.skipif(sys.platform != "linux", reason="forks and sets kernel limits")
@pytest.mark.parametrize(
    ("kills", "full", "together"),
    [
        pytest.param(7, 7, 5, marks=pytest.mark.slow),  # each command once
        pytest.param(500, 150, 20, marks=pytest.mark.campaign),
    ],
)
def test_nothing_is_lost_and_nothing_is_half_there(kills: int, full: int, together: int) -> None:
    numbers = ["--kills", str(kills), "--full", str(full), "--together", str(together)]
    numbers += ["-n", str(1 + kills // 100)]  # each process makes a workplace of its own first
    done = subprocess.run(
        [sys.executable, SCRIPT, *numbers], capture_output=True, text=True, check=False
    )
    figures = json.loads(done.stdout)
    assert figures["wrong"] == [], done.stderr
    assert figures["cases"] == kills + full + together
    assert figures["seen"]["kill: killed"] >= kills // 2
    assert figures["seen"]["full: refused"] >= full // 3
    assert done.returncode == 0, done.stderr
