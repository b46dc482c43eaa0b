"""Artifacts and their scores to the folder that a contest takes: one script, metadata, logs.

Every number in the folder is computed from the files that are given, none is typed. What comes out
is checked like any other submission before it is put in its place.
"""

import dataclasses
import importlib.metadata
import json
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import segpt
from segpt.artifact import container
from segpt.atomic import new_directory
from segpt.config.base import canonical, decode, encode, fingerprint, nearest
from segpt.config.parameter_golf import BYTES
from segpt.config.recipe import Recipe, read_recipe
from segpt.config.score import ScoreSpec
from segpt.errors import CheckError, SegptError, SpecError
from segpt.leaderboard.render import inert
from segpt.stages import checkpoint_io, json_files, run_directory
from segpt.stages.resolve_spec import of_checkpoint, quant_spec
from segpt.values import Artifact, Quantized, Score

from . import bundle, imports
from .read_folder import check_folder
from .submission import lines
from .submission_folder import METADATA, NEEDS, PAGE, SCRIPT

CONTESTS = ("parameter-golf",)
MODEL = "model.segpt"
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
LICENCE = """MIT License

Copyright (c) 2026 the segpt authors

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
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


class _Run(NamedTuple):
    """The artifact of one seed, and its score."""

    seed: int
    artifact: Artifact
    score: Score
    source: Path


def export(
    artifacts: Sequence[Path],
    out: Path,
    scores: Sequence[Path],
    logs: Sequence[Path] = (),
    *,
    contest: str,
    author: str,
    name: str,
    date: str,
    github: str = "",
    recipe: str | None = None,
) -> Exported:
    """Write a submission folder; its script evaluates the first artifact, and trains it anew.

    Args:
        artifacts: the artifact of each seed, all of one recipe.
        out: the folder to write, which must not exist.
        scores: what ``segpt score --out`` wrote about them, one for each.
        logs: logs of their training.
        contest: one of :data:`CONTESTS`.
        author: who submits.
        name: what is submitted.
        date: the day, as YYYY-MM-DD.
        github: the author's identifier there.
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
    runs = _runs(artifacts, scores)
    first = runs[0]
    model = container.unpack(first.artifact)
    chosen = _recipe(recipe, artifacts[0], model)
    reading = _reading(first.score)
    plan = {
        "artifact": MODEL,
        "digest": first.artifact.digest,
        "score": encode(reading),
        "recipe": encode(chosen),
        "quantize": encode(quant_spec(chosen)),
        "text": first.score.text,
        "device": first.score.conditions.get("device", "auto"),
        "threads": first.score.conditions.get("threads"),
        "truncate": None,
    }
    found = sorted({*_kinds(model.spec), *_kinds(chosen), *_kinds(reading)})
    main = _MAIN.format(plan=canonical(plan).decode())
    modules = bundle.sources(Path(segpt.__file__).parent, ENTRIES, found, main)
    script = bundle.pack(modules, _HEADER, main)
    largest = max(run.artifact.size for run in runs) + len(script)
    if largest > BYTES:
        raise CheckError(
            f"nothing was written: {len(script):,} bytes of code and "
            f"{largest - len(script):,} of the model are {largest - BYTES:,} over the "
            f"{BYTES:,} of {contest}; pack to a smaller --budget"
        )
    about = _metadata(runs, len(script), author=author, github=github, name=name, date=date)
    with new_directory(out) as place:
        _write(place, runs, script, about, logs, modules)
        if wrong := check_folder(place):
            told = "; ".join(f"{one.file}: {one.text}" for one in wrong)
            raise CheckError(f"nothing was written: the folder would contradict itself: {told}")
    seeds = tuple(run.seed for run in runs)
    return Exported(out, float(about["val_bpb"]), largest, len(script), seeds)


def _write(
    place: Path,
    runs: Sequence[_Run],
    script: bytes,
    about: Mapping[str, Any],
    logs: Sequence[Path],
    modules: Mapping[str, str],
) -> None:
    texts = {
        METADATA: json.dumps(about, indent=2, ensure_ascii=False) + "\n",
        PAGE: _page(runs, about),
        NEEDS: "\n".join(_requirements(modules, runs[0].artifact)) + "\n",
        "LICENSE": LICENCE,
    }
    for run in runs:
        told = lines(run.score, seed=run.seed, model=run.artifact.size, code=len(script))
        texts[f"logs/eval_seed{run.seed}.log"] = "\n".join(told) + "\n"
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


def _runs(artifacts: Sequence[Path], scores: Sequence[Path]) -> list[_Run]:
    """Each artifact with the one score of it."""
    found: dict[str, tuple[Path, Score]] = {}
    for path in scores:
        table = json_files.read_json(path, "score")
        score, digest = _score(table, path)
        if digest in found:
            raise SegptError(f"{path} and {found[digest][0]} score the same artifact; give one")
        found[digest] = path, score
    runs = []
    for place, path in enumerate(artifacts):
        artifact = container.load(path)
        if artifact.digest not in found:
            raise SegptError(
                f"no score of {path}; make one with: segpt score {path} --out FILE, and name it "
                "with --score"
            )
        source, score = found.pop(artifact.digest)
        runs.append(_Run(place if score.seed is None else score.seed, artifact, score, source))
    if found:
        (source, _), *_ = found.values()
        raise SegptError(f"{source} is of none of these artifacts; leave it out")
    if len({run.seed for run in runs}) < len(runs):
        raise SegptError("two artifacts have the same seed; give one of each")
    one = runs[0].score
    for run in runs[1:]:
        same = run.score.origin.get("text") == one.origin.get("text")
        if not same or _reading(run.score) != _reading(one):
            raise SegptError(
                f"{run.source} and {runs[0].source} are of different texts or were read in "
                "different ways; score both alike"
            )
    return runs


