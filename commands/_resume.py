"""What ``--resume`` goes on with: a place that was named, or what was interrupted last."""

from pathlib import Path

from segpt.errors import CheckpointError, SpecError
from segpt.workspace import newest


def run(named: str, out: Path | None) -> Path:
    """The run to go on with: named, that of ``--out``, or the newest.

    Raises:
        SegptError: if there is none, or nothing where it is named.
        SpecError: if two different ones are named.
    """
    place = either(named, out) or newest.latest("run")
    if place is None:
        raise CheckpointError(
            "no run was begun here, so there is none to resume; leave out --resume"
        )
    return newest.existing(place, "; segpt runs lists the runs that are here")


def either(named: str, out: Path | None) -> Path | None:
    """The place that was named with ``--resume`` or ``--out``, if any was.

    Raises:
        SpecError: if two different ones were.
    """
    if named and out is not None and Path(named) != out:
        raise SpecError(f"--resume {named} and --out {out} are two places; leave one of them out")
    return Path(named) if named else out
