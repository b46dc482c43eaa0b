"""What ``train`` and ``demo`` share: data, processes and progress around the stage."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from segpt.errors import CheckpointError
from segpt.spec.base import encode
from segpt.spec.layout import parameters
from segpt.spec.recipe import Bpe, Recipe
from segpt.spec.rules import Rules
from segpt.stages import files, prepare
from segpt.stages.train import train
from segpt.train.loop import Report
from segpt.train.mesh import Mesh, joined
from segpt.values import Tokens

from . import _latest, _report
from ._signals import Signals


def splits(recipe: Recipe, data: Path | None) -> tuple[Tokens, Tokens]:
    """The text to train on: named, newest if its vocabulary fits, or built in."""
    if data is not None:
        return prepare.open_splits(data)
    newest = _latest.latest("data")
    if newest is not None:
        found = prepare.open_splits(newest)
        if found[0].tokenizer.vocab == recipe.model.vocab:
            return found
    return builtin_splits(recipe)


def builtin_splits(recipe: Recipe) -> tuple[Tokens, Tokens]:
    """The built-in text under the recipe's tokenizer, prepared unless it is there already."""
    vocab = recipe.tokenizer.vocab if isinstance(recipe.tokenizer, Bpe) else "bytes"
    place = _latest.RUNS / "data" / f"builtin-{vocab}"
    with _report.Bar("prepare built-in text") as bar:
        found = prepare.builtin_splits(
            recipe.tokenizer, place, lambda split, done: bar.say(f"{split}: {done:,} bytes")
        )
    _latest.remember("data", place)
    return found


def run(
    recipe: Recipe,
    read: Callable[[], tuple[Tokens, Tokens]],
    out: Path,
    device: str,
    *,
    resume: bool,
    fresh: bool,
    init: Path | None = None,
    rules: Rules | None = None,
) -> dict[str, Any] | None:
    """Train on what ``read`` returns, and say what came of it as ``segpt train --json`` does.

    Under torchrun the leading process speaks; the others return None.
    """
    with joined(device) as mesh:
        mesh.agree({"--resume": resume, "--init": init is not None, "recipe": encode(recipe)})
        return _run(recipe, read, out, mesh, resume, fresh, init, rules)


def _run(
    recipe: Recipe,
    read: Callable[[], tuple[Tokens, Tokens]],
    out: Path,
    mesh: Mesh,
    resume: bool,
    fresh: bool,
    init: Path | None,
    rules: Rules | None,
) -> dict[str, Any] | None:
    checkpoint = None
    with mesh.all_well():
        begun = None if init is None else files.read_checkpoint(files.newest_checkpoint(init))
        if resume:
            out = (_latest.latest("checkpoint") or out) if fresh else out
            found = files.checkpoints(out)
            if not found:
                raise CheckpointError(
                    f"{out} holds no checkpoint to resume from; leave out --resume"
                )
            checkpoint = files.read_checkpoint(found[-1], state=True)
        elif fresh:
            out = _latest.fresh(out)
        elif files.checkpoints(out):
            raise CheckpointError(
                f"{out} already holds a run; add --resume, or choose another --out"
            )
    with mesh.all_well(), mesh.leader_first():
        tokens, held_out = read()
    if mesh.leads:
        _latest.remember("checkpoint", out)
    last: list[Report] = []
    bpb: list[float] = []
    about: dict[str, Any] = {}
    with _report.Bar(f"train {recipe.name}") as bar, Signals() as stop:

        def show(step: Report) -> None:
            last[:] = [step]
            if step.validation_bpb is not None:
                bpb[:] = [step.validation_bpb]
            detail = f"step {step.step}  loss {step.loss:.3f}  {step.tokens_per_second:,.0f} tok/s"
            bar(step.progress, detail + (f"  BPB {bpb[0]:.4f}" if bpb else ""))

        path = train(
            recipe,
            tokens,
            held_out,
            out,
            mesh,
            resume=checkpoint,
            init=begun,
            rules=rules,
            report=show,
            notice=_report.notice,
            stop=stop,
            finished=about.update,
        )
    if not mesh.leads:
        return None
    if not last:
        raise CheckpointError(f"{out} is already trained to the end; nothing to resume")
    return {
        "checkpoint": str(path),
        "steps": last[0].step,
        "tokens": last[0].tokens,
        "loss": last[0].loss,
        "bpb": bpb[0] if bpb else None,
        "bpb_of": _report.in_chunks(held_out, recipe.train.validate_tokens, recipe.model.context),
        "tokens_per_second": last[0].tokens_per_second,
        "seconds": last[0].seconds,
        "parameters": parameters(recipe.model),
        "read": about["read"],
        "best": _best(out, about),
        "rules": about.get("rules"),
    }


def _best(out: Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """The checkpoint of the best validation, if the recipe keeps it."""
    best = about.get("best")
    if best is None:
        return None
    return {"checkpoint": str(out / files.checkpoint_name(best["step"]))} | best