def _score(table: Any, path: Path) -> tuple[Score, str]:
    names = {f.name for f in dataclasses.fields(Score)}
    try:
        given = {name: value for name, value in table.items() if name in names}
        return Score(**given), str(table["origin"]["artifact"])
    except (AttributeError, KeyError, TypeError):
        raise SegptError(
            f"{path}: not a score of an artifact; make one with: segpt score ARTIFACT --out FILE"
        ) from None


def _reading(score: Score) -> ScoreSpec:
    """How the score was made, from what it says about that."""
    table = dict(score.conditions)
    policy = dict(score.policy)
    ngram = policy.pop("ngram", None)
    given = {name: table[name] for name in ("mode", "boundaries", "batch", "context", "loops")}
    if table.get("stride") is not None:
        given["stride"] = table["stride"]
    return decode(ScoreSpec, given | {"policy": policy, "ngram": ngram}, "$.score")


def _recipe(named: str | None, artifact: Path, model: Quantized) -> Recipe:
    """The recipe that the artifact was trained with, which its origin must confirm."""
    wanted = model.origin.get("recipe")
    if named is not None:
        chosen = read_recipe(named)
        if (seed := model.origin.get("seed", "")).isdecimal():
            how = dataclasses.replace(chosen.train, seed=int(seed))
            chosen = dataclasses.replace(chosen, train=how)
    elif beside := run_directory.checkpoints(artifact.with_suffix("")) or run_directory.checkpoints(
        artifact.parent
    ):
        chosen = of_checkpoint(checkpoint_io.read_checkpoint(beside[-1]))
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


def _metadata(runs: Sequence[_Run], code: int, **about: str) -> dict[str, Any]:
    bpbs = [run.score.bpb for run in runs]
    losses = [run.score.nats_per_token for run in runs]
    results = {
        str(run.seed): {
            "val_loss": run.score.nats_per_token,
            "val_bpb": run.score.bpb,
            "bytes_total": run.artifact.size + code,
            "eval_time_s": round(run.score.seconds, 3),
        }
        for run in runs
    }
    spread = {}
    if len(runs) > 1:
        spread = {"val_loss_std": statistics.stdev(losses), "val_bpb_std": statistics.stdev(bpbs)}
    return {
        "author": about["author"],
        "github_id": about["github"],
        "name": about["name"],
        "date": about["date"],
        "val_loss": statistics.fmean(losses),
        "val_bpb": statistics.fmean(bpbs),
        **spread,
        "seeds": [run.seed for run in runs],
        "seed_results": results,
        "bytes_total": max(run.artifact.size for run in runs) + code,
        "bytes_code": code,
        "text": {"name": runs[0].score.text, "sha256": runs[0].score.origin.get("text")},
        "segpt": segpt.__version__,
    }


def _page(runs: Sequence[_Run], about: Mapping[str, Any]) -> str:
    score = runs[0].score
    rows = [
        f"| {run.seed} | {run.score.bpb:.8f} | {run.score.nats_per_token:.8f} | "
        f"{run.artifact.size + about['bytes_code']:,} | {run.score.seconds:.1f} s |"
        for run in runs
    ]
    if len(runs) > 1:
        rows.append(f"| Mean | {about['val_bpb']:.8f} | {about['val_loss']:.8f} | | |")
    conditions = [
        f"- {inert(key)}: {inert(str(state))}"
        for key, state in sorted(score.conditions.items())
        if isinstance(state, str | int | float) and state is not None
    ]
    parts = [
        f"# {inert(about['name'])}",
        f"val_bpb: {about['val_bpb']:.8f}, by {inert(about['author'])}, {about['date']}",
        f"{about['bytes_code']:,} bytes of code are `{SCRIPT}`, and the model is `{MODEL}`: "
        f"{about['bytes_total']:,} bytes together at most.",
        "\n".join(
            [
                "| Seed | val_bpb | val_loss (nats per token) | bytes_total | eval time |",
                "| ---: | ---: | ---: | ---: | ---: |",
                *rows,
            ]
        ),
        "The script carries the parts of segpt that it needs, compressed. In an environment with "
        f"the packages of `{NEEDS}` it prints the figures of seed {runs[0].seed}:",
        f"```sh\npython {SCRIPT}              # on {_plain(score.text)}\n"
        f"python {SCRIPT} TEXT...      # on other texts\n"
        f"python {SCRIPT} train OUT    # the whole line anew; SEED=1 for another seed\n```",
        "Conditions of the score:",
        "\n".join(conditions),
    ]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    return re.sub(r"[^\w ./,-]", "", text)[:80]


def _requirements(modules: Mapping[str, str], artifact: Artifact) -> Iterator[str]:
    """The packages that the script imports or the artifact needs, at the versions used here."""
    names = {name for source in modules.values() for name in imports.imported(source)}
    names |= {s.codec for s in container.sections(artifact)} & {"brotli"}
    foreign = names - set(sys.stdlib_module_names) - {bundle.PACKAGE}
    for name in sorted(imports.CALLED.get(name, name) for name in foreign):
        version = importlib.metadata.version(name).split("+")[0]
        yield f"{name}=={version}"
