"""A run folder to the page that shows what came of it.

Every part of a run is optional: what is not there yet is left out, and the page says which
command adds it. What is there but cannot be read is an error that names the file.
"""

import dataclasses
import itertools
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from segpt.artifact import container
from segpt.artifact.reader import open_artifact
from segpt.atomic import write_file
from segpt.config.base import decode
from segpt.config.environment import Environment
from segpt.config.recipe import Recipe
from segpt.config.run_about import RunAbout
from segpt.errors import ArtifactError, SegptError
from segpt.stages import checkpoint_io, json_files, quantized_io, run_directory
from segpt.stages.checkpoint_io import CheckpointHeader
from segpt.stages.quantized_io import QuantizedHeader
from segpt.values import Artifact

from . import load_run
from .contents import Report, ReportedScore, Training
from .load_run import count, sound, text
from .page import page

DEMO, SAMPLES = "demo.json", "samples.json"
SCORE, SCORE_TTT = "score.json", "score-ttt.json"
QUANTIZED, ARTIFACT, PAGE = "quantized", "model.segpt", "report.html"

_MOST_SCORES = 8
_LONGEST_RECIPE = 40_000
_PLURALS = {"process": "processes", "thread": "threads"}


@dataclass(frozen=True)
class _Run:
    """What lies in a run folder or beside it, read but not yet looked into.

    Headers, artifact and curves are None where there are none; ``quantized_at`` and
    ``artifact_at`` are then where they would be.
    """

    place: Path
    checkpoint_at: Path
    checkpoint: CheckpointHeader | None
    quantized_at: Path
    quantized: QuantizedHeader | None
    artifact_at: Path
    artifact: Artifact | None
    scores: tuple[tuple[ReportedScore, Mapping[str, object]], ...]
    curves: Training | None

    @property
    def empty(self) -> bool:
        parts = (self.checkpoint, self.quantized, self.artifact, self.curves)
        return all(part is None for part in parts) and not self.scores

    @property
    def about(self) -> RunAbout:
        return RunAbout() if self.checkpoint is None else self.checkpoint.about

    @property
    def origins(self) -> Iterator[Mapping[str, object]]:
        """The fingerprints that each value names, those of later stages later."""
        for header in (self.checkpoint, self.quantized):
            if header is not None:
                yield header.origin
        if self.artifact is not None:
            yield _origin(self.artifact) | {"artifact": self.artifact.digest}
        yield from (origin for _, origin in self.scores)


def gather(run: Path) -> Report:
    """What is known of a run, from what lies in its folder.

    A quantized model and an artifact are also looked for beside it, where `segpt quantize` and
    `segpt pack` put them, and taken from there if they were made from its newest checkpoint.

    Raises:
        SegptError: if there is no run, or a file of it cannot be read.
    """
    files = _read(Path(run))
    rows, took = load_run.demo(files.place / DEMO)
    samples, drawn = load_run.samples(files.place / SAMPLES)
    with sound(files.checkpoint_at / "header.json"):
        table = files.about.recipe
        recipe = None if table is None else decode(Recipe, table, "$.about.recipe")
        training = load_run.training(files.checkpoint, recipe, files.curves)
        trained_on = tuple(_trained_on(files.about.environment))
    budget = None if recipe is None else recipe.pack.budget
    with sound(files.quantized_at / "header.json"):
        quantization = None
        if files.quantized is not None and (coded := files.quantized.report) is not None:
            quantization = load_run.quantization(coded)
            budget = budget if coded.budget is None else coded.budget
        budget = None if budget is None else count(budget)
    packed = None
    if files.artifact is not None:
        packed = load_run.packed(files.artifact_at, files.artifact, budget)
    with sound(files.place):
        lineage, notices = tuple(_lineage(files)), tuple(_notices(files, training))
    report = Report(
        name=text(files.place.resolve().name),
        about="" if recipe is None else text(recipe.about),
        training=training,
        quantization=quantization,
        packed=packed,
        scores=tuple(score for score, _ in files.scores),
        rows=rows,
        samples=samples,
        sampled=drawn,
        environment=(*trained_on, *_scored_on(files), *took),
        lineage=lineage,
        recipe=_readable(files.about.recipe),
        notices=notices,
    )
    return dataclasses.replace(report, missing=_missing(files, report))


def write(report: Report, out: Path) -> int:
    """Write the page, and return its size in bytes.

    Raises:
        SegptError: if the disk refuses, or the page would be too large.
    """
    data = page(report)
    write_file(out, data)
    return len(data)


def is_page(path: Path) -> bool:
    """Whether a file is a page that :func:`write` wrote."""
    with path.open("rb") as file:
        return b": a run of segpt</title>" in file.read(4096)


def _read(run: Path) -> _Run:
    if not run.is_dir():
        raise SegptError(f"{run} is no run folder; `segpt train --out {run}` makes one")
    saved = run_directory.checkpoints(run)
    header = checkpoint_io.read_checkpoint_header(saved[-1]) if saved else None
    newest = None if header is None else header.fingerprint
    quantized_at, quantized = _quantized(run, newest)
    artifact_at, artifact = _artifact(run, newest)
    metrics = run / run_directory.METRICS
    files = _Run(
        place=run,
        checkpoint_at=saved[-1] if saved else run,
        checkpoint=header,
        quantized_at=quantized_at,
        quantized=quantized,
        artifact_at=artifact_at,
        artifact=artifact,
        scores=tuple(_scores(run)),
        curves=load_run.logged(metrics) if metrics.exists() else None,
    )
    if files.empty:
        raise SegptError(
            f"{run} holds nothing of a run; name a folder that `segpt train` or `segpt demo` wrote"
        )
    return files


