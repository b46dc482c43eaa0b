"""``segpt train``."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segpt.config.base import encode
from segpt.workspace import newest

from . import _options, _report

if TYPE_CHECKING:
    from segpt.workspace.begun_run import Trained
    from segpt.workspace.prepared import NamedText

DEFAULT = "demo"  # the recipe where none is named


@click.command("train")
@_options.recipe(None, "demo")
@_options.stage
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="A directory of `data prepare`, a .yaml or .json file that mixes several, or `builtin`.  "
    "[default: the recipe's data, or the text prepared last]",
)
@click.option(
    "--validation",
    multiple=True,
    metavar="NAME=PATH",
    help="Validate on the held-out part of another prepared text too; repeat it for several. "
    "The best checkpoint is chosen by the first.  [default: that of --data]",
)
@_options.out("The run directory.  [default: runs/RECIPE]")
@click.option("--steps", type=click.IntRange(min=1), help="Train for so many steps.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Train for so long.")
@click.option("--seed", type=int, help="Seed of initialisation and data order.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    help="What the model multiplies in; auto is bfloat16 on CUDA.  [default: the recipe's]",
)
@_options.settings
@_options.device
@_options.resume("RUN", "Go on with RUN, or --out, or the newest run, as it was begun.")
@click.option(
    "--init",
    type=click.Path(path_type=Path),
    metavar="CHECKPOINT",
    help="Begin with the weights of a checkpoint or run, and with nothing else of it.",
)
@click.option("--rules", metavar="NAME", help="Keep to the rules of a contest: lapp0 or golf.")
@click.option("--dry-run", is_flag=True, help="Only say what the run would be.")
@_options.as_json
def command(
    recipe: str | None,
    stage: str | None,
    config_key: str | None,
    data: Path | None,
    validation: tuple[str, ...],
    out: Path | None,
    steps: int | None,
    seconds: float | None,
    seed: int | None,
    precision: str | None,
    settings: tuple[str, ...],
    device: str,
    resume: str | None,
    init: Path | None,
    rules: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a model from a recipe on the text that was prepared last, or else on built-in text.

    Without a recipe it is the demo's, with the vocabulary of the text. A recipe that is named
    keeps its vocabulary, and a text with another one is refused.

    An interrupted run saves itself; `--resume` goes on exactly where it stopped. Recipe, settings,
    seed and text are those of the run; only what leaves the result as it is may be changed, and
    the length up to `train.horizon`.

    --stage names a stage of a recipe that has several; it begins with the newest run of the stage
    before it, unless --init says otherwise.

    With --rules, what can be known before the run is checked before it, the run ends when the
    rules say so, and findings are printed and stored in the checkpoint. The exit code is 2 if a
    rule is broken before the run, and 1 if one is broken at its end; the checkpoint is saved then.

    \b
    --dry-run --json prints, beside what the recipe says:
      parameters_by_role     weights of tables, matrices, heads and vectors
      step_seconds, _source  a step, measured or estimated, and how
      seconds                of the whole run
      tokens                 that the run trains on
      flops_per_token        matrices, attention, head, forward, training
      memory                 bytes: weights, gradients, optimizer by rule,
                             average, activations of a micro-batch
      memory_bytes           their sum, for each process
      processes              as torchrun started them; they share the batch
      artifact_bytes         predicted size of the packed file, and _source
      warnings               what does not fit: memory, the file's budget
      rules                  findings, with --rules
    """  # noqa: D301 - Click reads a backspace
    if steps is not None and seconds is not None:
        raise click.UsageError("give --steps or --seconds, not both")
    if resume is not None and init is not None:
        raise click.UsageError("give --resume or --init, not both")
    if resume is not None and validation:
        raise click.UsageError("a resumed run validates as it did before; leave out --validation")
    if resume is not None and (stage or config_key):
        raise click.UsageError("a resumed run has its recipe; leave out --stage and --config-key")
    changes = list(settings)
    if steps is not None:
        changes.append(f"train.length={{kind: steps, count: {steps}}}")
    if seconds is not None:
        changes.append(f"train.length={{kind: seconds, count: {seconds}}}")
    if seed is not None:
        changes.append(f"train.seed={seed}")
    if precision is not None:
        changes.append(f"train.precision={precision}")

    from segpt.config import rules as contests
    from segpt.config.recipe import read_recipe, stage_of
    from segpt.config.stages import Choice
    from segpt.errors import CheckError
    from segpt.workspace.prepared import check_there

    from . import _processes, _resume, _stages, _texts

    choice = Choice(stage, config_key)
    held = None if rules is None else contests.find(rules)
    with _processes.said_once():
        if resume is None:
            read_recipe(recipe or DEFAULT, changes, choice)
        elif resume:
            newest.existing(Path(resume), "; segpt runs lists the runs that are here")
        if init is not None:
            newest.existing(init)
        check_there(data)

    from segpt.stages.resuming import is_finished
    from segpt.workspace import begun_run, model_text
    from segpt.workspace.mixtures import read_validated

    from . import _training

    texts: list[NamedText] = []
    validated = read_validated(validation)

    def plan() -> _training.Plan:
        """What the command line asks for: a run that goes on, or one that begins."""
        if resume is None:
            wanted = read_recipe(recipe or DEFAULT, changes, choice)
            which = stage_of(recipe or DEFAULT, choice)
            begins = _stages.begins_with(which, init, asked=bool(stage) and not dry_run)
            chosen, reading = _texts.for_training(
                wanted,
                data,
                changes,
                adapt=recipe is None,
                dry=dry_run,
                validated=validated,
            )
            texts[:] = reading.names
            return _training.Plan(
                chosen,
                partial(_texts.read_for_training, reading),
                out or newest.RUNS / chosen.name,
                fresh=out is None,
                init=begins.init,
                rules=held,
                optimizer=begins.optimizer,
            )
        begun = _training.say_begun(_resume.run(resume, out))
        chosen = begun_run.recipe_of(begun.checkpoint, recipe, changes)
        if not dry_run and is_finished(begun.checkpoint, chosen):
            return _training.Plan(chosen, _training.nothing, begun.run, begun)
        reading = model_text.of_model(begun.checkpoint, begun.run, data)
        _texts.say(reading.names)
        texts[:] = reading.names
        return _training.Plan(
            chosen, partial(_texts.read_for_training, reading), begun.run, begun, rules=held
        )

    if dry_run:
        from segpt.stages.dry_run import describe
        from segpt.train.mesh import pick

        if not _processes.leads():
            return  # one of the processes that torchrun starts speaks
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        about = describe(plan().recipe, pick(device), held, processes)
        table = encode(about)
        shown = [
            f"{key}: {_plain(value, _unit(key))}"
            for key, value in table.items()
            if value not in (None, []) and key not in ("warnings", "rules")
        ]
        if about.rules is not None:
            from segpt.stages.rules import lines

            shown.append(f"rules: {about.rules.name}")
            shown += lines(about.rules.findings)
        _report.emit(table | {"texts": encode(texts)}, as_json, shown)
        for warning in about.warnings:
            _report.notice(f"warning: {warning}")
        return
    asked = {"--resume": resume is not None, "--init": init is not None}
    result = _training.run(plan, device, asked=asked)
    if result is None:
        return
    _report.emit(encode(result) | {"texts": encode(texts)}, as_json, _lines(result))
    if result.rules is not None and texts:  # not of a run that has come to its end before
        from segpt.stages.rules import lines as rule_lines

        if not as_json:
            _report.emit({}, False, rule_lines(result.rules.findings))
        if wrong := contests.broken(result.rules.findings):
            raise CheckError(
                f"the rules {result.rules.name} are broken: {contests.sentence(wrong)}; "
                f"{result.checkpoint} is saved"
            )


