"""The line that ``segpt demo`` runs, stage by stage."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from segpt.config.quant import QuantSpec
from segpt.config.recipe import Recipe
from segpt.config.sample import SampleSpec
from segpt.data.corpus import builtin
from segpt.errors import CheckpointError, SegptError
from segpt.leaderboard.compressors import compressors
from segpt.report import gather
from segpt.stages import checkpoint_io, json_files, quantized_io, resolve_spec, score, unfinished
from segpt.stages.open_model import open_model, read_model
from segpt.stages.pack import pack, read_artifact
from segpt.stages.sample import sample
from segpt.train.mesh import pick
from segpt.values import Artifact, Checkpoint, Quantized, QuantizeProgress, Tokens

from . import _latest, _quantizing, _report, _texts, _training

# Four times the text to calibrate on takes four times as long: of the demo's packed model it lowers
# KL from 0.0020 to 0.0017 nats and BPB by less than 0.0001.
CALIBRATION_TOKENS = 8192
REPORT_TOKENS = 8192
PROMPTS = (b"Return the ", b"class ", b".. function:: ", b"The ")


def run(
    recipe: Recipe, out: Path, device: str, *, resume: _training.Begun | None = None
) -> dict[str, Any]:
    """Everything from text to scores, as the fields of ``segpt demo --json``.

    Where a run is resumed, what is there already is kept.
    """
    tokens, held_out = _texts.builtin_splits(recipe)
    _texts.say(_texts.of_tokens(tokens, held_out))
    trained = _train(recipe, tokens, held_out, out, device, resume)
    assert trained is not None  # of other processes than the leading one, which there are not
    checkpoint = checkpoint_io.read_checkpoint(Path(trained["checkpoint"]))
    quantized = _quantize(recipe, checkpoint, tokens, held_out, out, device)
    artifact_path = out / gather.ARTIFACT
    artifact, _ = pack(quantized, artifact_path, recipe.pack.budget)
    _latest.remember("artifact", artifact_path)
    text = builtin("validation")
    plain = _score(recipe, artifact_path, artifact, gather.SCORE, device)
    adapted = _score(recipe, artifact_path, artifact, gather.SCORE_TTT, device)
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
        "text": {"name": plain.text, "bytes": size, "mode": plain.mode},
        "measured_on": _report.in_chunks(
            held_out.split, held_out.count, _quick(recipe).report_tokens, recipe.model.context
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


class Measured(NamedTuple):
    """A score as far as the table needs it: which text, its bytes, bits for each, and the mode."""

    text: str
    bytes: int
    bpb: float
    mode: str


def _train(
    recipe: Recipe,
    tokens: Tokens,
    held_out: Tokens,
    out: Path,
    device: str,
    resume: _training.Begun | None,
) -> dict[str, Any] | None:
    """The run, from its beginning or where it stopped."""
    plan = _training.Plan(recipe, lambda: (tokens, held_out), out, resume)
    return _training.run(lambda: plan, device, again=None)


def report_on(result: Mapping[str, Any], out: Path, device: str) -> Path:
    """Store the result and samples of the packed model, and write the page about them."""
    _sample(read_artifact(out / gather.ARTIFACT), out, device)
    json_files.write_json(out / gather.DEMO, result)
    page = out / gather.PAGE
    gather.write(gather.gather(out), page)
    return page


def _quantize(
    recipe: Recipe, checkpoint: Checkpoint, tokens: Tokens, held_out: Tokens, out: Path, device: str
) -> Quantized:
    spec = _quick(recipe)
    origin, place = _quantizing.origin_of(checkpoint, spec), out / gather.QUANTIZED
    if (made := _there(place, origin)) is not None:
        return made
    return _quantizing.run(
        checkpoint,
        spec,
        (tokens, held_out),
        place,
        recipe=recipe.name,
        budget=recipe.pack.budget,
        device=device,
        resume=_partial(_latest.partial_of(place), origin),
    )


def _quick(recipe: Recipe) -> QuantSpec:
    """How the demo quantizes: as its recipe says, on less text."""
    spec = resolve_spec.quant_spec(recipe)
    return dataclasses.replace(
        spec,
        calibration_tokens=min(spec.calibration_tokens, CALIBRATION_TOKENS),
        report_tokens=min(spec.report_tokens, REPORT_TOKENS),
    )


def _there(place: Path, origin: Mapping[str, str]) -> Quantized | None:
    """The quantized model that an interrupted demo has made, if it is that of this run."""
    try:
        value = quantized_io.read_quantized(place) if place.exists() else None
    except CheckpointError:
        return None
    same = value is not None and all(value.origin.get(k) == v for k, v in origin.items())
    return value if same else None


def _partial(place: Path, origin: Mapping[str, str]) -> QuantizeProgress | None:
    """The layers that an interrupted demo has quantized, if they are those of this run."""
    try:
        return unfinished.read_partial(place, origin) if place.exists() else None
    except CheckpointError:
        return None


def _score(recipe: Recipe, path: Path, artifact: Artifact, name: str, device: str) -> Measured:
    """The score of the packed file, unless an interrupted demo has measured and stored it."""
    place, ttt = path.with_name(name), name == gather.SCORE_TTT
    if (measured := _scored(place, artifact)) is not None:
        return measured
    opened = open_model(read_model(path), pick(device))
    # Both read in the mode of the recipe, so that the difference is what was learnt on the way.
    policy = "best" if ttt else "none"
    spec = resolve_spec.score_spec(opened.spec, policy=policy, recipe=recipe)
    with _report.Bar("score" + (" with test-time training" if ttt else "")) as bar:
        result = score.score(
            opened,
            builtin("validation"),
            spec,
            report=lambda p: bar(p.done / p.total, f"BPB {p.bpb:.4f}"),
        )
    json_files.write_score(place, result)
    return Measured(result.text, result.bytes, result.bpb, result.conditions["mode"])


def _scored(place: Path, artifact: Artifact) -> Measured | None:
    try:
        plain = json_files.read_json(place, "the score")
        same = plain["origin"]["artifact"] == artifact.digest
        mode = str(plain["conditions"]["mode"])
        measured = Measured(str(plain["text"]), int(plain["bytes"]), float(plain["bpb"]), mode)
        return measured if same else None
    except (SegptError, KeyError, TypeError, ValueError):
        return None


def _sample(artifact: Artifact, out: Path, device: str) -> None:
    """Store how the packed model goes on after a few words."""
    samples = sample(artifact, PROMPTS, SampleSpec(), device=pick(device))
    json_files.write_json(out / gather.SAMPLES, samples.plain())


def _row(step: str, text: int, artifact: int | None, bpb: float, what: str) -> dict[str, Any]:
    """A way to store the text: in so many ``bytes``, beside which a model may be needed."""
    return {"step": step, "bytes": text, "artifact": artifact, "bpb": bpb, "what": what}
