"""``python -m bench.codec [CHECKPOINT...]``: what the quantizer and the coder save, in one run.

Every scheme codes the same checkpoints, is calibrated on the same training text, and is measured
on the same held-out text. Each point is written as soon as it is measured, so that an interrupted
run goes on where it stopped; checkpoints may also run apart and be merged. Nothing is chosen by
the held-out text but where the field's curve gets its points.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from segpt.atomic import write_file
from segpt.config.base import encode, fingerprint
from segpt.config.layout import parameters
from segpt.config.recipe import Recipe, read_recipe
from segpt.config.schedule import Steps
from segpt.data.tokenizer import load
from segpt.errors import DataError, SegptError
from segpt.stages import checkpoint_io, prepare, run_directory
from segpt.stages.calibrate import in_order, quantize_on
from segpt.stages.open_model import from_checkpoint, from_quantized
from segpt.stages.resolve_spec import of_checkpoint
from segpt.values import Checkpoint, Quantized, Tokens

from . import coders, facts, page
from .measure import HeldOut
from .schemes import CALIBRATION, Scheme, more, schemes
from .summary import CODER, round_figures, summary

HERE = Path(__file__).parent
OUT, RECIPE = HERE / "results" / "codec.json", HERE / "codec.yaml"
RUNS, SEEDS = Path("runs"), (1, 2, 3)

WHAT = (
    "KL, BPB and bytes of quantized models: the seed's scheme (int6 and an int8 table to nearest, "
    "clip 2.5, zlib), the field's (act-order GPTQ to the same grids, SDClip, byte shuffle, brotli) "
    "and ours. Bytes are those of a whole file: ours is the packed one, and the others get the "
    "very header, tokenizer, frame and digest of the packed file of the same codes, so that only "
    "weights are compared; bits per weight leave these out. All calibrate on the same tokens of "
    "training text; the search and the tuning of ours read on in it. Standard errors of points are "
    "over the documents of the held-out text."
)


class Subject(NamedTuple):
    """A checkpoint that is compressed, its text, and the float model on all of the latter."""

    checkpoint: Checkpoint
    train: Tokens
    held_out: HeldOut
    device: str


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="The prepared text of the runs.")
@click.option("--out", default=OUT, show_default=True, type=click.Path(path_type=Path))
@click.option("--only", multiple=True, help="Only points whose name starts so. May be repeated.")
@click.option("--merge", is_flag=True, help="PATHS are results: combine them into --out.")
@click.option("--render", is_flag=True, help="Draw --out, and put its table into docs/codec.md.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
def main(
    paths: tuple[Path, ...],
    data: Path | None,
    out: Path,
    only: tuple[str, ...],
    merge: bool,
    render: bool,
    device: str,
) -> None:
    """Measure what is missing in --out for the checkpoints at PATHS.

    Without PATHS, three seeds of bench/codec.yaml in runs/codec-1 to -3, which are trained first.
    """
    try:
        if merge:
            _write(out, merged([_read(path) for path in paths]))
        elif paths or not render:
            for path in paths or (trained(seed, data) for seed in SEEDS):
                _measure(path, data, out, only, device)
        if render:
            page.render(_read(out), out.with_suffix(".png"))
    except SegptError as error:
        raise click.ClickException(str(error)) from error


def _measure(path: Path, data: Path | None, out: Path, only: Sequence[str], device: str) -> None:
    """Add the points of one checkpoint to ``out``, one by one."""
    checkpoint = checkpoint_io.read_checkpoint(run_directory.newest_checkpoint(path))
    train, validation = _splits(checkpoint, data)
    context = checkpoint.spec.context
    held_out = HeldOut(
        from_checkpoint(checkpoint),
        in_order(validation, context, validation.count),
        load(validation.tokenizer).sizes,
        load(validation.tokenizer).start,
    )
    subject = Subject(checkpoint, train, held_out, device)
    result = _read(out) if out.exists() else _empty(train, validation, held_out)
    if result["text"]["validation"]["digest"] != validation.digest:
        raise DataError(f"{out} was measured on another text; choose another --out")
    entry = _entry(result, path.name, subject)
    while (scheme := _next(entry["points"], context, only)) is not None:
        sys.stdout.write(f"{path.name}: {scheme.name}\n")
        sys.stdout.flush()
        point = measured(subject, scheme)
        kept = [p for p in entry["points"] if p["name"] != scheme.name]
        entry["points"] = [*kept, point]
        _write(out, result)
        sys.stdout.write(
            f"  {point['bytes']:,} bytes, {point['bits_per_weight']:.3f} bits per weight, "
            f"KL {point['kl']:.5f}, BPB {point['bpb_gap']:+.5f}, {point['seconds']:.0f} s\n"
        )
        sys.stdout.flush()


def trained(seed: int, data: Path | None, source: str = str(RECIPE), name: str = "codec") -> Path:
    """The run of a recipe and seed, trained to its end, from where it stopped if interrupted.

    Raises:
        DataError: if training fails.
    """
    recipe, place = read_recipe(source), RUNS / f"{name}-{seed}"
    found = run_directory.checkpoints(place)
    assert isinstance(recipe.train.length, Steps)
    if found and found[-1].name == run_directory.checkpoint_name(recipe.train.length.count):
        return place
    if data is None:
        _builtin(recipe)
    text = data or _builtin_place(recipe)
    line = [sys.executable, "-m", "segpt", "train", "--recipe", source, "--seed", str(seed)]
    line += ["--data", str(text), "--out", str(place)] + ["--resume"] * bool(found)
    if subprocess.run(line, check=False).returncode:
        raise DataError(f"training {place} failed; correct that and start again")
    return place


def measured(subject: Subject, scheme: Scheme) -> dict[str, Any]:
    """One point: the checkpoint coded by a scheme, in bytes, KL, BPB and seconds."""
    held_out = subject.held_out
    started, worked = time.perf_counter(), time.process_time()
    # The stage reports on one block of training text; the held-out text is measured on below.
    train = subject.train
    quantized = quantize_on(subject.checkpoint, scheme.spec, train, train, device=subject.device)
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    assert quantized.report is not None  # of what was just quantized
    sizes, shared = _sizes(quantized, scheme)
    cost = held_out.cost(from_quantized(quantized))
    divergence, gap = held_out.divergence(cost), held_out.gap(cost)
    ours = scheme.family not in ("seed", "field")
    size = sizes["segpt" if ours else next(iter(sizes))]
    point = {
        "name": scheme.name,
        "family": scheme.family,
        "bytes": size,
        "shared_bytes": shared,
        "bits_per_weight": 8 * (size - shared) / parameters(quantized.spec),
        "kl": divergence.value,
        "kl_error": divergence.error,
        "bpb": held_out.bpb + gap.value,
        "bpb_gap": gap.value,
        "bpb_gap_error": gap.error,
        "seconds": seconds,
        "cpu_seconds": worked,
        "coders": sizes,
        "weights": {
            role: {"parameters": row.parameters, "bits_per_weight": row.bits_per_weight}
            for role, row in quantized.report.roles.items()
        },
        "settings": encode(scheme.spec),
        "fingerprint": fingerprint(scheme.spec),
        "commit": facts.commit(),
        "documents": {"loss": cost.loss.tolist(), "divergence": cost.divergence.tolist()},
    }
    return dict(round_figures(point))


def merged(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One result with the checkpoints of several.

    Raises:
        DataError: if there is none, or they were measured on different text.
    """
    if not results:
        raise DataError("nothing to merge; give the results of other runs")
    first = results[0]
    if any(r["text"] != first["text"] for r in results):
        raise DataError("the results were measured on different texts; they cannot be compared")
    entries: dict[str, dict[str, Any]] = {}
    for result in results:
        for entry in result["checkpoints"]:
            known = entries.setdefault(entry["fingerprint"], entry | {"points": []})
            fresh = {p["name"] for p in entry["points"]}
            known["points"] = [p for p in known["points"] if p["name"] not in fresh]
            known["points"] += entry["points"]
    return first | {"checkpoints": sorted(entries.values(), key=lambda e: str(e["name"]))}


