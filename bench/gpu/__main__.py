"""``python -m bench.gpu [--dry-run]``: check every kernel on a GPU, then measure, in one command.

Writes ``bench/results/gpu-<device>.json`` and prints a table. A dry run goes through all of it on
a CPU, with references, in small sizes: its figures mean nothing, and nothing is written.
"""

import argparse
import json
import sys
from datetime import date
from pathlib import Path

import torch

from bench import facts
from segpt.atomic import write_file

from . import commands, fused, operations, tiles
from .plan import DRY, ON_GPU, Plan, Row, Section, measure

RESULTS = Path(__file__).parents[1] / "results"
SECTIONS: tuple[tuple[str, Section], ...] = (
    ("checks", operations.checks),
    ("attention", operations.attention),
    ("token loss", operations.token_loss),
    ("Newton-Schulz", operations.newton_schulz),
    ("fused", fused.fused),
    ("training", commands.training),
    ("scoring", commands.scoring),
    ("quantizing", commands.quantizing),
    ("tiles", tiles.candidates),
)
_HEAD = f"{'what':<44} {'against':<26} {'ratio':>7} {'memory':>7} {'error':>8}  figure"


def main() -> None:
    """Measure, print, and write; exit 1 if a section failed or a kernel is wrong."""
    parser = argparse.ArgumentParser("python -m bench.gpu", description="kernels on a GPU")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, in small sizes")
    parser.add_argument("--minutes", type=float, default=5.0, help="after which no section begins")
    parser.add_argument("--out", type=Path, help="where to write instead of bench/results")
    asked = parser.parse_args()
    if not asked.dry_run and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --dry-run goes through all of it on a CPU")
    plan = DRY if asked.dry_run else ON_GPU
    sys.stdout.write(f"{_device(plan)}\n{_HEAD}\n")

    path = asked.out or (None if plan.is_dry else RESULTS / f"gpu-{_slug(_device(plan))}.json")
    shown: list[Row] = []

    def show(row: Row) -> None:
        """Print and write it at once: what was measured stays, even if the machine goes away."""
        shown.append(row)
        sys.stdout.write(f"{line(row)}\n")
        sys.stdout.flush()
        if path is not None:
            write_file(path, (json.dumps(result(plan, shown), indent=1) + "\n").encode())

    rows = measure(SECTIONS, plan, asked.minutes, show)
    if path is not None:
        sys.stdout.write(f"written to {path}\n")
    sys.exit(any(row.note.startswith("failed") for row in rows))


def line(row: Row) -> str:
    """A row as people read it."""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    memory = "" if row.memory is None else f"{row.memory:.2f}"
    error = "" if row.error is None else f"{row.error:.1e}"
    figure = "" if row.figure is None else f"{row.figure:,.1f} {row.unit}"
    aim = {None: "", True: "reached", False: "missed"}[row.is_reached]
    aim = f"{aim}: {row.aim:g}" if aim else ""
    rest = "  ".join(text for text in (figure, aim, row.note) if text)
    shown = f"{row.name:<44} {row.against:<26} {ratio:>7} {memory:>7} {error:>8}  {rest}"
    return shown.rstrip()


def result(plan: Plan, rows: list[Row]) -> dict[str, object]:
    """What is written."""
    return {
        "what": "kernels and commands on a GPU, each ratio of two sides in the same run",
        "command": "make gpu",
        "date": date.today().isoformat(),
        "commit": facts.commit(),
        "device": _device(plan),
        "versions": facts.versions(),
        "rows": [
            {**{k: v for k, v in row._asdict().items() if v not in (None, "")},
             "reached": row.is_reached}
            for row in rows
        ],
    }  # fmt: skip


def _device(plan: Plan) -> str:
    return facts.processor() if plan.is_dry else torch.cuda.get_device_name()


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


if __name__ == "__main__":
    main()
