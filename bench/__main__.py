"""Run every quick benchmark and write ``bench/results/speed-<device>.json``."""

import json
import sys
from datetime import date
from pathlib import Path

import torch

from . import facts, speed

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure on the best device that is here, print, and write."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = {
        "what": "speed ratios, both sides in the same run",
        "command": "make bench",
        "date": date.today().isoformat(),
        "commit": facts.commit(),
        **facts.device(),
        "versions": facts.versions(),
        "score": speed.scoring(device),
        "train": speed.training(device),
    }
    text = json.dumps(result, indent=2)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"speed-{device}.json").write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
