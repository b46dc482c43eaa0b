"""Tokens to Checkpoint: a run directory with metrics and the last checkpoints."""

import dataclasses
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import segpt
from segpt.atomic import remove_directory, write_file
from segpt.config.base import differences as spec_differences
from segpt.config.base import encode, fingerprint, kind
from segpt.config.flops import flops
from segpt.config.layout import layout
from segpt.config.recipe import Recipe
from segpt.config.rules import Finding, Rules, find
from segpt.config.schedule import Seconds, Steps
from segpt.data.batches import Blocks
from segpt.data.ledger import Ledger
from segpt.data.tokenizer import load
from segpt.data.tokens import ids
from segpt.errors import CheckpointError, TrainError
from segpt.eval.validate import validate
from segpt.kernels import use_recipe
from segpt.model.model import Model
from segpt.restoring import taking_over
from segpt.train.loop import Report, Run, compile_model, sequences
from segpt.train.loop import train as loop
from segpt.train.mesh import Mesh
from segpt.train.optim import Group
from segpt.values import Checkpoint, Tokens, documents_digest

from . import estimate
from . import rules as referee
from .calibrate import in_order
from .checkpoint_io import METRICS, checkpoint_name, checkpoints, clean_run, save_checkpoint
from .commit import commit
from .resolve_spec import of_checkpoint
from .tables import aligned
from .threads import rounded_otherwise

REPLAYED = 65_536  # blocks at a time
Validate = Callable[[Model], tuple[float, float]]


