"""``python -m bench.policies [NAME=RUN...]``: what each way of scoring gains, and its seconds.

Every policy scores the same checkpoints on the built-in validation text. Gains are over the
strided score of the same weights; their settings were chosen on text held out of training.
"""

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import click
import torch

from segpt.atomic import write_file
from segpt.config.base import encode
from segpt.config.conditions import stored_policy
from segpt.config.layout import parameters
from segpt.data.corpus import builtin
from segpt.errors import SegptError
from segpt.stages import checkpoint_io, run_directory
from segpt.stages.resolve_spec import Reading, of_checkpoint, score_spec
from segpt.stages.score import score
from segpt.values import Checkpoint

from . import facts
from .codec import RECIPE, trained
from .page import placed

OUT = Path(__file__).parent / "results" / "policies.json"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "policies.md"
BEGIN, END = "<!-- policies: python -m bench.policies --render -->", "<!-- /policies -->"
SEEDS = (1, 2, 3)
BASE = "strided"

# Names, and options of ``segpt score``; strides in eighths of the context.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    BASE: {"mode": "strided"},
    "strided by an eighth of the context": {"eighths": 1},
    "rolling over 7/8 of the context": {"mode": "rolling"},
    "rolling over the whole context": {"mode": "rolling", "whole": True},
    "`--ttt sgd`": {"policy": "sgd"},
    "`--ttt low_rank`": {"policy": "low_rank"},
    "`--ttt phased`": {"policy": "phased"},
    "`--ttt ngram`": {"policy": "ngram"},
    "`--ttt sgd+ngram`": {"policy": "sgd+ngram"},
    "`--ttt best`: low_rank+ngram": {"policy": "best"},
}


@click.command()
@click.argument("runs", nargs=-1, metavar="[NAME=RUN]...")
@click.option("--out", default=OUT, show_default=True, type=click.Path(path_type=Path))
@click.option("--only", multiple=True, help="Only this way of scoring. May be repeated.")
@click.option("--render", is_flag=True, help="Put the table of --out into docs/policies.md.")
def main(runs: tuple[str, ...], out: Path, only: tuple[str, ...], render: bool) -> None:
    """Score what is missing in --out for the RUNS, each with the name of its model.

    Without RUNS, three seeds each of the demo and of bench/codec.yaml, which are trained first.
    """
    torch.set_num_threads(1)
    try:
        if runs or not render:
            for name, run in [split(run) for run in runs] or everything():
                measure(name, run, out, only or tuple(SETTINGS))
        if render:
            page = PAGE.read_text(encoding="utf-8")
            text = placed(page, section(json.loads(out.read_bytes())), BEGIN, END)
            write_file(PAGE, text.encode())
    except SegptError as error:
        raise click.ClickException(str(error)) from error


def split(run: str) -> tuple[str, Path]:
    """The name of a model and the path of its run."""
    name, equals, path = run.partition("=")
    if not equals:
        raise click.UsageError(f"{run}: write NAME=RUN, e.g. demo=runs/demo-1")
    return name, Path(path)


def everything() -> list[tuple[str, Path]]:
    """All models that the page compares, trained if they are not."""
    return [
        (name, trained(seed, None, source, name))
        for name, source in (("demo", "demo"), ("codec", str(RECIPE)))
        for seed in SEEDS
    ]


def measure(name: str, run: Path, out: Path, ways: Sequence[str]) -> None:
    """Add the scores of one checkpoint to ``out``, one by one."""
    checkpoint = checkpoint_io.read_checkpoint(run_directory.newest_checkpoint(run))
    result: dict[str, Any] = json.loads(out.read_bytes()) if out.exists() else _empty()
    found = {(s["model"], s["way"]) for s in result["scores"]}
    for way in ways:
        if (checkpoint.fingerprint, way) in found:
            continue
        line = {"name": name, "way": way, **scored(checkpoint, way)}
        result["scores"].append(line)
        write_file(out, json.dumps(result, indent=1).encode() + b"\n")
        sys.stdout.write(f"{run}: {way}: {line['bpb']:.5f}, {line['seconds']:.0f} s\n")
        sys.stdout.flush()


def scored(checkpoint: Checkpoint, way: str) -> dict[str, Any]:
    """One score as plain values."""
    options = dict(SETTINGS[way])
    if eighths := options.pop("eighths", None):
        options["stride"] = max(1, checkpoint.spec.context * eighths // 8)
    if options.pop("whole", False):
        options["context"] = checkpoint.spec.context
    policy = options.pop("policy", "none")
    spec = score_spec(checkpoint.spec, policy=policy, reading=Reading(**options))
    found = score(checkpoint, builtin("validation"), spec)
    return {
        "model": checkpoint.fingerprint,
        "seed": _seed(checkpoint),
        "parameters": parameters(checkpoint.spec),
        "context": checkpoint.spec.context,
        "bpb": found.bpb,
        "nats": found.nats,
        "bytes": found.bytes,
        "tokens": found.tokens,
        "seconds": found.seconds,
        "score": encode(spec),
        "policy": stored_policy(spec),
        "commit": facts.commit(),
    }


def section(result: Mapping[str, Any]) -> str:
    """The table of the page: means over seeds, gains over the strided score of the weights."""
    lines = []
    for name in dict.fromkeys(s["name"] for s in result["scores"]):
        own = [s for s in result["scores"] if s["name"] == name]
        base = {s["model"]: s for s in own if s["way"] == BASE}
        lines += [
            f"{_model(own)}:",
            "",
            "| way of scoring | BPB | gain over strided | least | time over strided |",
            "|---|---:|---:|---:|---:|",
        ]
        for way in SETTINGS:
            rows = [s for s in own if s["way"] == way and s["model"] in base]
            if not rows:
                continue
            gains = [100 * (1 - s["bpb"] / base[s["model"]]["bpb"]) for s in rows]
            times = [s["seconds"] / base[s["model"]]["seconds"] for s in rows]
            mean = statistics.fmean(s["bpb"] for s in rows)
            gain = "" if way == BASE else f"{statistics.fmean(gains):.2f} {_error(gains)} %"
            least = "" if way == BASE else f"{min(gains):.2f} %"
            ratio = statistics.median(times)
            lines.append(f"| {way} | {mean:.4f} | {gain} | {least} | {ratio:.2f} |")
        lines.append("")
    return "\n".join(lines)


def _model(scores: Sequence[Mapping[str, Any]]) -> str:
    first = scores[0]
    seeds = len({s["model"] for s in scores})
    return (
        f"`{first['name']}`, {first['parameters']:,} weights, context {first['context']}, "
        f"{seeds} seeds, {first['bytes']:,} bytes of held-out text"
    )


def _error(values: Sequence[float]) -> str:
    """The standard error of a mean."""
    if len(values) < 2:
        return ""
    return f"± {statistics.stdev(values) / math.sqrt(len(values)):.2f}"


def _seed(checkpoint: Checkpoint) -> int:
    return of_checkpoint(checkpoint).train.seed


def _empty() -> dict[str, Any]:
    return {
        "what": "bits per byte of ways to score, on the built-in validation text",
        "command": "python -m bench.policies",
        "date": date.today().isoformat(),
        **facts.device(),
        "versions": facts.versions(),
        "scores": [],
    }


if __name__ == "__main__":
    main()
