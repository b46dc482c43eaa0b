"""Where a benchmark ran: commit, processor, versions."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import torch
import zstandard

import segpt

HERE = Path(__file__).parent


def versions() -> dict[str, str]:
    """Of everything that a result depends on."""
    return {
        "segpt": segpt.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "brotli": brotli.__version__,
        "zstandard": zstandard.__version__,
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit that is checked out, with ``-dirty`` where files have changed since."""
    line = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=HERE)
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