def concluded(result: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a result as it is written."""
    return dict(round_figures(summary(result["checkpoints"]), 6))


def _next(points: Sequence[Mapping[str, Any]], context: int, only: Sequence[str]) -> Scheme | None:
    """What to measure next; a point of other settings than now is measured again."""
    done = {(p["name"], p["fingerprint"]) for p in points}
    for scheme in schemes(context):
        chosen = not only or scheme.name.startswith(tuple(only))
        if chosen and (scheme.name, fingerprint(scheme.spec)) not in done:
            return scheme
    extra = more(points, context)
    return None if extra is None or (only and not extra.name.startswith(tuple(only))) else extra


def _sizes(quantized: Quantized, scheme: Scheme) -> tuple[dict[str, int], int]:
    """Bytes of the file by coder, the scheme's own first, and how many hold no weights."""
    whole, shared = coders.packed(quantized)
    if scheme.family == "seed":
        return {"zlib-9": shared + coders.size(quantized, coders.zlib_9)}, shared
    sizes = {}
    if scheme.family == "field":
        others = coders.coders()
        sizes = {name: shared + coders.size(quantized, coder) for name, coder in others.items()}
        assert next(iter(sizes)) == CODER
    return sizes | {"segpt": whole}, shared


def _splits(checkpoint: Checkpoint, data: Path | None) -> tuple[Tokens, Tokens]:
    if data is not None:
        return prepare.open_splits(data)
    return _builtin(of_checkpoint(checkpoint))


def _builtin(recipe: Recipe) -> tuple[Tokens, Tokens]:
    """The built-in text under the tokenizer of a recipe."""
    return prepare.builtin_splits(recipe.tokenizer, _builtin_place(recipe), lambda *_: None)


def _builtin_place(recipe: Recipe) -> Path:
    return RUNS / "data" / f"builtin-{recipe.model.vocab}"


def _empty(train: Tokens, validation: Tokens, held_out: HeldOut) -> dict[str, Any]:
    return {
        "what": WHAT,
        "text": {
            "calibration": {"digest": train.digest, "tokens": CALIBRATION},
            "validation": {
                "digest": validation.digest,
                "tokens": int(held_out.tokens.sum()),
                "bytes": int(held_out.bytes.sum()),
                "documents": held_out.count,
            },
        },
        "checkpoints": [],
    }


def _entry(result: dict[str, Any], name: str, subject: Subject) -> dict[str, Any]:
    """The entry of a checkpoint in a result, made if it is not there."""
    checkpoint = subject.checkpoint
    for entry in result["checkpoints"]:
        if entry["fingerprint"] == checkpoint.fingerprint:
            return dict_of(entry)
    about = checkpoint.about
    entry = {
        "name": name,
        "fingerprint": checkpoint.fingerprint,
        "parameters": parameters(checkpoint.spec),
        "steps": checkpoint.step,
        "tokens": about.tokens,
        "seed": (about.recipe or {}).get("train", {}).get("seed"),
        "seconds": about.seconds,
        "bpb": round_figures(subject.held_out.bpb),
        "points": [],
    }
    result["checkpoints"].append(entry)
    return entry


def dict_of(value: Any) -> dict[str, Any]:
    """``value``, which a file of results says is an object."""
    if not isinstance(value, dict):
        raise DataError("the results are not what this benchmark writes; choose another --out")
    return value


def _write(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result with its summary, lists of numbers on one line each."""
    whole = {
        "what": result["what"],
        "command": "make codec",
        "date": date.today().isoformat(),
        "commit": facts.commit(),
        **facts.device(),
        "versions": facts.versions(),
        "text": result["text"],
        "summary": concluded(result),
        "checkpoints": result["checkpoints"],
    }
    text = json.dumps(whole, indent=1, ensure_ascii=False)
    text = re.sub(r"\[[-+\d.eE,\s]+\]", lambda m: " ".join(m[0].split()), text)
    write_file(path, (text + "\n").encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read results from {path}: {error}") from error


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
