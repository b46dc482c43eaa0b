"""What is known of kernels without a GPU, as people see it: results, and a section of a page."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from segpt.atomic import write_file

from . import facts
from .kernel_cases import kernel_of
from .page import placed

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "bench" / "results" / "kernels.json", ROOT / "docs" / "gpu.md"
BEGIN, END = "<!-- kernels: python -m bench.kernel_builds --render -->", "<!-- /kernels -->"

Rows = Sequence[Mapping[str, Any]]


def write(builds: Rows, command: str) -> None:
    """Write ``bench/results/kernels.json`` and the section of ``docs/gpu.md``."""
    traffic, predictions = (
        interpreted("bench.kernel_scenarios"),
        interpreted("bench.kernel_roofline"),
    )
    result = {
        "what": "Triton kernels as they were compiled and interpreted, without a GPU",
        "command": command,
        "date": date.today().isoformat(),
        "versions": facts.versions() | {"triton": version("triton")},
        "traffic": traffic,
        "devices": predictions["devices"],
        "builds": merged(builds, predictions["rows"]),
    }
    write_file(RESULTS, (json.dumps(result, indent=1) + "\n").encode())
    text = PAGE.read_text(encoding="utf-8")
    write_file(PAGE, placed(text, section(result), BEGIN, END).encode())


def interpreted(module: str) -> Any:
    """What a module prints that needs Triton's interpreter, which is chosen before an import."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    line = [sys.executable, "-m", module, "--json"]
    done = subprocess.run(
        line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    return json.loads(done.stdout)


def merged(builds: Rows, predictions: Rows) -> list[dict[str, Any]]:
    """Each build with the bytes and operations of its launch, and the seconds by device."""
    rows = []
    for build in builds:
        row = dict(build)
        for each in predictions:
            if (each["name"], each["architecture"]) == (row["name"], row["architecture"]):
                row |= {"bytes": each["bytes"], "flops": each["flops"]}
                row.setdefault("seconds", {})[each["device"]] = each["seconds"]
        rows.append(row)
    return rows


def section(result: Mapping[str, Any]) -> str:
    """Tables of what the compiled code takes, of bytes moved, and of the least time on devices."""
    builds = result["builds"]
    faulty = sum(bool(row["faults"]) for row in builds)
    lines = [
        f"Compiled: {len(builds):,} forms, {faulty or 'none'} with a fault. A range is over the",
        "five generations. Few threads at once is no fault where products fill the tensor cores;",
        "a kernel that waits for memory wants many. Sizes are rows x width of a norm; matrices x",
        "rows x columns; rows x vocabulary x width of the loss; sequences x queries x keys x heads",
        "x heads of keys x channels of attention.",
        "",
        "| kernel, bfloat16 | registers of a thread | shared memory of a block, KiB "
        "| threads at once, % of what fits |",
        "|---|---:|---:|---:|",
    ]
    shown = list(_shown(builds))
    lines += [
        f"| {label} | {_range(rows, 'registers', 1)} | {_range(rows, 'shared', 1 / 1024)} "
        f"| {_range(rows, 'occupancy', 100)} |"
        for label, rows in shown
    ]
    lines += ["", *_traffic(result["traffic"]), "", *_times(shown, list(result["devices"]))]
    return "\n".join(lines) + "\n"


def _traffic(rows: Rows) -> list[str]:
    return [
        "Bytes to and from memory of a calculation with its gradients. At small sizes each load",
        "and store of the kernels was counted in the interpreter: they touch whole tensors. The",
        "plain path is the reference, each operation of PyTorch counted by its inputs and outputs.",
        "The last column is what a device's cache fetches again, with programs side by side in the",
        "order in which they start; the table of times takes it for nothing.",
        "",
        "| calculation | kernels, GB | plain, GB | kernels / plain | at most | fetched again, % |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| {row['name']} {_sizes(row['sizes'])} | {row['fused'] / 1e9:.2f} "
            f"| {row['unfused'] / 1e9:.2f} | {row['ratio']:.2f} | {row['bound']:.2f} "
            f"| {100 * (row['through_cache'] - 1):.1f} |"
            for row in rows
        ),
    ]


def _times(shown: Sequence[tuple[str, list[Mapping[str, Any]]]], devices: list[str]) -> list[str]:
    lines = [
        "The least time: the longer of bytes over bandwidth and operations over the peak of the",
        "tensor cores, both as the vendor states them. No kernel is faster; what it takes beyond",
        "that is for a device to say. Updates of weights are missing: they reach tensors through",
        "tables of addresses, of any number and size.",
        "",
        f"| kernel, bfloat16 | MB moved | GFLOP | {' | '.join(f'{d}, µs' for d in devices)} |",
        "|---|---:|---:|" + "---:|" * len(devices),
    ]
    for label, rows in shown:
        seconds = {device: s for row in rows for device, s in row.get("seconds", {}).items()}
        if seconds:
            about = next(row for row in rows if "bytes" in row)
            cells = [f"{about['bytes'] / 1e6:,.0f}", f"{about['flops'] / 1e9:,.1f}"]
            cells += [f"{1e6 * seconds[device]:,.0f}" for device in devices]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def _shown(builds: Rows) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """The first case in bfloat16 of each kernel, on every architecture."""
    firsts: dict[str, str] = {}
    for row in builds:
        if "bfloat16" in row["name"]:
            firsts.setdefault(kernel_of(row["name"]), row["name"])
    for name in firsts.values():
        yield name.replace(" bfloat16", ""), [row for row in builds if row["name"] == name]


def _range(rows: Rows, key: str, factor: float) -> str:
    values = sorted({round(factor * row[key]) for row in rows})
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def _sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{value:,} {name}" for name, value in sizes.items())
