"""What a weight does and where it is: all that optimizers, quantizers and packers ask of it."""

from enum import Enum
from typing import NamedTuple


class Role(Enum):
    """What a weight does."""

    TABLE = "table"  # looked up by token; a tied table is also the head
    MATRIX = "matrix"  # multiplies the stream
    HEAD = "head"  # multiplies the stream into logits
    VECTOR = "vector"  # gains, gates and mixing weights


class Place(Enum):
    """Where in the model a weight is. Within a layer, the first word of its name says so."""

    EMBED = "embed"  # what tokens start as; a tied table is also the head
    VALUE = "value"  # tables whose rows are mixed into values
    JOIN = "join"  # how the stream enters a layer
    LANES = "lanes"  # how branches write to two residual lanes
    MIXER = "mixer"
    FEED = "feed"
    HEAD = "head"


class Entry(NamedTuple):
    """A weight of a part, by its name within the part."""

    name: str
    role: Role
    shape: tuple[int, ...]


def vector(name: str, *shape: int) -> Entry:
    """A small learned tensor."""
    return Entry(name, Role.VECTOR, shape)


def matrix(name: str, rows: int, columns: int) -> Entry:
    """A linear map from ``columns`` channels to ``rows``."""
    return Entry(name, Role.MATRIX, (rows, columns))


def stack(name: str, count: int, rows: int, columns: int) -> tuple[Entry, ...]:
    """Matrices of one shape, each under its number."""
    return tuple(matrix(f"{name}.{i}", rows, columns) for i in range(count))


def table(name: str, rows: int, columns: int) -> Entry:
    """Rows that are looked up."""
    return Entry(name, Role.TABLE, (rows, columns))


def within(prefix: str, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """The weights of a part, named within what holds it."""
    return tuple(entry._replace(name=f"{prefix}.{entry.name}") for entry in entries)
