"""Kernels compiled for GPUs that are not here; the gate lets none with a fault in its code pass."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
ROOT = Path(__file__).parents[2]
FEWEST = 150  # compiled configurations


def compiled(*arguments: str) -> Any:
    """What the gate prints, in a process whose kernels are not those of the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "bench.kernel_builds", "--json", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "which",
    [
        pytest.param("usual", marks=pytest.mark.slow),
        pytest.param("all", marks=pytest.mark.campaign),
    ],
)
def test_no_kernel_has_a_fault(which: str) -> None:
    builds = compiled("--cases", which)
    assert [build for build in builds if build["faults"]] == []
    assert len(builds) >= FEWEST
    assert {build["architecture"] for build in builds} == {80, 89, 90, 100, 120}
    names = {build["name"].split()[0] for build in builds}
    assert names == {"add_norm", "attention", "newton_schulz", "rms_norm", "token_loss"}


@pytest.mark.slow
def test_every_planted_fault_is_seen() -> None:
    for build in compiled("--cases", "planted", "--architectures", "80", "120"):
        (fault,) = [fault for fault in build["faults"] if build["name"] in fault]
        assert fault
