"""Run every benchmark and write ``bench/results/speed-<device>.json``."""

import json
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch

import segpt

from . import speed

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure on the best device that is here, print, and write."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = {
        "what": "speed ratios, both sides in the same run",
        "command": "make bench",
        "date": date.today().isoformat(),
        "commit": _commit(),
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "versions": {
            "segpt": segpt.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "score": speed.scoring(device),
        "train": speed.training(device),
    }
    text = json.dumps(result, indent=2)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"speed-{device}.json").write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


if __name__ == "__main__":
    main()
