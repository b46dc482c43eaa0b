"""The line that ``segpt demo`` runs, stage by stage."""

import dataclasses
import time
from pathlib import Path

from segpt.config.quant import QuantSpec
from segpt.config.recipe import Recipe
from segpt.config.sample import SampleSpec
from segpt.data.batches import in_chunks
from segpt.data.corpus import builtin
from segpt.errors import CheckpointError
from segpt.leaderboard.compressors import compressors
from segpt.report import demo, gather
from segpt.stages import checkpoint_io, json_files, quantized_io, resolve_spec, score, unfinished
from segpt.stages.open_model import open_model
from segpt.stages.pack import pack, read_artifact
from segpt.stages.read_model import read_model
from segpt.stages.sample import sample
from segpt.train.mesh import pick
from segpt.values import Artifact, Quantized, QuantizeProgress
from segpt.workspace import prepared
from segpt.workspace.begun_run import Begun
from segpt.workspace.prepared import Splits
from segpt.workspace.quantize_task import QuantizeTask
from segpt.workspace.quantizing import quantize

from . import _report, _texts, _training
from ._remember import remember

# Four times the text to calibrate on takes four times as long: of the demo's packed model it lowers
# KL from 0.0020 to 0.0017 nats and BPB by less than 0.0001.
CALIBRATION_TOKENS = 8192
REPORT_TOKENS = 8192
PROMPTS = (b"Return the ", b"class ", b".. function:: ", b"The ")


def run(recipe: Recipe, out: Path, device: str, *, resume: Begun | None = None) -> demo.DemoResult:
    """Everything from text to scores.

    Where a run is resumed, what is there already is kept.
    """
    started = time.perf_counter()
    with _report.Bar("prepare built-in text") as bar:
        splits = prepared.builtin_splits(recipe, bar.say)
    _texts.say(prepared.of_tokens(*splits))
    plan = _training.Plan(recipe, lambda: splits, out, resume)
    trained = _training.run(lambda: plan, device, again=None)
    assert trained is not None  # of other processes than the leading one, which there are not
    quantized = _quantize(recipe, Path(trained.checkpoint), splits, out, device)
    place = out / gather.ARTIFACT
    artifact, _ = pack(quantized, place, recipe.pack.budget)
    remember("artifact", place)
    plain = _score(recipe, place, artifact, gather.SCORE, device)
    adapted = _score(recipe, place, artifact, gather.SCORE_TTT, device)
    yardstick, held_out = compressors(builtin("validation")), splits[1]
    assert quantized.report is not None
    quality = quantized.report.quality
    assert quality is not None  # the damage is measured on held-out text
    return demo.DemoResult(
        rows=demo.rows(
            plain,
            adapted,
            yardstick,
            artifact=artifact.size,
            parameters=trained.parameters,
        ),
        text=demo.DemoText(name=plain.text, bytes=plain.bytes, mode=plain.mode),
        measured_on=in_chunks(
            held_out.split, held_out.count, _quick(recipe).report_tokens, recipe.model.context
        ),
        artifact=str(place),
        bytes=artifact.size,
        budget=recipe.pack.budget,
        parameters=trained.parameters,
        bpb_float=quality.bpb_before,
        bpb_quantized=quality.bpb_after,
        quantization_cost=quality.bpb_after - quality.bpb_before,
        bpb=plain.bpb,
        bpb_ttt=adapted.bpb,
        tokens_per_second=trained.tokens_per_second,
        compressors=yardstick,
        seed=recipe.train.seed,
        seconds=time.perf_counter() - started,
    )


def report_on(result: demo.DemoResult, out: Path, device: str) -> Path:
    """Store the result and samples of the packed model, and write the page about them."""
    _sample(read_artifact(out / gather.ARTIFACT), out, device)
    json_files.write_json(out / gather.DEMO, result)
    page = out / gather.PAGE
    gather.write(gather.gather(out), page)
    return page


def _quantize(recipe: Recipe, path: Path, splits: Splits, out: Path, device: str) -> Quantized:
    checkpoint, place = checkpoint_io.read_checkpoint(path), out / gather.QUANTIZED
    spec = _quick(recipe)
    task = QuantizeTask(path, checkpoint, recipe.name, spec, recipe.pack.budget, place)
    if (made := _made_before(task)) is not None:
        return made
    with _report.Bar("quantize") as bar:
        quantized = quantize(
            task, splits, device=pick(device), report=bar, before=_progress_before(task)
        )
    remember("quantized", place)
    return quantized


def _quick(recipe: Recipe) -> QuantSpec:
    """How the demo quantizes: as its recipe says, on less text."""
    spec = resolve_spec.quant_spec(recipe)
    return dataclasses.replace(
        spec,
        calibration_tokens=min(spec.calibration_tokens, CALIBRATION_TOKENS),
        report_tokens=min(spec.report_tokens, REPORT_TOKENS),
    )


def _made_before(task: QuantizeTask) -> Quantized | None:
    """The quantized model that an interrupted demo has made, if it is that of this run."""
    try:
        value = quantized_io.read_quantized(task.place) if task.place.exists() else None
    except CheckpointError:
        return None
    same = value is not None and all(value.origin.get(k) == v for k, v in task.origin.items())
    return value if same else None


def _progress_before(task: QuantizeTask) -> QuantizeProgress | None:
    """The layers that an interrupted demo has quantized, if they are those of this run."""
    try:
        return unfinished.read_partial(task.partial, task.origin) if task.partial.exists() else None
    except CheckpointError:
        return None


def _score(
    recipe: Recipe, path: Path, artifact: Artifact, name: str, device: str
) -> demo.ScoreFigures:
    """The score of the packed file, unless an interrupted demo has measured and stored it."""
    place, ttt = path.with_name(name), name == gather.SCORE_TTT
    if (figures := demo.stored(place, artifact)) is not None:
        return figures
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
    return demo.ScoreFigures.of(result)


def _sample(artifact: Artifact, out: Path, device: str) -> None:
    """Store how the packed model goes on after a few words."""
    samples = sample(artifact, PROMPTS, SampleSpec(), device=pick(device))
    json_files.write_json(out / gather.SAMPLES, samples.plain())
