"""Where something was computed, as it is stored beside what came of it."""

import dataclasses

from .base import ADDED, PlainSpec, spec


@spec
class Versions(PlainSpec):
    """The versions of what took part; one that did not, or is not known, is empty."""

    segpt: str = dataclasses.field(default="", metadata=ADDED)
    lm_eval: str = dataclasses.field(default="", metadata=ADDED)
    torch: str = dataclasses.field(default="", metadata=ADDED)
    numpy: str = dataclasses.field(default="", metadata=ADDED)
    python: str = dataclasses.field(default="", metadata=ADDED)


@spec
class Environment(PlainSpec):
    """Processes, device, threads and versions: what the last bits of a sum depend on.

    None where it was not recorded. ``fewest_threads`` is what training went down to while others
    wanted the cores, ``machine`` the kind of processor, and ``commit`` that of segpt's own
    repository: None outside of one, and empty where it was not recorded.
    """

    processes: int | None = dataclasses.field(default=None, metadata=ADDED)
    device: str | None = dataclasses.field(default=None, metadata=ADDED)
    machine: str | None = dataclasses.field(default=None, metadata=ADDED)
    threads: int | None = dataclasses.field(default=None, metadata=ADDED)
    fewest_threads: int | None = dataclasses.field(default=None, metadata=ADDED)
    commit: str | None = dataclasses.field(default="", metadata=ADDED)
    versions: Versions | None = dataclasses.field(default=None, metadata=ADDED)
