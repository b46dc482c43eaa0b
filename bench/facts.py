"""Where a benchmark ran: commit, processor, versions."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import segpt

HERE = Path(__file__).parent


_PACKAGES = ("torch", "triton", "numpy", "brotli", "zstandard")


def versions() -> dict[str, str]:
    """Of everything that a result depends on and that is installed."""
    known = {"segpt": segpt.__version__}
    for name in _PACKAGES:
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            continue
    return known | {"python": platform.python_version()}


def commit() -> str:
    """The commit that is checked out, with ``-dirty`` where files have changed since."""
    line = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=HERE)
    except OSError:  # no git here
        return "unknown"
    return done.stdout.strip() or "unknown"


def processor() -> str:
    """What the CPU calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


def device() -> dict[str, Any]:
    """The best device that is here, and the threads that torch uses on its CPU."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return {"device": name, "threads": torch.get_num_threads()}
