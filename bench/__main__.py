"""``python -m bench [--core BUNDLE] [RUN[@WINDOW]...]``: speed ratios of both sides in one run.

They go to ``bench/results/speed-<device>.json``. Rolling is measured on the models of the runs,
looking back over WINDOW tokens, or else on the demo recipe, which is trained first; with the data
of the CORE tasks, so are these, on the first of them.
"""

import argparse
import json
import sys
from datetime import date
from pathlib import Path

import torch

from . import facts, speed
from .codec import trained

SHARE = 0.25  # of the validation text that is read to time rolling
CONTEXT, ITEMS = 1024, 16  # of the CORE tasks
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure on the best device that is here, print, and write."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser("python -m bench")
    parser.add_argument("runs", nargs="*", type=read, metavar="RUN[@WINDOW]")
    parser.add_argument("--core", type=Path, metavar="BUNDLE")
    given = parser.parse_args()
    runs = given.runs or [(trained(1, None, "demo", "demo"), None)]
    result = {
        "what": "speed ratios, both sides in the same run",
        "command": "make bench" if len(sys.argv) == 1 else "python -m bench --core BUNDLE RUN...",
        "date": date.today().isoformat(),
        "commit": facts.commit(),
        **facts.device(),
        "versions": facts.versions(),
        "score": speed.scoring(device),
        "rolling": [speed.rolling(run, device, window, share=SHARE) for run, window in runs],
        "train": speed.training(device),
    }
    if given.core is not None:
        result["core"] = speed.core(runs[0][0], device, given.core, CONTEXT, ITEMS)
    text = json.dumps(result, indent=2)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"speed-{device}.json").write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


def read(argument: str) -> tuple[Path, int | None]:
    """A run, and the window named after it."""
    path, _, window = argument.partition("@")
    return Path(path), int(window) if window else None


if __name__ == "__main__":
    main()