def _quantized(run: Path, newest: str | None) -> tuple[Path, QuantizedHeader | None]:
    inside, beside = run / QUANTIZED, run.with_name(f"{run.name}-quantized")
    if inside.exists():
        return inside, quantized_io.read_quantized_header(inside)
    if newest is not None and (beside / "header.json").is_file():
        header = quantized_io.read_quantized_header(beside)
        if header.origin.get("checkpoint") == newest:
            return beside, header
    return inside, None


def _artifact(run: Path, newest: str | None) -> tuple[Path, Artifact | None]:
    usual, beside = run / ARTIFACT, run.with_name(f"{run.name}.segpt")
    others = sorted(run.glob("*.segpt")) if newest is not None else []
    for path in (usual, *others):
        if path.is_file():
            return path, _load(path)
    if newest is not None and beside.is_file():
        artifact = _load(beside)
        if _origin(artifact).get("checkpoint") == newest:
            return beside, artifact
    return usual, None


def _load(path: Path) -> Artifact:
    artifact = container.load(path)
    try:
        open_artifact(artifact)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    return artifact


def _scores(run: Path) -> list[tuple[ReportedScore, Mapping[str, object]]]:
    """The scores of the folder, that which learns nothing first, each with its origin."""
    scores: list[tuple[ReportedScore, Mapping[str, object]]] = []
    for path in sorted(run.glob("*.json")):
        if path.name in (DEMO, SAMPLES):
            continue
        plain = json_files.read_json(path, "the score")
        if isinstance(plain, dict) and {"bpb", "policy", "conditions"} <= plain.keys():
            with sound(path):
                scores.append((load_run.scored(path.name, plain), dict(plain["origin"])))
    usual = (SCORE, SCORE_TTT)
    scores.sort(key=lambda scored: (scored[0].adapts, scored[0].file not in usual, scored[0].file))
    return scores[:_MOST_SCORES]


def _trained_on(environment: Environment) -> Iterator[tuple[str, str]]:
    if environment.device is not None:
        counts = {"process": environment.processes, "thread": environment.threads}
        known = [
            f"{count(number)} {unit if number == 1 else _PLURALS[unit]}"
            for unit, number in counts.items()
            if number is not None
        ]
        yield "trained on", ", ".join([text(environment.device), *known])
    if environment.versions is not None:
        yield "trained with", load_run.versions(environment.versions)
    if environment.commit:
        yield "commit of segpt", text(environment.commit)


def _scored_on(files: _Run) -> Iterator[tuple[str, str]]:
    for score, _ in files.scores:
        conditions = dict(score.conditions)
        threads = [f"{conditions['threads']} threads"] if "threads" in conditions else []
        known = [conditions["device"]] if "device" in conditions else []
        if where := ", ".join([*known, *threads, *filter(None, [conditions.get("versions")])]):
            yield f"{score.file} made on", where


def _lineage(files: _Run) -> Iterator[tuple[str, str]]:
    known: dict[str, object] = {}
    for origin in files.origins:
        known |= origin
    if files.checkpoint is not None:
        known["checkpoint"] = files.checkpoint.fingerprint
        if files.about.text is not None and files.about.text.training.digest is not None:
            known["training text"] = files.about.text.training.digest
    for name, value in itertools.islice(sorted(known.items()), load_run.MOST_ROWS):
        yield text(name), load_run.said(value)


def _notices(files: _Run, training: Training | None) -> Iterator[str]:
    """What does not fit together, and what the curves leave out."""
    if training is not None and training.unfit:
        yield (
            f"{training.unfit:,} logged lines hold figures that are no finite numbers; the curves "
            "have gaps there."
        )
    if training is not None and training.repeated:
        yield f"{training.repeated:,} logged steps were taken again; the last of each are shown."
    if files.checkpoint is not None:
        newest = files.checkpoint.fingerprint
        made: dict[str, object] = {}
        if files.quantized is not None:
            made["quantized model"] = files.quantized.origin.get("checkpoint")
        if files.artifact is not None:
            made["packed file"] = _origin(files.artifact).get("checkpoint")
        for what, source in made.items():
            if source not in (None, newest):
                yield (
                    f"The {what} was made from checkpoint {text(source)}, and the newest of the "
                    f"run is {text(newest)}: what is said of it is about another model."
                )
    for score, origin in files.scores:
        named = origin.get("artifact")
        if files.artifact is not None and named not in (None, files.artifact.digest):
            yield f"{score.file} is the score of another packed file than the one shown here."


def _missing(files: _Run, report: Report) -> dict[str, str]:
    """The parts that a run lacks, with the commands that add them."""
    names = (QUANTIZED, ARTIFACT, SCORE, SCORE_TTT, SAMPLES)
    run, quantized, *outs = map(_quoted, (files.place, *(files.place / name for name in names)))
    artifact, score, score_ttt, samples = outs
    source, model = _quoted(files.quantized_at), _quoted(files.artifact_at)
    commands = {
        "training": (report.training, f"segpt train --out {run}"),
        "quantization": (report.quantization, f"segpt quantize {run} --out {quantized}"),
        "bytes": (report.packed, f"segpt pack {source} --out {artifact}"),
        "score": (report.plain, f"segpt score {model} --out {score}"),
        "ttt": (report.adapted, f"segpt score {model} --ttt --out {score_ttt}"),
        "samples": (report.samples, f"segpt sample {model} 'The ' --json > {samples}"),
    }
    return {part: line for part, (known, line) in commands.items() if not known}


def _readable(recipe: Mapping[str, Any] | None) -> str:
    lines = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True) if recipe else ""
    return lines[:_LONGEST_RECIPE]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _origin(artifact: Artifact) -> dict[str, str]:
    return dict(open_artifact(artifact).header.origin)
