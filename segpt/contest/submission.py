"""What the one script of a contest submission does: evaluate its artifact, or train it anew.

The export of a submission carries this module and what it needs, so that the script runs where
segpt is not installed.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from segpt.artifact.container import unpack
from segpt.config.base import PlainSpec, decode, spec
from segpt.config.quant import QuantSpec
from segpt.config.recipe import Recipe
from segpt.config.score import ScoreSpec
from segpt.data.corpus import builtin
from segpt.data.shards import Shards, read_shards
from segpt.data.text import read_text
from segpt.errors import CheckError, SegptError, SpecError
from segpt.stages.calibrate import quantize_on
from segpt.stages.checkpoint_io import read_checkpoint
from segpt.stages.link import held_out_beside, link
from segpt.stages.open_model import OpenedModel, open_model
from segpt.stages.pack import pack, read_artifact
from segpt.stages.prepare import as_text, builtin_splits, open_splits
from segpt.stages.quantized_io import save_quantized
from segpt.stages.score import score
from segpt.stages.train import Observer, train
from segpt.train.loop import StepMetrics
from segpt.train.mesh import joined
from segpt.values import Artifact, Checkpoint, Quantized, Score, Text, Tokens

Say = Callable[[str], None]

BUILT_IN = "builtin/validation"
SHARDS = "fineweb_val_*.bin"  # of the contest, below its data directory
TRAINING_SHARDS = "fineweb_train_*.bin"
DATA = Path("data", "datasets")


@spec
class ScriptPlan(PlainSpec):
    """What a script evaluates, how, and how that was made.

    ``artifact`` is the name of the file beside the script and ``digest`` its SHA-256. ``text``
    names the text of the claim; ``threads`` is None for as many as torch takes, and ``truncate``
    for sequences that are not cut.
    """

    artifact: str
    digest: str
    score: ScoreSpec
    recipe: Recipe
    quantize: QuantSpec
    text: str
    device: str
    threads: int | None
    truncate: int | None


def run(script: Path, plan: ScriptPlan, arguments: Sequence[str], say: Say) -> int:
    """Run the script of a submission; the exit code.

    ``arguments`` are texts to evaluate on, or ``train [OUT [DATA]]``. Without any, the text is
    what ``DATA_PATH`` names, or the validation shards of the contest if they are there, or the
    built-in text if the figure that is claimed is on it; what was trained anew is evaluated on its
    held-out text if there is none of these. ``DATA``, or else ``DATA_PATH``, is a prepared text or
    a directory with shards of the contest, and the text to train on is the built-in one without
    these. ``SEED`` changes that of the training.
    """
    try:
        if arguments[:1] == ["train"]:
            _train(script, plan, arguments[1:], say)
        else:
            artifact = read_artifact(script.parent / plan.artifact)
            if artifact.digest != plan.digest:
                raise CheckError(f"{plan.artifact} is not the artifact of this submission")
            opened = open_model(artifact)
            text = _text(opened.source, [Path(a) for a in arguments] or _given(), plan)
            if text is None:
                say("name a text: python train_gpt.py TEXT..., or set DATA_PATH")
                return 2
            _evaluate(script, plan, opened, text, say)
    except SegptError as error:
        say(" ".join(filter(None, (type(error).__name__, str(error)))))
        return error.exit_code
    return 0


def lines(result: Score, *, seed: int | None, model: int, code: int) -> list[str]:
    """An evaluation as the contest's scripts print it; ``model`` and ``code`` are sizes."""
    return [
        *([] if seed is None else [f"seed: {seed}"]),
        f"Code size: {code} bytes",
        f"Serialized model: {model} bytes",
        f"Total submission size: {model + code} bytes",
        f"final val_loss:{result.nats / result.tokens!r} val_bpb:{result.bpb!r} "
        f"eval_time:{1000 * result.seconds:.0f}ms",
    ]


