"""The texts of an exported folder: metadata, page, requirements and licence."""

import dataclasses
import importlib.metadata
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import segpt
from segpt.artifact import container
from segpt.config.base import ADDED, PlainSpec, encode, spec
from segpt.leaderboard.render import inert
from segpt.values import Artifact

from . import bundle, imports
from .scored_artifacts import ScoredArtifact
from .submission_folder import NEEDS, SCRIPT

MODEL = "model.segpt"
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


@dataclass(frozen=True)
class About:
    """What an exported folder says of itself that no file tells.

    Attributes:
        author: who submits.
        name: what is submitted.
        date: the day, as YYYY-MM-DD.
        github: the author's identifier there.
    """

    author: str
    name: str
    date: str
    github: str = ""


@spec
class SeedMetadata(PlainSpec):
    """What metadata says of one seed: loss in nats per token, bits per byte, sizes and seconds."""

    val_loss: float
    val_bpb: float
    bytes_total: int
    eval_time_s: float


@spec
class TextMetadata(PlainSpec):
    """The text that was scored."""

    name: str
    sha256: str | None


@spec
class Metadata(PlainSpec):
    """The metadata of a folder, under the names of the contest; means are over seeds.

    The deviations are None of a single seed. ``bytes_total`` is of the largest model with the code.
    """

    author: str
    github_id: str
    name: str
    date: str
    val_loss: float
    val_bpb: float
    val_loss_std: float | None = dataclasses.field(default=None, metadata=ADDED)
    val_bpb_std: float | None = dataclasses.field(default=None, metadata=ADDED)
    seeds: tuple[int, ...]
    seed_results: Mapping[str, SeedMetadata]
    bytes_total: int
    bytes_code: int
    text: TextMetadata
    segpt: str


def metadata(runs: Sequence[ScoredArtifact], code: int, about: About) -> Metadata:
    """The metadata of a folder whose script takes ``code`` bytes."""
    bpbs = [run.score.bpb for run in runs]
    losses = [run.score.nats_per_token for run in runs]
    results = {
        str(run.seed): SeedMetadata(
            val_loss=run.score.nats_per_token,
            val_bpb=run.score.bpb,
            bytes_total=run.artifact.size + code,
            eval_time_s=round(run.score.seconds, 3),
        )
        for run in runs
    }
    several, first = len(runs) > 1, runs[0].score
    return Metadata(
        author=about.author,
        github_id=about.github,
        name=about.name,
        date=about.date,
        val_loss=statistics.fmean(losses),
        val_bpb=statistics.fmean(bpbs),
        val_loss_std=statistics.stdev(losses) if several else None,
        val_bpb_std=statistics.stdev(bpbs) if several else None,
        seeds=tuple(run.seed for run in runs),
        seed_results=results,
        bytes_total=max(run.artifact.size for run in runs) + code,
        bytes_code=code,
        text=TextMetadata(name=first.text, sha256=first.origin.get("text")),
        segpt=segpt.__version__,
    )


def page(runs: Sequence[ScoredArtifact], about: Metadata) -> str:
    """The page of a folder with the metadata ``about``."""
    score = runs[0].score
    rows = [
        f"| {run.seed} | {run.score.bpb:.8f} | {run.score.nats_per_token:.8f} | "
        f"{run.artifact.size + about.bytes_code:,} | {run.score.seconds:.1f} s |"
        for run in runs
    ]
    if len(runs) > 1:
        rows.append(f"| Mean | {about.val_bpb:.8f} | {about.val_loss:.8f} | | |")
    conditions = [
        f"- {inert(key)}: {inert(str(state))}"
        for key, state in sorted(encode(score.conditions).items())
        if isinstance(state, str | int | float) and state is not None
    ]
    parts = [
        f"# {inert(about.name)}",
        f"val_bpb: {about.val_bpb:.8f}, by {inert(about.author)}, {about.date}",
        f"{about.bytes_code:,} bytes of code are `{SCRIPT}`, and the model is `{MODEL}`: "
        f"{about.bytes_total:,} bytes together at most.",
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


def requirements(modules: Mapping[str, str], artifact: Artifact) -> Iterator[str]:
    """The packages that the script imports or the artifact needs, at the versions used here."""
    names = {name for source in modules.values() for name in imports.imported(source)}
    names |= {s.codec for s in container.sections(artifact)} & {"brotli"}
    foreign = names - set(sys.stdlib_module_names) - {bundle.PACKAGE}
    for name in sorted(imports.CALLED.get(name, name) for name in foreign):
        version = importlib.metadata.version(name).split("+")[0]
        yield f"{name}=={version}"


def _plain(text: str) -> str:
    return re.sub(r"[^\w ./,-]", "", text)[:80]
