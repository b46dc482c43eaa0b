"""Artifacts and their scores to the folder that a contest takes: one script, metadata, logs.

Every number in the folder is computed from the files that are given, none is typed. What comes out
is checked like any other submission before it is put in its place.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import segpt
from segpt.artifact import container
from segpt.atomic import new_directory
from segpt.config.base import canonical, encode, fingerprint, nearest
from segpt.config.model import ModelSpec
from segpt.config.parameter_golf import BYTES
from segpt.config.recipe import Recipe, read_recipe
from segpt.errors import CheckError, SegptError, SpecError
from segpt.stages.checkpoint_io import read_checkpoint
from segpt.stages.resolve_spec import of_checkpoint, quant_spec
from segpt.stages.run_directory import checkpoints
from segpt.values import Quantized

from . import bundle
from .folder_texts import LICENCE, MODEL, About, Metadata, metadata, page, requirements
from .read_folder import check_folder
from .scored_artifacts import ScoredArtifact, scored_artifacts
from .submission import ScriptPlan, lines
from .submission_folder import METADATA, NEEDS, PAGE, SCRIPT

CONTESTS = ("parameter-golf",)
ENTRIES = ("segpt.contest.submission:run", "segpt.contest.submission:read_plan")
_MAIN = """import sys
from pathlib import Path
from segpt.contest.submission import read_plan,run
PLAN={plan!r}
def say(text):print(text,flush=True)
if __name__=='__main__':sys.exit(run(Path(__file__).resolve(),read_plan(PLAN),sys.argv[1:],say))
"""
_HEADER = """# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the segpt authors. The licence is in LICENSE.
# python train_gpt.py [TEXT...] evaluates; python train_gpt.py train [OUT [DATA]] trains.
"""


class Exported(NamedTuple):
    """What was written, in bytes, and the mean over the seeds that it claims."""

    out: Path
    bpb: float
    bytes: int
    code: int
    seeds: tuple[int, ...]

    def plain(self) -> dict[str, Any]:
        """The same as JSON values."""
        return self._asdict() | {"out": str(self.out), "seeds": list(self.seeds)}


def export(
    artifacts: Sequence[Path],
    out: Path,
    scores: Sequence[Path],
    logs: Sequence[Path] = (),
    *,
    contest: str,
    about: About,
    recipe: str | None = None,
) -> Exported:
    """Write a submission folder; its script evaluates the first artifact, and trains it anew.

    Args:
        artifacts: the artifact of each seed, all of one recipe.
        out: the folder to write, which must not exist.
        scores: what ``segpt score --out`` wrote about them, one for each.
        logs: logs of their training.
        contest: one of :data:`CONTESTS`.
        about: who submits what, and when.
        recipe: a shipped recipe or a file; that of the run beside the first artifact if None.

    Raises:
        CheckError: if code and model take more bytes than the contest allows, or the folder would
            contradict itself; nothing is written then.
        SegptError: if a file cannot be read, or the files do not belong together.
    """
    if contest not in CONTESTS:
        raise SpecError(f"unknown contest {contest!r}; {nearest(contest, CONTESTS)}")
    if out.exists():
        raise SegptError(f"{out} exists; choose another --out")
    runs = scored_artifacts(artifacts, scores)
    model = container.unpack(runs[0].artifact)
    if model.tokenizer.kind in ("bpe", "byte_fallback"):
        raise SegptError(
            f"{artifacts[0]}: its tokenizer is a byte-pair encoding of others, which needs the "
            "tokenizers package; a script of this contest stands alone: train with one of "
            "`segpt tokenizer train`"
        )
    chosen = _recipe(recipe, artifacts[0], model)
    script, modules = _script(runs[0], model.spec, chosen)
    largest = max(run.artifact.size for run in runs) + len(script)
    if largest > BYTES:
        raise CheckError(
            f"nothing was written: {len(script):,} bytes of code and "
            f"{largest - len(script):,} of the model are {largest - BYTES:,} over the "
            f"{BYTES:,} of {contest}; pack to a smaller --budget"
        )
    claims = metadata(runs, len(script), about)
    with new_directory(out) as place:
        _write(place, runs, script, claims, logs, modules)
        if wrong := check_folder(place):
            what = "; ".join(f"{c.file}: {c.text}" for c in wrong)
            raise CheckError(f"nothing was written: the folder would contradict itself: {what}")
    seeds = tuple(run.seed for run in runs)
    return Exported(out, claims.val_bpb, largest, len(script), seeds)


def _script(
    first: ScoredArtifact, model: ModelSpec, recipe: Recipe
) -> tuple[bytes, dict[str, str]]:
    """The script that evaluates an artifact and trains it anew, and the modules that it carries."""
    reading, environment = first.reading, first.score.conditions.environment
    plan = ScriptPlan(
        artifact=MODEL,
        digest=first.artifact.digest,
        score=reading,
        recipe=recipe,
        quantize=quant_spec(recipe),
        text=first.score.text,
        device=environment.device or "auto",
        threads=environment.threads,
        truncate=None,
    )
    kinds = sorted({*_kinds(model), *_kinds(recipe), *_kinds(reading)})
    main = _MAIN.format(plan=canonical(plan).decode())
    modules = bundle.sources(Path(segpt.__file__).parent, ENTRIES, kinds, main)
    return bundle.pack(modules, _HEADER, main), modules


def _write(
    place: Path,
    runs: Sequence[ScoredArtifact],
    script: bytes,
    about: Metadata,
    logs: Sequence[Path],
    modules: Mapping[str, str],
) -> None:
    texts = {
        METADATA: json.dumps(encode(about), indent=2, ensure_ascii=False) + "\n",
        PAGE: page(runs, about),
        NEEDS: "\n".join(requirements(modules, runs[0].artifact)) + "\n",
        "LICENSE": LICENCE,
    }
    for run in runs:
        logged = lines(run.score, seed=run.seed, model=run.artifact.size, code=len(script))
        texts[f"logs/eval_seed{run.seed}.log"] = "\n".join(logged) + "\n"
    (place / SCRIPT).write_bytes(script)
    (place / MODEL).write_bytes(runs[0].artifact.data)
    (place / "logs").mkdir()
    for name, text in texts.items():
        (place / name).write_text(text, encoding="utf-8")
    for log in logs:
        target = place / "logs" / log.name
        if target.exists():
            raise SegptError(f"two logs are called {log.name}; rename one of them")
        try:
            target.write_bytes(log.read_bytes())
        except OSError as error:
            raise SegptError(f"cannot read {log}: {error.strerror}") from None


def _recipe(named: str | None, artifact: Path, model: Quantized) -> Recipe:
    """The recipe that the artifact was trained with, which its origin must confirm."""
    wanted = model.origin.get("recipe")
    if named is not None:
        chosen = read_recipe(named)
        if (seed := model.origin.get("seed", "")).isdecimal():
            train = dataclasses.replace(chosen.train, seed=int(seed))
            chosen = dataclasses.replace(chosen, train=train)
    elif beside := checkpoints(artifact.with_suffix("")) or checkpoints(artifact.parent):
        chosen = of_checkpoint(read_checkpoint(beside[-1]))
    else:
        raise SegptError(
            f"no checkpoint lies beside {artifact}, so its recipe is not known; name it with "
            "--recipe"
        )
    if wanted is not None and fingerprint(chosen) != wanted:
        raise SegptError(
            f"recipe {chosen.name!r} has the fingerprint {fingerprint(chosen)}, and the artifact "
            f"was trained with {wanted}; name the one it was trained with by --recipe"
        )
    return chosen


def _kinds(value: Any) -> Iterator[str]:
    """The classes of all specs within a value."""
    if dataclasses.is_dataclass(value):
        yield f"{type(value).__module__}:{type(value).__name__}"
        for field in dataclasses.fields(value):
            yield from _kinds(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _kinds(inner)
    elif isinstance(value, Mapping):
        yield from _kinds(tuple(value.values()))
