"""Artifacts of one recipe, each with the one score of it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from segpt.artifact import container
from segpt.config.base import decode
from segpt.config.conditions import Conditions
from segpt.config.score import ScoreSpec
from segpt.errors import SegptError, SpecError
from segpt.stages import json_files
from segpt.values import Artifact, Score


class ScoredArtifact(NamedTuple):
    """The artifact of one seed, and its score."""

    seed: int
    artifact: Artifact
    score: Score
    source: Path

    @property
    def reading(self) -> ScoreSpec:
        """How the score was made."""
        return self.score.conditions.reading.spec(self.score.policy)


def scored_artifacts(artifacts: Sequence[Path], scores: Sequence[Path]) -> list[ScoredArtifact]:
    """Each artifact with the one score of it."""
    scored: dict[str, tuple[Path, Score]] = {}
    for path in scores:
        table = json_files.read_json(path, "score")
        score, digest = _score(table, path)
        if digest in scored:
            raise SegptError(f"{path} and {scored[digest][0]} score the same artifact; give one")
        scored[digest] = path, score
    runs = []
    for place, path in enumerate(artifacts):
        artifact = container.load(path)
        if artifact.digest not in scored:
            raise SegptError(
                f"no score of {path}; make one with: segpt score {path} --out FILE, and name it "
                "with --score"
            )
        source, score = scored.pop(artifact.digest)
        runs.append(
            ScoredArtifact(place if score.seed is None else score.seed, artifact, score, source)
        )
    if scored:
        (source, _), *_ = scored.values()
        raise SegptError(f"{source} is of none of these artifacts; leave it out")
    if len({run.seed for run in runs}) < len(runs):
        raise SegptError("two artifacts have the same seed; give one of each")
    first = runs[0]
    for run in runs[1:]:
        same = run.score.origin.get("text") == first.score.origin.get("text")
        if not same or run.reading != first.reading:
            raise SegptError(
                f"{run.source} and {first.source} are of different texts or were read in "
                "different ways; score both alike"
            )
    return runs


def _score(table: Any, path: Path) -> tuple[Score, str]:
    names = {f.name for f in dataclasses.fields(Score)}
    try:
        fields = {name: value for name, value in table.items() if name in names}
        fields["conditions"] = decode(Conditions, table["conditions"], "$.conditions")
        return Score(**fields), str(table["origin"]["artifact"])
    except SpecError as error:
        raise SegptError(f"{path}: {error}; score it anew") from None
    except (AttributeError, KeyError, TypeError):
        raise SegptError(
            f"{path}: not a score of an artifact; make one with: segpt score ARTIFACT --out FILE"
        ) from None