def _lines(result: "Trained") -> list[str]:
    read, best = result.read, result.best
    if result.loss is None or read is None:  # a run that has ended, without its metrics
        return [f"{result.checkpoint}: {result.parameters:,} parameters"]
    lines = [
        f"{result.checkpoint}: {result.parameters:,} parameters, "
        f"{result.steps:,} steps, {result.tokens:,} tokens",
        f"training loss {result.loss:.4f} nats per token, {result.tokens_per_second:,.0f} tokens/s",
        f"{read.distinct:,} targets of the text in {read.epochs:.2f} epochs, none twice in "
        f"one; {read.left_out:,} left out by the cuts of whole epochs",
    ]
    if result.bpb is not None:
        lines.insert(1, f"BPB {result.bpb:.4f} on {result.bpb_of}")
    if result.bpb_by_set:
        by_set = ", ".join(f"{name} {bpb:.4f}" for name, bpb in result.bpb_by_set.items())
        lines.insert(2, f"BPB by validation set: {by_set}")
    lines += [
        f"{source.name}: {source.tokens:,} tokens in {source.epochs:.2f} epochs"
        for source in read.sources
    ]
    if best is not None:
        lines.append(f"best: {best.checkpoint}, BPB {best.bpb:.4f} on the same")
    return lines


_UNITS = {"memory": "B", "budget": "B", "flops_per_token": "FLOP"}
_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def _unit(key: str) -> str:
    """The unit of a value of the dry run, from its name."""
    if key.endswith("_bytes"):
        return "B"
    return "s" if key.endswith("seconds") else _UNITS.get(key, "")


def _plain(value: Any, unit: str) -> str:
    """A value of the dry run for people, with its unit; bytes and operations in larger ones."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner, unit)}" for key, inner in value.items())
    if value is None or isinstance(value, bool | str):
        return "unknown" if value is None else str(value)
    if unit in ("B", "FLOP"):
        for scale, prefix in _SCALES:
            if value >= scale:
                return f"{value / scale:,.2f} {prefix}{unit}"
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return f"{text} {unit}".rstrip()
