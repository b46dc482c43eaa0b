"""The manifest of reference artifacts: what is known of each, so that a change shows."""

import math
import re

from segpt.config.base import spec
from segpt.errors import SpecError

LARGEST_TOLERANCE = 1e-3  # bits per byte: machines round differently, but not more than this

_LENGTHS = {"digest": 64, "spec": 16, "model": 16, "tokens": 16}


@spec
class ReferenceArtifact:
    """One artifact that is kept as it is.

    ``digest`` is its SHA-256, ``spec`` the fingerprint of its model's spec, ``model`` that of its
    weights and tokenizer too, ``tokens`` that of the text it was trained on. ``fixture_bpb`` is
    what it scores on the fixture. ``replaces`` names the artifact before it in its line, which has
    the same budget.
    """

    file: str
    format: int
    digest: str
    bytes: int
    budget: int
    spec: str
    model: str
    tokens: str
    fixture_bpb: float
    tolerance: float
    made_by: str
    replaces: str | None = None

    def __post_init__(self) -> None:
        for name, length in _LENGTHS.items():
            if not re.fullmatch(rf"[0-9a-f]{{{length}}}", getattr(self, name)):
                raise SpecError(f"{self.file}: {name} is {length} hexadecimal digits")
        if not re.fullmatch(r"[\w.-]+\.segpt", self.file, re.ASCII):
            raise SpecError(f"{self.file[:80]!r}: an artifact's file is named NAME.segpt")
        if not 0 < self.fixture_bpb < math.inf:
            raise SpecError(f"{self.file}: fixture_bpb is positive and finite")
        if not 0 < self.tolerance <= LARGEST_TOLERANCE:
            raise SpecError(
                f"{self.file}: the tolerance is {self.tolerance}; it is positive and at most "
                f"{LARGEST_TOLERANCE:g} bits per byte"
            )


@spec
class References:
    """All reference artifacts, older ones before those that replace them."""

    artifact: tuple[ReferenceArtifact, ...]

    def __post_init__(self) -> None:
        known: dict[str, ReferenceArtifact] = {}
        followed: set[str] = set()
        for entry in self.artifact:
            if entry.file in known:
                raise SpecError(f"{entry.file} is listed twice")
            if entry.replaces is not None:
                if entry.replaces not in known:
                    raise SpecError(
                        f"{entry.file} replaces {entry.replaces!r}, which is not listed before it"
                    )
                if entry.replaces in followed:
                    raise SpecError(f"{entry.replaces} is replaced twice")
                followed.add(entry.replaces)
            known[entry.file] = entry
