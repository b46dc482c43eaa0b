"""Tokens to Checkpoint: a run directory with metrics and the last checkpoints."""

import dataclasses
import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import segpt
from segpt.data.batches import Blocks
from segpt.data.tokenizer import load
from segpt.data.tokens import ids
from segpt.errors import CheckpointError, TrainError
from segpt.eval.validate import validate
from segpt.model.model import Model
from segpt.spec.base import encode, fingerprint
from segpt.spec.layout import Role, layout
from segpt.spec.recipe import Recipe
from segpt.spec.train import Adam, Steps
from segpt.train.loop import Report, Run, compile_model
from segpt.train.loop import train as loop
from segpt.train.mesh import Mesh
from segpt.values import Checkpoint, Tokens, documents_digest

from .calibrate import in_order
from .files import checkpoint_name, checkpoints, save_checkpoint


def train(
    recipe: Recipe,
    tokens: Tokens,
    held_out: Tokens | None,
    out: Path,
    mesh: Mesh,
    *,
    resume: Checkpoint | None = None,
    report: Callable[[Report], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train a recipe on tokens; checkpoints and ``metrics.jsonl`` go to the directory ``out``.

    Args:
        recipe: model and training.
        tokens: the training split.
        held_out: text to validate on during training, or None.
        out: the run directory.
        mesh: the processes that share the work.
        resume: a checkpoint with state of the same recipe and tokens.
        report: called in the leading process for every logged step.
        notice: called with one line for each group of weights, and when something falls back.
        stop: asked after every step; true means save and stop.

    Returns:
        The directory of the last checkpoint.

    Raises:
        TrainError: if the tokens do not fit the model or the resumed run.
    """
    if tokens.tokenizer.vocab != recipe.model.vocab:
        raise TrainError(
            f"the tokens have a vocabulary of {tokens.tokenizer.vocab}, the model of "
            f"{recipe.model.vocab}; set model.vocab, or prepare the text with another tokenizer"
        )
    origin = {
        "tokens": tokens.fingerprint,
        "recipe": fingerprint(recipe),
        "documents": documents_digest(tokens.documents),
        "seed": str(recipe.train.seed),
    }
    run = Run(recipe.model, recipe.train, mesh)
    if resume is not None:
        _check_resumable(resume, origin)
        assert resume.state is not None
        run.restore(resume.step, resume.weights, resume.state)
    blocks = Blocks(ids(tokens), recipe.model.context, recipe.train.seed)
    batch = recipe.train.batch
    compile_model(run, blocks.batch(run.step, batch), notice)
    metrics = out / "metrics.jsonl"
    if mesh.leads:
        for group in run.optimizers.groups():
            notice(str(group))
        out.mkdir(parents=True, exist_ok=True)
        _rewind(metrics, run.step)

    def log(step: Report) -> None:
        if mesh.leads:
            with metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(step)) + "\n")
            report(step)

    def save(run: Run) -> None:
        if mesh.leads:
            checkpoint = Checkpoint(
                spec=recipe.model,
                weights=run.used(),
                tokenizer=tokens.tokenizer,
                step=run.step,
                progress=run.progress,
                documents=tokens.documents,
                origin=origin,
                state=run.state(),
                about=_about(recipe, run, tokens),
            )
            save_checkpoint(out / checkpoint_name(run.step), checkpoint)
            for old in checkpoints(out)[: -recipe.train.keep]:
                shutil.rmtree(old)

    loop(
        run,
        lambda step: blocks.batch(step, batch),
        validate=None if held_out is None else _validation(recipe, held_out),
        save=save,
        report=log,
        stop=stop,
    )
    return out / checkpoint_name(run.step)


def describe(recipe: Recipe) -> dict[str, Any]:
    """What a run would be, without running it: parameters by role, steps, tokens, memory.

    Memory counts float32 weights, gradients, optimizer state and average; activations come on
    top and depend on the micro-batch.
    """
    by_role: dict[str, int] = {}
    state = 0
    for weight in layout(recipe.model):
        by_role[weight.role.value] = by_role.get(weight.role.value, 0) + weight.size
        is_adam = weight.role is not Role.MATRIX or isinstance(recipe.train.optimizer.matrix, Adam)
        state += weight.size * (2 if is_adam else 1)
    total = sum(by_role.values())
    copies = 2 + (recipe.train.average is not None)
    per_step = recipe.train.batch * recipe.model.context
    loops = recipe.train.loops
    if loops is not None:
        recipe.model.passes(loops.most)  # raises if there is no loop
    length = recipe.train.length
    steps = length.count if isinstance(length, Steps) else None
    return {
        "recipe": recipe.name,
        "parameters": total,
        "parameters_by_role": by_role,
        "layers": len(recipe.model.layers),
        "visits": len(recipe.model.visits),
        "loop": None if recipe.model.loop is None else recipe.model.loop._asdict(),
        "loops": None if loops is None else encode(loops),
        "tokens_per_step": per_step,
        "steps": steps,
        "seconds": None if isinstance(length, Steps) else length.count,
        "tokens": None if steps is None else steps * per_step,
        "memory_bytes": 4 * (copies * total + state),
        "fingerprint": fingerprint(recipe),
    }


def _check_resumable(resume: Checkpoint, origin: dict[str, str]) -> None:
    if resume.state is None:
        raise CheckpointError("the checkpoint holds no optimizer state, so it cannot be resumed")
    for key, value in origin.items():
        if resume.origin.get(key) != value:
            raise TrainError(
                f"the checkpoint was trained with other {key} ({resume.origin.get(key)}, now "
                f"{value}); resume with the same ones, or start a new run with another --out"
            )


def _rewind(metrics: Path, step: int) -> None:
    """Drop the lines of steps that will be taken again, and a line cut short by a kill."""
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    metrics.write_text("".join(kept) if step else "", encoding="utf-8")


def _validation(recipe: Recipe, held_out: Tokens) -> Callable[[Model], tuple[float, float]]:
    context, count = recipe.model.context, recipe.train.validate_tokens
    sizes = load(held_out.tokenizer).sizes
    return lambda model: validate(model, in_order(held_out, context, count), sizes)


def _about(recipe: Recipe, run: Run, tokens: Tokens) -> dict[str, Any]:
    return {
        "recipe": encode(recipe),
        "seconds": run.elapsed,
        "tokens": run.step * recipe.train.batch * recipe.model.context,
        "text": {"split": tokens.split, "tokens": tokens.count, "digest": tokens.digest},
        "processes": run.mesh.size,
        "device": run.mesh.device.type,
        "versions": {
            "segpt": segpt.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