def _evaluate(
    script: Path, plan: ScriptPlan, opened: OpenedModel, text: Text | Shards, say: Say
) -> None:
    assert isinstance(opened.value, Artifact)
    if plan.threads:
        torch.set_num_threads(plan.threads)
    with joined(os.environ.get("DEVICE", plan.device)) as mesh:
        mesh.agree({"artifact": opened.identity})
        result = score(opened.on(str(mesh.device)), text, plan.score)
    if mesh.leads:
        size = script.stat().st_size
        for line in lines(result, seed=result.seed, model=opened.value.size, code=size):
            say(line)


def _given() -> list[Path]:
    place = Path(os.environ.get("DATA_PATH", DATA))
    if place.is_dir():
        return sorted(p for p in place.rglob(SHARDS) if "_bytes_" not in p.name) or (
            [place] if "DATA_PATH" in os.environ else []
        )
    return [place] if place.exists() or "DATA_PATH" in os.environ else []


def _text(
    source: Quantized | Checkpoint, paths: list[Path], plan: ScriptPlan
) -> Text | Shards | None:
    """The text of some files, or else that of the claim if it is built in."""
    if not paths:
        return builtin("validation") if plan.text == BUILT_IN else None
    if all(path.suffix == ".bin" for path in paths):
        return read_shards(paths, source.tokenizer, vocab=source.spec.vocab, sequence=plan.truncate)
    return read_text(paths)


def _train(script: Path, plan: ScriptPlan, arguments: Sequence[str], say: Say) -> None:
    """Train, quantize and pack into a directory, and evaluate what came of it."""
    out = Path(arguments[0]) if arguments else Path("run")
    recipe = plan.recipe
    if "SEED" in os.environ:
        settings = dataclasses.replace(recipe.train, seed=int(os.environ["SEED"]))
        recipe = dataclasses.replace(recipe, train=settings)
    begun = time.perf_counter()
    with joined(os.environ.get("DEVICE", "auto")) as mesh:
        with mesh.leader_first():
            tokens, held_out = _splits(script, plan, arguments[1:], out / "data", leads=mesh.leads)
        if mesh.leads:
            say(f"seed: {recipe.train.seed}")
        path = train(recipe, tokens, held_out, out, mesh, observer=_Spoken(say, begun))
        if not mesh.leads:
            return
        device = str(mesh.device)
        checkpoint = read_checkpoint(path)
        quantized = quantize_on(checkpoint, plan.quantize, tokens, held_out, device=device)
        save_quantized(out / "quantized", quantized)
        budget = recipe.pack.budget
        artifact, _ = pack(quantized, out / plan.artifact, budget)
    opened = open_model(artifact)
    text = _text(opened.source, _given(), plan)
    _evaluate(script, plan, opened, text or as_text(held_out), say)


def _splits(
    script: Path, plan: ScriptPlan, named: Sequence[str], out: Path, *, leads: bool
) -> tuple[Tokens, Tokens]:
    """The text to train on and the held-out one; shards are read where they lie."""
    place = Path(named[0]) if named else Path(os.environ.get("DATA_PATH", DATA))
    if shards := sorted(place.rglob(TRAINING_SHARDS)) if place.is_dir() else []:
        if not leads:
            return open_splits(out)
        tokenizer = unpack(read_artifact(script.parent / plan.artifact)).tokenizer
        source = {"shards": [str(path) for path in shards]}
        return link(shards, held_out_beside(shards), tokenizer, out, source=source)
    if named:
        return open_splits(place)
    if plan.recipe.data is not None:
        raise SpecError(
            "the recipe trains on a mix of texts, which this script does not know; name one text: "
            "python train_gpt.py train OUT DATA"
        )
    return builtin_splits(plan.recipe.tokenizer, out, lambda *_: None)


class _Spoken(Observer):
    """Says every logged step as the scripts of the contest do."""

    def __init__(self, say: Say, begun: float) -> None:
        self.say, self.begun = say, begun

    def notice(self, line: str) -> None:
        self.say(line)

    def step(self, metrics: StepMetrics) -> None:
        spent = 1000 * (time.perf_counter() - self.begun)
        self.say(f"step:{metrics.step} train_loss:{metrics.loss:.4f} train_time:{spent:.0f}ms")


def read_plan(text: str) -> ScriptPlan:
    """The plan that a script carries."""
    return decode(ScriptPlan, json.loads(text), "$.plan")
