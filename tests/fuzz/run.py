"""Damaged inputs for all readers, in a process of its own with a limit of memory and time.

    python -m tests.fuzz.run COUNT SEED PLACE [READER ...]

Prints one JSON object per reader: how many inputs were taken and refused, how long they took, and
every kind of fault with the number of the input that shows it.
"""

import faulthandler
import json
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz.readers import DOCUMENTED, READERS, Reader, Subject

SECONDS = 5.0  # of processor time for one input
MEMORY = 1 << 30  # bytes beyond what the process holds at the start
LONGEST = 3_000  # characters of a message


class TooSlowError(BaseException):
    """An input took longer than an input may."""


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise TooSlowError


def campaign(reader: Reader, subject: Subject, count: int, seed: int) -> dict[str, Any]:
    """Damage ``count`` inputs and read each of them."""
    tally: Counter[str] = Counter()
    faults: dict[str, list[Any]] = {}
    begun, longest = time.process_time(), 0.0
    for number in range(count):
        chance = random.Random(f"{reader.name} {seed} {number}")
        changed = subject.change(subject.sample, chance)
        started = time.process_time()
        outcome = _outcome(subject, changed)
        longest = max(longest, time.process_time() - started)
        if outcome in ("taken", "refused"):
            tally[outcome] += 1
        else:
            faults.setdefault(outcome, [0, number])[0] += 1
    return {
        "reader": reader.name,
        "inputs": count,
        "taken": tally["taken"],
        "refused": tally["refused"],
        "seconds": round(time.process_time() - begun, 2),
        "longest": round(longest, 2),
        "faults": faults,
    }


def _outcome(subject: Subject, changed: Any) -> str:
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        subject.read(changed)
    except DOCUMENTED as error:
        return _message(str(error))
    except TooSlowError:
        return "took too long"
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is a fault
        places = traceback.extract_tb(error.__traceback__)
        ours = [p for p in places if "/segpt/" in p.filename or "/commands/" in p.filename]
        where = " < ".join(f"{Path(p.filename).name}:{p.lineno}" for p in reversed(ours[-3:]))
        return f"{type(error).__name__}: {_kind(str(error))} at {where}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "taken"


def _message(text: str) -> str:
    if "\n" in text:
        return "the message has several lines: " + _kind(text)
    if len(text) > LONGEST:
        return f"the message has over {LONGEST} characters: " + _kind(text)
    return "refused"


def _kind(text: str) -> str:
    return "".join(c for c in text[:60] if not c.isdigit())


def main() -> None:
    """Run what the command line asks for."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    count, seed, place, *names = sys.argv[1:]
    signal.signal(signal.SIGPROF, _stop)
    wanted = [reader for reader in READERS if not names or reader.name in names]
    whole = sum(reader.share for reader in wanted)
    subjects = []
    for number, reader in enumerate(wanted):
        folder = Path(place) / str(number) / "place"
        folder.mkdir(parents=True)
        subjects.append((reader, reader.make(folder)))
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    for reader, subject in subjects:
        share = max(4, round(int(count) * reader.share / whole))
        subject.read(subject.sample)
        sys.stdout.write(json.dumps(campaign(reader, subject, share, int(seed))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