def train(
    recipe: Recipe,
    tokens: Tokens,
    held_out: Tokens | None,
    out: Path,
    mesh: Mesh,
    *,
    resume: Checkpoint | None = None,
    init: Checkpoint | None = None,
    rules: Rules | None = None,
    report: Callable[[Report], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    finished: Callable[[Mapping[str, Any]], None] = lambda _: None,
    saved: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Train a recipe on tokens; checkpoints and ``metrics.jsonl`` go to the directory ``out``.

    A resumed run goes on exactly where it stopped. Its recipe is the same but for what does not
    change the result, see :func:`differences`, and for the length, which may be another one up to
    the horizon of the schedules: a run that was stopped early has then taken the steps that the
    longer one takes.

    Args:
        recipe: model and training.
        tokens: the training split.
        held_out: text to validate on during training, or None.
        out: the run directory.
        mesh: the processes that share the work.
        resume: a checkpoint with state of the same recipe and tokens.
        init: a checkpoint whose weights to begin with, and nothing else of it: the run has its
            own steps, schedules and optimizer.
        rules: what the run must keep to; those of the resumed run if that had any.
        report: called in the leading process for every logged step.
        notice: called with lines about the run before it, and when something falls back.
        stop: asked after every step; true means save and stop.
        finished: given the ``about`` of the last checkpoint when the run is over.
        saved: called in the leading process with each checkpoint that is on the disk.

    Returns:
        The directory of the last checkpoint.

    Raises:
        TrainError: if the tokens do not fit the model or the resumed run, or rules are broken
            before training, or the processes were not started alike.
        DataError: if the text is too short to take no target twice, where the recipe wants that.
        CheckpointError: if weights to begin with have another shape.
    """
    with use_recipe(recipe.train.kernels):
        mesh.agree(_told(recipe, tokens, held_out, resume, init, rules))
        with mesh.all_well():
            session = _Session(recipe, tokens, held_out, out, mesh, resume, init, rules, saved)
        run, blocks = session.run, session.blocks
        run.threads.notice = notice
        compile_model(run, blocks.take(run.blocks, run.size), notice)
        if mesh.leads:
            for line in (*session.lines(), *([] if resume is None else _inexact(resume, mesh))):
                notice(line)
            out.mkdir(parents=True, exist_ok=True)
            clean_run(out)
            _rewind(session.metrics, run.step)
        check = None if held_out is None else _validation(recipe, held_out)
        if check is not None and recipe.train.validate_first and not run.step:
            session.validate_first(check)
        if not session.over:
            run.threads.start()
            try:
                loop(
                    run,
                    session.batch,
                    validate=check,
                    save=session.save,
                    report=lambda step: session.log(step, report),
                    stop=stop,
                    finish=session.finish,
                    sizes=load(tokens.tokenizer).sizes,
                )
            finally:
                run.threads.release()
        finished(session.about())
        return out / checkpoint_name(run.step)


def _told(
    recipe: Recipe,
    tokens: Tokens,
    held_out: Tokens | None,
    resume: Checkpoint | None,
    init: Checkpoint | None,
    rules: Rules | None,
) -> dict[str, Any]:
    """What all processes of a run have to be told alike."""
    return {
        "recipe": encode(recipe),
        "data": {"tokens": tokens.count, "digest": tokens.fingerprint},
        "validation": held_out and {"tokens": held_out.count, "digest": held_out.fingerprint},
        "resumed checkpoint": resume and {"step": resume.step, "digest": resume.fingerprint},
        "initial checkpoint": init and init.fingerprint,
        "rules": rules and rules.name,
    }


def _inexact(resume: Checkpoint, mesh: Mesh) -> list[str]:
    """A line if a resumed run adds up its sums in another order than it did."""
    about = resume.about
    versions = about.get("versions")
    then = {key: about.get(key) for key in ("processes", "device", "threads")}
    then["torch"] = versions.get("torch") if isinstance(versions, Mapping) else None
    now = {
        "processes": mesh.size,
        "device": mesh.device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    line = rounded_otherwise("the run", then, now)
    return [] if line is None else [line]


class _Session:
    """A run on a text: what it reads, when it ends, and what its checkpoints say."""

    def __init__(
        self,
        recipe: Recipe,
        tokens: Tokens,
        held_out: Tokens | None,
        out: Path,
        mesh: Mesh,
        resume: Checkpoint | None,
        init: Checkpoint | None,
        rules: Rules | None,
        saved: Callable[[Path], None],
    ) -> None:
        if tokens.tokenizer.vocab != recipe.model.vocab:
            raise TrainError(
                f"the tokens have a vocabulary of {tokens.tokenizer.vocab}, the model of "
                f"{recipe.model.vocab}; set model.vocab, or prepare the text with another tokenizer"
            )
        opens = load(tokens.tokenizer).start
        if recipe.model.start not in (None, opens):
            raise TrainError(
                f"documents of these tokens open with token {opens}, those of the model with "
                f"token {recipe.model.start}; set model.start={opens}"
            )
        if resume is not None and init is not None:
            raise TrainError("a resumed run has its own weights; leave out --init or --resume")
        self.recipe, self.tokens, self.out, self.mesh = recipe, tokens, out, mesh
        self.held_out, self.saved = held_out, saved
        self.metrics = out / METRICS
        earlier = [] if init is None else [init.documents]
        if resume is not None and "init" in resume.origin:
            earlier = [resume.documents]
        self.documents = np.unique(np.concatenate([tokens.documents, *earlier]))
        self.origin = {
            "tokens": tokens.fingerprint,
            "recipe": fingerprint(recipe),
            "documents": documents_digest(self.documents),
            "seed": str(recipe.train.seed),
        }
        if init is not None:
            _check_fits(init, recipe, tokens)
            self.origin["init"] = init.fingerprint
        how = recipe.train
        self.blocks = Blocks(ids(tokens), recipe.model.context, how.seed, how.order)
        self.ledger = Ledger(self.blocks.targets, self.blocks.context, self.blocks.epoch_blocks)
        given = estimate_given(recipe, held_out, mesh, scratch=init is None)
        if resume is not None:
            self.origin |= {k: v for k, v in resume.origin.items() if k == "init"}
            _check_resumable(resume, self.origin, recipe)
            given = dataclasses.replace(given, scratch="init" not in self.origin)
            rules = rules or _rules_of(resume)
        self.rules, self.given = rules, given
        self.findings: Sequence[Finding] = ()
        if rules is not None:
            self.findings = referee.before(rules, recipe, given)
        self.run = Run(recipe.model, how, mesh)
        if init is not None:
            self.run.start_from(init.weights)
        if resume is not None:
            self._restore(resume)
        if how.unique:
            left = self.run.size if self.run.left is None else self.run.left
            self.blocks.check_enough(self.run.blocks + left)
        self.over = self.run.fraction >= 1.0
        if rules is not None:
            self._ends = referee.ending(rules, self.run, given)
            self.over = self.over or self._ends(self.run, self.run.validations.nats)

    def _restore(self, resume: Checkpoint) -> None:
        assert resume.state is not None
        self.run.restore(resume.step, resume.weights, resume.state)
        if "ledger|now" in resume.state:
            with taking_over("the record of what was read", resume.state, self.ledger.state):
                self.ledger.restore(resume.state)
        else:  # saved before there was a ledger
            for first in range(0, self.run.blocks, REPLAYED):
                count = min(REPLAYED, self.run.blocks - first)
                self.ledger.record(self.blocks.places(first, count))
        self._check_ledger()

    def _check_ledger(self) -> None:
        if self.ledger.blocks != self.run.blocks:
            raise TrainError(
                f"{self.ledger.blocks:,} blocks were read and {self.run.blocks:,} trained on; "
                "the run would report tokens that it did not learn from"
            )

    def batch(self, step: int) -> NDArray[np.int64]:
        """The blocks of the coming step, which are on record from now on."""
        places = self.blocks.places(self.run.blocks, self.run.size)
        self.ledger.record(places)
        return self.blocks.read(places)

    def finish(self, run: Run, nats: float | None) -> bool:
        """Whether rules end the run, or a text that gives no other batch without repeating."""
        if self.rules is not None and self._ends(run, nats):
            self.over = True
        if self.recipe.train.unique and run.left is None:
            self.over |= run.blocks + run.size > self.blocks.epoch_blocks
        return self.over

    def validate_first(self, check: Validate) -> None:
        """Measure what the run begins with, as the first line of the metrics."""
        run = self.run
        with run.average.applied():
            nats, bpb = map(self.mesh.mean_value, check(run.model.at(run.progress).eval()))
        run.validations.add(0, 0, nats, bpb)
        if self.mesh.leads:
            first = {"step": 0, "tokens": 0, "validation_loss": nats, "validation_bpb": bpb}
            self._append(first)

    def log(self, step: Report, report: Callable[[Report], None]) -> None:
        """Write a logged step to the metrics, and tell ``report``."""
        if self.mesh.leads:
            self._append(dataclasses.asdict(step))
            report(step)

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def save(self, run: Run) -> None:
        """Write a checkpoint; old ones go, but for the best if the recipe keeps that."""
        self._check_ledger()
        self.over |= run.fraction >= 1.0
        if not self.mesh.leads:
            return
        checkpoint = Checkpoint(
            spec=self.recipe.model,
            weights=run.used(),
            tokenizer=self.tokens.tokenizer,
            step=run.step,
            progress=run.progress,
            documents=self.documents,
            origin=self.origin,
            state=run.state() | self.ledger.state(),
            about=self.about(),
        )
        path = self.out / checkpoint_name(run.step)
        save_checkpoint(path, checkpoint)
        self.saved(path)
        how = self.recipe.train
        best = checkpoint_name(run.validations.best_step) if how.keep_best else None
        for old in checkpoints(self.out)[: -how.keep]:
            if old.name != best:
                remove_directory(old)

    def about(self) -> dict[str, Any]:
        """What a checkpoint says about the run so far."""
        run, validations = self.run, self.run.validations
        about = {
            "recipe": encode(self.recipe),
            "seconds": run.elapsed,
            "tokens": self.ledger.tokens,
            "read": self.ledger.plain(),
            "text": _text(self.tokens)
            | {
                "place": str(_place(self.tokens)),
                "validation": None if self.held_out is None else _text(self.held_out),
            },
            "finished": self.over or run.fraction >= 1.0,
            "processes": run.mesh.size,
            "device": run.mesh.device.type,
            "threads": run.threads.most,
            "fewest_threads": run.threads.fewest,
            "commit": commit(),
            "versions": {
                "segpt": segpt.__version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }
        if self.recipe.train.keep_best and validations.best_step:
            about["best"] = {"step": validations.best_step, "bpb": validations.best_bpb}
        if self.rules is not None:
            over = self.over
            now = (self.rules, self.recipe, self.given, run, self.ledger)
            self.findings = referee.after(*now, finished=over)
            findings = [finding.plain() for finding in self.findings]
            about["rules"] = {"name": self.rules.name, "finished": over, "findings": findings}
        return about

    def lines(self) -> list[str]:
        """What a run says before it starts."""
        blocks = self.blocks
        left_out = blocks.targets - blocks.epoch_blocks * blocks.context
        return [
            *group_table(self.run.optimizers.groups()),
            f"an epoch is {blocks.epoch_blocks:,} blocks of {blocks.context}, "
            f"{blocks.order}; it leaves out {left_out:,} of {blocks.targets:,} targets",
            *(referee.lines(self.findings) if self.findings else ()),
        ]


def group_table(groups: Sequence[Group]) -> list[str]:
    """Which rule updates what, as a table of aligned columns."""
    rows = [("weights of", "rule", "rate", "decay", "tensors", "weights")]
    for group in groups:
        places = ", ".join(place.value for place in group.places)
        rows.append(
            (
                f"{group.role.value}: {places}",
                kind(group.rule),
                f"{group.rule.rate:g}",
                " ".join([f"{group.rule.decay:g}", *group.traits]),
                f"{group.tensors:,}",
                f"{group.parameters:,}",
            )
        )
    return aligned(rows, right=(2, 3, 4, 5))


def describe(
    recipe: Recipe,
    device: str | None = None,
    rules: Rules | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """What a run would be, without running it; all in JSON values.

    Memory counts float32 weights, gradients, optimizer state by rule and average, and what a
    micro-batch keeps for its backward pass. Time is measured or estimated on ``device``; without
    one only a length in seconds says it.

    Args:
        recipe: model and training.
        device: what the run would compute on.
        rules: what it would have to keep to, on held-out text of the length that the recipe says.
        processes: how many would share a batch; memory is that of one of them.

    Raises:
        SpecError: if the recipe draws loops and the route has none.
        TrainError: if rules are broken before the run.
    """
    by_role: dict[str, int] = {}
    for weight in layout(recipe.model):
        by_role[weight.role.value] = by_role.get(weight.role.value, 0) + weight.size
    how = recipe.train
    if how.loops is not None:
        recipe.model.passes(how.loops.most)  # raises if there is no loop
    length = how.length
    steps = length.count if isinstance(length, Steps) else None
    Mesh(0, processes, torch.device("cpu")).rows(how.batch, how.accumulation)  # raises if not
    pace = None if device is None else estimate.pace(recipe, device, processes)
    seconds = None if isinstance(length, Steps) else length.count
    if pace is not None and isinstance(length, Steps):
        seconds = pace.seconds * length.count
    reads = sequences(how)
    memory = estimate.memory(recipe, device or "cpu", processes)
    work = flops(recipe.model)
    size, assumed = estimate.artifact_bytes(recipe)
    findings: Sequence[Finding] = ()
    if rules is not None:
        given = referee.Given(device or "cpu", processes, size, how.validate_tokens, scratch=True)
        findings = referee.before(rules, recipe, given)
    return {
        "recipe": recipe.name,
        "parameters": sum(by_role.values()),
        "parameters_by_role": by_role,
        "layers": len(recipe.model.layers),
        "visits": len(recipe.model.visits),
        "loop": None if recipe.model.loop is None else recipe.model.loop._asdict(),
        "loops": None if how.loops is None else encode(how.loops),
        "tokens_per_step": how.batch * recipe.model.context,
        "steps": steps,
        "seconds": seconds,
        "step_seconds": None if pace is None else pace.seconds,
        "step_seconds_source": None if pace is None else pace.source,
        "tokens": None if reads is None else reads * recipe.model.context,
        "flops_per_token": work._asdict() | {"forward": work.forward, "training": work.training},
        "memory": memory,
        "memory_bytes": estimate.total(memory),
        "processes": processes,
        "artifact_bytes": size,
        "artifact_bytes_source": assumed,
        "budget": recipe.pack.budget,
        "rules": None
        if rules is None
        else {"name": rules.name, "findings": [finding.plain() for finding in findings]},
        "warnings": estimate.warnings(recipe, estimate.total(memory), size, device or "cpu"),
        "fingerprint": fingerprint(recipe),
    }


def estimate_given(
    recipe: Recipe, held_out: Tokens | None, mesh: Mesh, *, scratch: bool
) -> referee.Given:
    """What rules are asked about beside the recipe."""
    device = mesh.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    measured = None
    if held_out is not None:
        measured = min(recipe.train.validate_tokens, held_out.count - 1)
    predicted, _ = estimate.artifact_bytes(recipe)
    return referee.Given(
        name,
        mesh.size,
        predicted,
        measured,
        scratch,
        tokenizer=None if held_out is None else held_out.tokenizer,
        text=None if held_out is None else held_out.digest,
    )


def _check_fits(init: Checkpoint, recipe: Recipe, tokens: Tokens) -> None:
    """Refuse weights of another shape or for other tokens, all of it in one message."""
    if init.tokenizer.fingerprint != tokens.tokenizer.fingerprint:
        raise CheckpointError(
            "the checkpoint to begin with has another tokenizer than the text; prepare the text "
            "with that of the checkpoint"
        )
    wanted = {weight.name: weight.shape for weight in layout(recipe.model)}
    given = {name: array.shape for name, array in init.weights.items()}
    odd = sorted(name for name in wanted.keys() | given if wanted.get(name) != given.get(name))
    if odd:
        was, now = (shapes.get(odd[0], "missing") for shapes in (given, wanted))
        raise CheckpointError(
            f"{len(odd)} weights of the checkpoint to begin with do not fit the model, the first "
            f"is {odd[0]!r}: {was} there, {now} in the recipe; take the recipe it was trained with"
        )


def _text(tokens: Tokens) -> dict[str, Any]:
    """What a checkpoint remembers of a split."""
    return {
        "name": tokens.text,
        "split": tokens.split,
        "tokens": tokens.count,
        "bytes": tokens.bytes,
        "digest": tokens.digest,
        "text_digest": tokens.text_digest,
        "tokenizer": tokens.tokenizer.fingerprint,
    }


def _place(tokens: Tokens) -> Path:
    """The directory that holds both splits."""
    return tokens.shards[0].path.absolute().parent.parent


def _check_resumable(resume: Checkpoint, origin: Mapping[str, str], recipe: Recipe) -> None:
    if resume.state is None:
        raise CheckpointError("the checkpoint holds no optimizer state, so it cannot be resumed")
    if origin["recipe"] != resume.origin.get("recipe"):
        check_same_run(of_checkpoint(resume), recipe)
    for key, value in origin.items():
        before = resume.origin.get(key)
        if key != "recipe" and before != value:
            what = {"tokens": "text", "documents": "text"}.get(key, key)
            raise TrainError(
                f"the checkpoint was trained with another {what} ({key} {before}, now {value}); "
                f"resume with the same, or {_ANEW}"
            )


_ANEW = "begin a new run with its weights: --init and another --out"

# What a resumed run may change: when it says, measures and saves something, how it computes the
# same numbers, and what is done with the model afterwards.
_FREE = (
    *("name", "about", "tokenizer", "quantize", "pack", "score", "adapt", "ngram"),
    *(f"train.{name}" for name in ("save_every", "keep", "log_every", "validate_every")),
    *(f"train.{name}" for name in ("validate_first", "kurtosis", "recompute", "compile")),
)


def check_same_run(before: Recipe, now: Recipe) -> None:
    """Refuse to resume with a recipe that would give another result.

    Raises:
        TrainError: naming what differs, with both values.
    """
    if odd := differences(before, now):
        most = 4
        named = [f"{path} {_short(was)}, now {_short(new)}" for path, was, new in odd[:most]]
        more = f" and {len(odd) - most} more" if len(odd) > most else ""
        raise TrainError(
            f"the checkpoint was trained with another recipe: {'; '.join(named)}{more}; "
            f"leave these out to go on as it was begun, or {_ANEW}"
        )


def differences(before: Recipe, now: Recipe) -> list[tuple[str, Any, Any]]:
    """What differs between the recipes of a run and makes it another one: path and both values.

    The length does not if schedules reach equally far, nor does what leaves the result as it is.
    """
    free = [*_FREE, *(("train.length", "train.horizon") if _reach(before) == _reach(now) else ())]
    within = tuple(f"{name}{end}" for name in free for end in (".", "["))
    odd = spec_differences(before, now)
    return [one for one in odd if one[0] not in free and not one[0].startswith(within)]


def _reach(recipe: Recipe) -> Steps | Seconds:
    """How far the schedules of a run reach."""
    length = recipe.train.length
    return (
        Steps(count=recipe.train.horizon or length.count) if isinstance(length, Steps) else length
    )


def _short(value: Any) -> str:
    return "(none)" if value is None else f"{value}"


def is_finished(checkpoint: Checkpoint, recipe: Recipe) -> bool:
    """Whether a run has come to its end, so that resuming with ``recipe`` would do nothing."""
    length = recipe.train.length
    if isinstance(length, Steps):
        reached = checkpoint.step >= length.count
    else:
        reached = float(checkpoint.about.get("seconds", 0.0)) >= length.count
    ended = checkpoint.about.get("finished") is True  # by rules, or with the text
    return reached or (ended and length == of_checkpoint(checkpoint).train.length)


def _rules_of(resume: Checkpoint) -> Rules | None:
    held = resume.about.get("rules")
    return find(str(held.get("name"))) if isinstance(held, dict) else None


def _rewind(metrics: Path, step: int) -> None:
    """Drop the lines of steps that will be taken again, and a line cut short by a kill."""
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_bytes().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + b"\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    write_file(metrics, b"".join(kept) if step else b"")


def _validation(recipe: Recipe, held_out: Tokens) -> Validate:
    context, count = recipe.model.context, recipe.train.validate_tokens
    sizes = load(held_out.tokenizer).sizes
    return lambda model: validate(model, in_order(held_out, context, count, rest=True), sizes)
