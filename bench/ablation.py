"""``python -m bench.ablation [TEXT...]``: what each change of a recipe learns per token and second.

Every change is trained with the seeds of the base, on the same blocks of the same text, and
compared with the base of its seed. A run may be lucky, and the luck of the base would stand in
every row: changes ``of: control``, which change next to nothing, count as the base too. Each run is
written as soon as it ends, so that an interrupted campaign goes on where it stopped. Held-out text
is measured once, at the end of each run; nothing is chosen by it.
"""

import bisect
import dataclasses
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import click
import torch
import yaml

from segpt.atomic import write_file
from segpt.config.base import decode, fingerprint, spec
from segpt.config.layout import parameters
from segpt.config.recipe import Recipe, read_recipe
from segpt.config.schedule import Steps
from segpt.config.train import TrainSpec
from segpt.data.batches import Blocks
from segpt.data.corpus import builtin
from segpt.data.text import read_text
from segpt.data.tokens import ids
from segpt.errors import DataError, SegptError, TrainError
from segpt.stages import prepare
from segpt.stages.train import Observer, train
from segpt.train.loop import StepMetrics
from segpt.train.mesh import join
from segpt.train.trainer import Trainer, sequences
from segpt.values import Text, Tokens

from . import changes, facts
from .changes import BASE
from .page import placed
from .summary import round_figures

HERE = Path(__file__).parent
PLAN, RESULTS, RUNS = HERE / "ablation.yaml", HERE / "results", Path("runs")
PAGE = HERE.parent / "docs" / "ablation.md"

HELD_OUT = 0.05  # of the documents of a text that comes without a validation text
EXCERPT = 2**18  # bytes of such a validation text, in equal shares of its documents
BUILTIN = "builtin"
TRAINING = "builtin-train"  # its training documents alone, from which choices may be made
_STEPS = 2  # that the base takes at a time to be timed

WHAT = (
    "BPB on held-out text of small models, each trained with one change of a recipe, minus that "
    "of the recipe itself with the same seed and text: the mean of the base and of all controls, "
    "which change next to nothing. At equal tokens both learn from the same blocks. "
    "At equal seconds the recipe learns from as many tokens as it reads in the seconds of the "
    "changed run: complete runs of several lengths give the curve along which its BPB is moved. "
    "Seconds are processor time of one thread per training step; those of the recipe are "
    "measured in turns with those of the change, within the same run, and ratios are over the "
    "ratio that the recipe has to itself. Errors are standard errors over paired seeds."
)

Emit = Callable[[str], None]


@spec
class Change:
    """One row: settings of the recipe, as ``--set`` takes them, and what they are about."""

    name: str
    of: str
    set: tuple[str, ...]


@spec
class Plan:
    """What is compared: a recipe, seeds, lengths of the recipe's runs, and changes in order.

    ``lengths`` are multiples of the recipe's own length. Runs of them with the first seed give the
    curve of BPB over tokens by which times are compared. ``set`` are settings of all runs.
    """

    recipe: str
    seeds: tuple[int, ...]
    lengths: tuple[float, ...]
    changes: tuple[Change, ...]
    set: tuple[str, ...] = ()


class Subject(NamedTuple):
    """A text under the recipe's tokenizer."""

    name: str
    tokens: Tokens
    held_out: Tokens


class Wanted(NamedTuple):
    """A run that belongs to the comparison."""

    change: Change
    seed: int
    length: float
    recipe: Recipe


@click.command()
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--plan", default=PLAN, show_default=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="By default named as the plan.")
@click.option("--only", multiple=True, help="Only changes whose name starts so. May be repeated.")
@click.option("--merge", is_flag=True, help="TEXTS are results: combine them into --out.")
@click.option("--render", is_flag=True, help="Draw --out, and put its table into the docs.")
def main(
    texts: tuple[str, ...],
    plan: Path,
    out: Path | None,
    only: tuple[str, ...],
    merge: bool,
    render: bool,
) -> None:
    """Train what is missing in --out, on the TEXTS in turn.

    A TEXT is ``builtin``, which is all that is trained on without one, or ``builtin-train``, whose
    held-out text is from its training documents, or NAME=FILE, or NAME=FILE,VALIDATION, with files
    as `segpt data prepare` takes them.
    """
    torch.set_num_threads(1)
    out = out or RESULTS / f"{plan.stem}.json"
    try:
        if merge:
            _write(out, merged([_read(Path(text)) for text in texts]), plan)
        elif texts or not render:
            campaign(plan, texts or (BUILTIN,), out, only, _say)
        if render:
            show(_read(out), out.with_suffix(".png"))
    except SegptError as error:
        raise click.ClickException(str(error)) from error


