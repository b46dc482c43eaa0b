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
ARCHITECTURES = 80, 89, 90, 100, 120
NAMES = {
    *("adam_update", "add_norm", "attention", "dequantize", "gated_feed"),
    *("muon_momentum", "muon_update", "newton_schulz", "ngram_mixture", "ngram_rows"),
    *("query_key", "rms_norm", "token_loss"),
}
FEWEST = 30  # compiled configurations of each architecture


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


@pytest.fixture(scope="module")
def usual() -> Any:
    """All architectures in one process, which keeps every processor busy."""
    return compiled("--cases", "usual")


def are_sound(builds: Any, architecture: int) -> None:
    builds = [build for build in builds if build["architecture"] == architecture]
    assert [build for build in builds if build["faults"]] == []
    assert len(builds) >= FEWEST
    names = {build["name"].split()[0] for build in builds}
    assert names == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_usual_kernel_has_a_fault(usual: Any, architecture: int) -> None:
    are_sound(usual, architecture)


@pytest.mark.campaign
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_kernel_has_a_fault(architecture: int) -> None:
    are_sound(compiled("--cases", "all", "--architectures", str(architecture)), architecture)


@pytest.mark.slow
def test_every_planted_fault_is_seen() -> None:
    for build in compiled("--cases", "planted", "--architectures", "80", "120"):
        (fault,) = [fault for fault in build["faults"] if build["name"] in fault]
        assert fault
