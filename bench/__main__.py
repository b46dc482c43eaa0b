"""``python -m bench [RUN[@WINDOW]...]``: speed ratios, to ``bench/results/speed-<device>.json``.

Rolling is measured on the models of the runs, looking back over WINDOW tokens, or else on the demo
recipe, which is trained first.
"""

import json
import sys
from datetime import date
from pathlib import Path

import torch

from . import facts, speed
from .codec import trained

SHARE = 0.25  # of the validation text that is read to time rolling
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure on the best device that is here, print, and write."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    runs = [read(run) for run in sys.argv[1:]] or [(trained(1, None, "demo", "demo"), None)]
    result = {
        "what": "speed ratios, both sides in the same run",
        "command": "make bench" if len(sys.argv) == 1 else "python -m bench RUN[@WINDOW]...",
        "date": date.today().isoformat(),
        "commit": facts.commit(),
        **facts.device(),
        "versions": facts.versions(),
        "score": speed.scoring(device),
        "rolling": [speed.rolling(run, device, window, share=SHARE) for run, window in runs],
        "train": speed.training(device),
    }
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