def show(result: Mapping[str, Any], picture: Path, page: Path = PAGE) -> None:
    """Draw a result, and rewrite its section of a page of the docs."""
    changes.draw(result, picture)
    text = page.read_text(encoding="utf-8")
    section = changes.section(result, picture.name)
    write_file(page, placed(text, section, *marks(picture.stem)).encode())


def marks(name: str) -> tuple[str, str]:
    """Between which lines of a page the results of that name stand."""
    plan = PLAN if name == PLAN.stem else Path("bench", f"{name}.yaml")
    return f"<!-- {name}: {_command(plan)} --render -->", f"<!-- /{name} -->"


def _command(plan: Path) -> str:
    return "python -m bench.ablation" + ("" if plan == PLAN else f" --plan {plan}")


def read_plan(path: Path) -> Plan:
    """The plan of a YAML file.

    Raises:
        SpecError: naming what is wrong in it.
        DataError: if two changes have the same name.
    """
    plan = decode(Plan, yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
    names = [BASE, *(change.name for change in plan.changes)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: two changes are named {twice[0]!r}; give each its own name")
    return plan


def wanted(plan: Plan, place: Path, only: Sequence[str] = ()) -> Iterator[Wanted]:
    """All runs on one text, in order: the base, its other lengths, and change by change."""
    made = partial(changed, place / plan.recipe, always=plan.set)
    base = Change(name=BASE, of="", set=())
    for seed in plan.seeds:
        yield Wanted(base, seed, 1.0, made((), seed))
    for length in plan.lengths:
        if length != 1.0:
            yield Wanted(base, plan.seeds[0], length, made((), plan.seeds[0], length))
    for change in plan.changes:
        if not only or change.name.startswith(tuple(only)):
            for seed in plan.seeds:
                yield Wanted(change, seed, 1.0, made(change.set, seed))


def changed(
    source: Path,
    settings: Sequence[str],
    seed: int,
    length: float = 1.0,
    always: Sequence[str] = (),
) -> Recipe:
    """The recipe with settings and a seed, of as many steps as read the base's sequences.

    Args:
        source: the base recipe.
        settings: as ``--set`` takes them.
        seed: of weights and order.
        length: a multiple of what the base reads.
        always: settings of the base too.

    Raises:
        SpecError: if a setting is wrong.
        DataError: if the run cannot read as much as the base does, to one percent.
    """
    whole = sequences(read_recipe(source, always).train)
    recipe = read_recipe(source, [*always, *settings, f"train.seed={seed}"])
    if whole is None or not isinstance(recipe.train.length, Steps):
        raise DataError(f"{source}: runs that read the same tokens have a length in steps")
    target = round(length * whole)

    def lasting(steps: int) -> TrainSpec:
        return dataclasses.replace(recipe.train, length=Steps(count=steps))

    steps = 1 + bisect.bisect_left(
        range(1, target + 1), target, key=lambda n: sequences(lasting(n)) or 0
    )
    best = min((max(1, steps - 1), steps), key=lambda n: abs((sequences(lasting(n)) or 0) - target))
    if abs((sequences(lasting(best)) or 0) - target) > 0.01 * target:
        raise DataError(f"no run with {' '.join(settings)} reads about {target:,} sequences")
    return dataclasses.replace(recipe, train=lasting(best))


def campaign(
    path: Path,
    texts: Sequence[str],
    out: Path,
    only: Sequence[str] = (),
    emit: Emit = lambda _: None,
) -> None:
    """Add the runs of the plan at ``path`` that are missing to ``out``, one by one.

    Raises:
        DataError: if what is there was measured on another recipe or text.
    """
    plan, place = read_plan(path), path.parent
    base, commit = read_recipe(place / plan.recipe, plan.set), facts.commit()
    result: dict[str, Any] = _read(out) if out.exists() else _empty(base)
    if result["base"]["fingerprint"] != fingerprint(base):
        raise DataError(f"{out} compares with another base recipe; choose another --out")
    for text in texts:
        subject = opened(text, base)
        _check_same(result, subject, out)
        for run in wanted(plan, place, only):
            key = (subject.name, run.change.name, run.seed, run.length)
            found = [r for r in result["runs"] if _key(r) == key]
            if any(r["fingerprint"] == fingerprint(run.recipe) for r in found):
                continue
            about = {"of": run.change.of, "set": list(run.change.set)}
            line = dict(zip(("text", "change", "seed", "length"), key, strict=True))
            line |= measured(run.recipe, subject, base) | {"commit": commit}
            result["changes"][run.change.name] = about
            result["runs"] = [r for r in result["runs"] if _key(r) != key] + [line]
            _write(out, result, path)
            what = "failed" if line["bpb"] is None else f"{line['bpb']:.5f} BPB"
            emit(f"{key}: {what}, {line['seconds']:.0f} s, time {line['time']}\n")


def measured(recipe: Recipe, subject: Subject, base: Recipe) -> dict[str, Any]:
    """One run: held-out bits per byte, and the time of a token over that of the base."""
    mesh = join("cpu")
    pace = Pace(
        Trainer(base.model, base.train, mesh), Blocks(ids(subject.tokens), base.model.context, 0)
    )
    watch, failed = _Watch(pace), None
    started = time.process_time()
    with tempfile.TemporaryDirectory() as place:
        try:
            train(recipe, subject.tokens, subject.held_out, Path(place), mesh, observer=watch)
        except TrainError as error:  # a loss that is not finite is a result too
            failed = str(error)
    end = watch.last if failed is None else None
    line = {
        "steps": end.step if end else None,
        "tokens": end.tokens if end else None,
        "bpb": end.validation_bpb if end else None,
        "nats": end.validation_loss if end else None,
        "train_nats": end.loss if end else None,
        "parameters": parameters(recipe.model),
        "time": pace.ratio,
        "seconds": time.process_time() - started,
        "fingerprint": fingerprint(recipe),
    }
    return dict(round_figures(line)) | ({"failed": failed} if failed else {})


class _Watch(Observer):
    """Keeps the last metrics of a run, and shows all of them to its pace."""

    def __init__(self, pace: "Pace") -> None:
        self.pace = pace
        self.last: StepMetrics | None = None

    def step(self, metrics: StepMetrics) -> None:
        self.last = metrics
        self.pace(metrics)


class Pace:
    """Compares the time of a run's tokens with that of the base's, which trains in turns with it.

    At each report of the run the base takes two steps. Time is that of the processor, so that
    other processes of the machine take as little part in it as can be.
    """

    def __init__(self, base: Trainer, blocks: Blocks) -> None:
        """Let the base take its first steps, which are slower than others."""
        self.base, self.batch = base, blocks.take(0, base.size)
        self.tokens, self.began = 0, 0.0
        self.theirs: list[float] = []  # seconds per token between reports
        self.ours: list[float] = []  # seconds per token of the base's steps before and after
        self._advance()

    def __call__(self, report: StepMetrics) -> None:
        """Take in a report of the run."""
        now = time.process_time()
        if self.ours:
            self.theirs.append((now - self.began) / (report.tokens - self.tokens))
        self._advance()
        done = time.process_time()
        self.ours.append((done - now) / (_STEPS * self.batch[:, 1:].size))
        self.tokens, self.began = report.tokens, done

    def _advance(self) -> None:
        with torch.random.fork_rng(devices=[]):  # whatever the run draws stays the same
            for _ in range(_STEPS):
                self.base.train_step(self.batch)

    @property
    def ratio(self) -> float | None:
        """Time of a token over that of the base: a mean over the run, without a tenth at each end.

        The last interval holds validation and saving, and is left out.
        """
        theirs, ours = self.theirs[:-1], self.ours
        both = zip(theirs, itertools.pairwise(ours), strict=False)
        found = sorted(t / (0.5 * (before + after)) for t, (before, after) in both)
        cut = len(found) // 10
        return fmean(found[cut : len(found) - cut]) if found else None


def opened(argument: str, recipe: Recipe) -> Subject:
    """The text that an argument names, prepared unless it is there already.

    Raises:
        DataError: if it cannot be read.
    """
    name, equals, paths = argument.partition("=")
    place = RUNS / "data" / f"{name}-{recipe.model.vocab}"
    if bool(equals) == (name in (BUILTIN, TRAINING)):
        raise DataError(
            f"{argument}: a text is {BUILTIN}, {TRAINING}, or NAME=FILE or NAME=FILE,VALIDATION "
            "under another name"
        )
    if name == BUILTIN:
        return Subject(name, *prepare.builtin_splits(recipe.tokenizer, place, lambda *_: None))
    if place.is_dir():
        return Subject(name, *prepare.open_splits(place))
    files = paths.split(",")
    texts = [read_text([Path(path)]) for path in files] if equals else [builtin("train")]
    text, *others = texts
    held_out = others[0] if others else None
    if held_out is None:
        text, held_out = prepare.hold_out(text, HELD_OUT)
    tokenizer = prepare.make_tokenizer(recipe.tokenizer, text)
    return Subject(name, *prepare.prepare(text, excerpts(held_out, EXCERPT), tokenizer, place))


def excerpts(text: Text, most: int) -> Text:
    """The beginnings of all documents, in whole lines, that have ``most`` bytes together."""
    share = max(1, most // max(1, sum(1 for _ in text)))

    def read() -> Iterator[bytes]:
        for document in text:
            head, newline, _ = document[: share + 1].rpartition(b"\n")
            yield document if len(document) <= share else head + newline or document[:share]

    return Text(f"{text.name}, the beginnings", read)


def merged(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One result with the runs of several; the later ones replace the same runs of earlier ones.

    Raises:
        DataError: if there is none, or they compare with different recipes or texts.
    """
    if not results:
        raise DataError("nothing to merge; give the results of other campaigns")
    first = results[0]
    whole = first | {"texts": {}, "changes": {}}
    runs: dict[tuple[Any, ...], dict[str, Any]] = {}
    for result in results:
        if result["base"] != first["base"]:
            raise DataError("the results compare with different base recipes; keep them apart")
        for name, text in result["texts"].items():
            if whole["texts"].setdefault(name, text) != text:
                raise DataError(f"the text {name} is not the same in all results")
        whole["changes"] |= result["changes"]
        runs |= {_key(run): run for run in result["runs"]}
    return whole | {"runs": list(runs.values())}


def _key(run: Mapping[str, Any]) -> tuple[str, str, int, float]:
    return run["text"], run["change"], run["seed"], run["length"]


def _check_same(result: dict[str, Any], subject: Subject, out: Path) -> None:
    held_out = subject.held_out
    about = {
        "train": {"digest": subject.tokens.digest, "tokens": subject.tokens.count},
        "validation": {
            "digest": held_out.digest,
            "tokens": held_out.count,
            "bytes": held_out.bytes,
            "documents": len(held_out.documents),
        },
    }
    if result["texts"].setdefault(subject.name, about) != about:
        raise DataError(f"{out} was measured on another text {subject.name}; choose another --out")


def _empty(base: Recipe) -> dict[str, Any]:
    how = base.train
    about = {
        "fingerprint": fingerprint(base),
        "parameters": parameters(base.model),
        "context": base.model.context,
        "vocab": base.model.vocab,
        "batch": how.batch,
        "tokens": (sequences(how) or 0) * base.model.context,
        "validation_tokens": how.validate_tokens,
    }
    return {"base": about, "texts": {}, "changes": {}, "runs": []}


def _write(path: Path, result: Mapping[str, Any], plan: Path) -> None:
    """Write a result of a plan with what it says, one run on each line."""
    whole = {
        "what": WHAT,
        "command": f"{_command(plan)} TEXT...",
        "date": date.today().isoformat(),
        **facts.device(),
        "versions": facts.versions(),
        "base": result["base"],
        "texts": result["texts"],
        "summary": changes.concluded(result),
        "changes": result["changes"],
    }
    head = json.dumps(whole, indent=1, ensure_ascii=False).removesuffix("\n}")
    lines = ",\n".join("  " + json.dumps(run, ensure_ascii=False) for run in result["runs"])
    write_file(path, f'{head},\n "runs": [\n{lines}\n ]\n}}\n'.encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: found[key] for key in ("base", "texts", "changes", "runs")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read results from {path}: {error}") from error


def _say(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
