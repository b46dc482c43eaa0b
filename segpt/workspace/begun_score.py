"""A score that is kept while it is under way, resumed, and kept again once it has ended."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segpt.config.base import fingerprint
from segpt.config.environment import Environment, Versions
from segpt.config.score import ScoreSpec
from segpt.errors import CheckpointError
from segpt.stages import unfinished, value_directory
from segpt.stages.environment import environment
from segpt.stages.read_model import identity_of, read_model
from segpt.stages.threads import rounded_otherwise
from segpt.values import Arrays

from . import newest

SCORING = newest.RUNS / "scoring"  # where an interrupted score lies
RESULT = "result"  # under this name in its origin, once it was resumed and finished
Result = tuple[dict[str, Any], list[str]]  # as JSON values, and as lines for people


class ScoreCall(NamedTuple):
    """A score as it was asked for: what goes on from it repeats no option."""

    model: Path
    texts: tuple[Path, ...]
    options: dict[str, Any]

    def json(self) -> str:
        kept = {k: str(v) if isinstance(v, Path) else v for k, v in self.options.items()}
        return json.dumps(
            {"model": str(self.model), "texts": list(map(str, self.texts)), "options": kept}
        )


class ScoreTask(NamedTuple):
    """A score of one model on one text: where it lies while it is under way.

    Attributes:
        call: as it was asked for.
        model: the identity of the model.
        text: the digest of the text.
        spec: how it is scored.
        device: where it is computed.
        suffix: of the directory, for one of several processes.
    """

    call: ScoreCall
    model: str
    text: str
    spec: ScoreSpec
    device: str
    suffix: str = ""

    @property
    def origin(self) -> dict[str, str]:
        """What says which score it is."""
        return {"model": self.model, "text": self.text, "score": fingerprint(self.spec)}

    @property
    def place(self) -> Path:
        """The directory that holds what an interrupted call leaves."""
        return SCORING / f"{fingerprint(self.origin)}{self.suffix}"

    def save(self, state: Arrays) -> None:
        """Keep what was computed up to now, and on what.

        Raises:
            SegptError: if the disk refuses.
        """
        now = environment(self.device)
        assert now.versions is not None
        table = {"device": now.device, "threads": str(now.threads), "torch": now.versions.torch}
        surroundings = np.frombuffer(json.dumps(table).encode(), np.uint8)
        unfinished.save_scoring(
            self.place,
            {**state, "surroundings": surroundings},
            self.origin | {"begun": self.call.json()},
        )

    def state(self) -> Arrays:
        """What an interrupted call left.

        Raises:
            CheckpointError: if there is nothing, or it is damaged or another score's.
        """
        place = self.place
        stem = place.name.removesuffix(self.suffix)
        others = [*place.parent.glob(stem), *place.parent.glob(f"{stem}-0-of-*")]
        if not place.exists() and others:
            count = others[0].name.rpartition("-of-")[2] if others[0].name != stem else "1"
            raise CheckpointError(
                f"this score was begun by {count} of torchrun's processes, and each has its own "
                "part; resume with as many, or leave out --resume"
            )
        return unfinished.read_scoring(place, self.origin)

    def rounded_otherwise(self, state: Arrays) -> str | None:
        """A line if the sums of a state were added up in another order than they will be now."""
        return rounded_otherwise("the score", surroundings_of(state), environment(self.device))

    def keep(self, plain: Mapping[str, Any], lines: Sequence[str]) -> None:
        """Keep the result of a score that was resumed, so that a loop that resumes it can end.

        Raises:
            SegptError: if the disk refuses.
        """
        origin = self.origin | {"begun": self.call.json(), RESULT: json.dumps([plain, lines])}
        unfinished.save_scoring(self.place, {}, origin)

    def result(self) -> Result | None:
        """The result of this score, if it was interrupted, resumed and finished before.

        Raises:
            CheckpointError: if what was kept of it is damaged.
        """
        if not self.place.exists():
            return None
        unfinished.read_scoring(self.place, self.origin)
        kept = value_directory.read_header(self.place, "scoring")["origin"].get(RESULT)
        if kept is None:
            return None
        try:
            plain, lines = json.loads(kept)
            return dict(plain), list(map(str, lines))
        except (TypeError, ValueError, RecursionError):
            raise CheckpointError(
                f"{self.place} is damaged: its result is no list of values and lines; remove it"
            ) from None


def interrupted(model: Path | None, options: Mapping[str, Any]) -> ScoreCall:
    """The score that was interrupted last.

    Args:
        model: only a score of this model, if that is given.
        options: what is asked for now; it counts.

    Raises:
        CheckpointError: if there is none.
    """
    identity = None if model is None else identity_of(read_model(model))
    headers = sorted(SCORING.glob("*/header.json"), key=lambda p: p.stat().st_mtime, reverse=True)
    origins = {
        p.parent: value_directory.read_header(p.parent, "scoring")["origin"] for p in headers
    }
    for place in sorted(origins, key=lambda place: RESULT in origins[place]):  # finished ones last
        if identity not in (None, origins[place].get("model")):
            continue
        before = unfinished.begun(place, "scoring")
        try:
            path, texts = Path(before["model"]), tuple(map(Path, before["texts"]))
            kept = dict(before["options"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{place} is incomplete: {error!r}") from None
        kept["out"] = None if kept.get("out") is None else Path(kept["out"])
        kept["settings"] = tuple(kept.get("settings", ()))
        return ScoreCall(model or path, texts, kept | {"resume": True} | dict(options))
    of = "" if model is None else f" of {model}"
    raise CheckpointError(
        f"no score{of} was interrupted here: nothing to resume; leave out --resume"
    )


def surroundings_of(state: Arrays) -> Environment:
    """What a state says it was computed on; nothing if it does not."""
    try:
        table = json.loads(bytes(state["surroundings"]))
        return Environment(
            device=str(table["device"]),
            threads=int(table["threads"]),
            versions=Versions(torch=str(table["torch"])),
        )
    except (KeyError, ValueError, TypeError, RecursionError):
        return Environment()
