"""Which prepared texts a run is trained on together, and how much of each it takes."""

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from segpt.errors import SpecError

from .base import decode, spec
from .plain import NOT_YAML, read_yaml

_ENDINGS = (".yaml", ".yml", ".json")
_LARGEST = 2**26  # bytes of a file that names texts
_MOST = 1000  # texts


@spec
class Source:
    """One text of a mix: where it was prepared, and its ``weight`` or its quota of ``tokens``.

    A quota is also a limit: no more than the first so many tokens of the text are read. ``name``
    is what the run calls the text; without it that is the last part of ``path``.
    """

    path: str
    weight: float | None = None
    tokens: int | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if not self.path or "\0" in self.path:
            raise SpecError("path is that of a prepared text, got nothing that could be one")
        if self.weight is not None and self.weight <= 0:
            raise SpecError(f"weight must be positive, got {self.weight:g}; leave the text out")
        if self.tokens is not None and self.tokens < 1:
            raise SpecError(f"tokens must be at least 1, got {self.tokens}; leave the text out")

    @property
    def called(self) -> str:
        """The name of the text in the run."""
        return self.name or Path(self.path).name or self.path


@spec
class Mixture:
    """Texts that are trained on together, each by its weight or each by its quota of tokens."""

    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.sources) <= _MOST:
            raise SpecError(f"a mix has 1 to {_MOST} sources, got {len(self.sources)}")
        for key in ("name", "path"):
            values = [s.called if key == "name" else s.path for s in self.sources]
            if twice := [value for value in values if values.count(value) > 1]:
                raise SpecError(f"two sources have the {key} {twice[0]!r}; give each its own")
        quotas = sum(source.tokens is not None for source in self.sources)
        weights = sum(source.weight is not None for source in self.sources)
        if {quotas, weights} != {0, len(self.sources)}:
            raise SpecError(
                "give every source a weight, or every source a quota of tokens: "
                f"{weights} of {len(self.sources)} have a weight and {quotas} have tokens"
            )

    def shares(self) -> tuple[Fraction, ...]:
        """What part of the blocks each source gets, exactly: they sum to 1."""
        parts = [
            Fraction(source.tokens) if source.tokens is not None else Fraction(str(source.weight))
            for source in self.sources
        ]
        return tuple(part / sum(parts) for part in parts)


def is_mixture_file(path: Path) -> bool:
    """Whether a path is that of a file that names texts, by its ending."""
    return path.suffix.lower() in _ENDINGS and not path.is_dir()


def read_mixture(path: Path) -> Mixture:
    """Read a mix from a YAML file with ``sources``, or from a table of paths and token counts.

    The table may be YAML or JSON: ``{"runs/data/web": 2000000, "runs/data/code": 500000}``. A
    recipe with ``data:`` is read too. Paths are as on the command line.

    Raises:
        SpecError: naming the file and the first value that is wrong.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise SpecError(f"{path}: more than {_LARGEST:,} bytes are no list of texts")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise SpecError(f"cannot read the mix {path}: {reason}") from None
    try:
        return decode(Mixture, _table(_parse(path, text)), "sources")
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


def _parse(path: Path, text: str) -> Any:
    if path.suffix.lower() != ".json":
        try:
            return read_yaml(text)
        except NOT_YAML as error:
            raise SpecError(f"not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"not valid JSON: {error}") from None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A table from its pairs: readers of JSON would drop the first of two equal keys."""
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise SpecError(f"the key {twice!r} stands twice in one table")
    return table


def _table(written: Any) -> Any:
    """The table of ``sources``, however it was written."""
    if isinstance(written, Mapping) and isinstance(written.get("data"), Mapping):
        written = written["data"]
    if isinstance(written, list):
        return {"sources": written}
    if not isinstance(written, Mapping) or not written:
        raise SpecError("expected a table of sources, or one of paths and token counts")
    if "sources" in written:
        return written
    for path, count in written.items():
        if type(count) is not int:
            raise SpecError(f"expected a whole number of tokens for {path!r}, got {count!r}")
    return {"sources": [{"path": str(p), "tokens": count} for p, count in written.items()]}
