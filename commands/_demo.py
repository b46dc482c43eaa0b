"""The line that ``segpt demo`` runs, stage by stage."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segpt.data.corpus import builtin
from segpt.errors import SegptError
from segpt.spec.recipe import Recipe
from segpt.spec.sample import SampleSpec
from segpt.stages import files, models, recipes, report, score, untuned
from segpt.stages.calibrate import quantize_on, share
from segpt.stages.compressors import compressors
from segpt.stages.pack import pack
from segpt.stages.sample import sample
from segpt.train.mesh import pick
from segpt.values import Artifact, Checkpoint, Quantized, Score, Tokens

from . import _latest, _report, _training

PROMPTS = (b"Return the ", b"class ", b".. function:: ", b"The ")
RATES = (2.5, 3.5, 5.0)  # of the curve in the report; more of them take longer
CALIBRATION_TOKENS = 8192  # of that curve


def run(recipe: Recipe, out: Path, device: str) -> dict[str, Any]:
    """Everything from text to scores, as the fields of ``segpt demo --json``."""
    tokens, held_out = _training.builtin_splits(recipe)
    trained = _training.run(
        recipe, lambda: (tokens, held_out), out, device, resume=False, fresh=False
    )
    if trained is None:
        raise SegptError("the demo runs in one process; start it without torchrun")
    checkpoint = files.read_checkpoint(Path(trained["checkpoint"]))
    quantized = _quantize(recipe, checkpoint, tokens, held_out, out, device)
    artifact_path = out / report.ARTIFACT
    artifact, _ = pack(quantized, artifact_path, recipe.pack.budget)
    _latest.remember("artifact", artifact_path)
    text = builtin("validation")
    plain = _score(recipe, artifact_path, False, device)
    adapted = _score(recipe, artifact_path, True, device)
    files.write_score(out / report.SCORE, plain)
    files.write_score(out / report.SCORE_TTT, adapted)
    _sample(artifact, out, device)
    yardstick = compressors(text)
    size = plain.bytes
    quality = quantized.report["quality"]
    cost = quality["bpb_after"] - quality["bpb_before"]
    gain = 100 * (1 - adapted.bpb / plain.bpb)
    rows = [
        _row(name, round(bpb * size / 8), None, bpb, f"{name} at its best, on the text alone")
        for name, bpb in sorted(yardstick.items(), key=lambda item: -item[1])
    ]
    packed = 8 * artifact.size / trained["parameters"]
    rows += [
        _row(
            "score",
            round(plain.bpb * size / 8),
            artifact.size,
            plain.bpb,
            f"the packed model, {packed:.2f} bits per weight, by its score",
        ),
        _row(
            "score --ttt",
            round(adapted.bpb * size / 8),
            artifact.size,
            adapted.bpb,
            f"it learns from what it has scored: {gain:.1f} % fewer bits",
        ),
    ]
    return {
        "rows": rows,
        "text": {"name": plain.text, "bytes": size, "mode": plain.conditions["mode"]},
        "measured_on": _report.in_chunks(
            held_out, recipe.quantize.report_tokens, recipe.model.context
        ),
        "artifact": str(artifact_path),
        "bytes": artifact.size,
        "budget": recipe.pack.budget,
        "parameters": trained["parameters"],
        "bpb_float": quality["bpb_before"],
        "bpb_quantized": quality["bpb_after"],
        "quantization_cost": cost,
        "bpb": plain.bpb,
        "bpb_ttt": adapted.bpb,
        "tokens_per_second": trained["tokens_per_second"],
        "compressors": yardstick,
    }


def report_on(result: Mapping[str, Any], out: Path) -> Path:
    """Store what the demo found, and write the page about its directory."""
    files.write_json(out / report.DEMO, result)
    page = out / report.PAGE
    report.write(report.gather(out), page)
    return page


def _quantize(
    recipe: Recipe, checkpoint: Checkpoint, tokens: Tokens, held_out: Tokens, out: Path, device: str
) -> Quantized:
    spec = recipes.quant_spec(recipe)
    with _report.Bar("quantize") as bar:
        quantized = quantize_on(
            checkpoint,
            spec,
            tokens,
            held_out,
            device=pick(device),
            report=lambda p: bar(share(p, spec), p.task),
        )
    fewer = min(spec.calibration_tokens, CALIBRATION_TOKENS)
    with _report.Bar("other rates") as bar:
        curve = untuned.curve(
            checkpoint,
            quantized,
            dataclasses.replace(spec, calibration_tokens=fewer),
            tokens,
            held_out,
            rates=RATES,
            device=pick(device),
            report=bar,
        )
    more = {"budget": recipe.pack.budget, "curve": curve.plain()}
    quantized = dataclasses.replace(quantized, report=dict(quantized.report) | more)
    files.save_quantized(out / report.QUANTIZED, quantized)
    _latest.remember("quantized", out / report.QUANTIZED)
    return quantized


def _score(recipe: Recipe, path: Path, ttt: bool, device: str) -> Score:
    value, model_spec = models.read_model(path)
    # Both read in the mode of the recipe, so that the difference is what was learnt on the way.
    policy = "best" if ttt else "none"
    spec = recipes.score_spec(model_spec, policy=policy, recipe=recipe)
    with _report.Bar("score" + (" with test-time training" if ttt else "")) as bar:
        return score.score(
            value,
            builtin("validation"),
            spec,
            device=pick(device),
            report=lambda p: bar(p.done / p.total, f"BPB {p.bpb:.4f}"),
        )


def _sample(artifact: Artifact, out: Path, device: str) -> None:
    """Store how the packed model goes on after a few words."""
    found = sample(artifact, PROMPTS, SampleSpec(), device=pick(device))
    files.write_json(out / report.SAMPLES, found.plain())


def _row(step: str, text: int, artifact: int | None, bpb: float, what: str) -> dict[str, Any]:
    """A way to store the text: in so many ``bytes``, beside which a model may be needed."""
    return {"step": step, "bytes": text, "artifact": artifact, "bpb": bpb, "what": what}
