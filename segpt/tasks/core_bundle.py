"""The bundle of files that the CORE tasks are read from: what is there, and whether it is original.

A bundle is a directory with ``core.yaml``, which lists the tasks, ``eval_meta_data.csv``, which
has their baselines, and the items below ``eval_data``.
"""

import csv
import hashlib
import io
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from segpt.atomic import standing
from segpt.config.base import decode
from segpt.config.plain import NOT_YAML, read_yaml
from segpt.data.compression import COMPRESSIONS, ERRORS, plain, reason
from segpt.errors import DataError, SpecError

from .core import BASELINES, BY_LABEL, ITEM_OF, TASKS, Baselines, Item, Task

LIST: Final = "core.yaml"
TABLE: Final = "eval_meta_data.csv"
ITEMS: Final = "eval_data"
LARGEST: Final = 2**27  # bytes of one file, decompressed
AGAIN: Final = "fetch the bundle again (segpt data fetch core)"

_LOCAL = "local_data"  # where the paths of DCLM begin
_KEYS = {form: {f.name for f in fields(cls)} for form, cls in ITEM_OF.items()}


@dataclass(frozen=True)
class Bundle:
    """A bundle whose list of tasks is in order; ``baselines`` is the table that it holds, if known.

    ``labels`` are the CORE tasks that it lists. Their files are read when asked for.
    """

    place: Path
    labels: tuple[str, ...]
    baselines: Baselines | None

    def file(self, task: Task) -> Path | None:
        """Where the items of a task are, plain or compressed; None if they are not there."""
        for folder in (ITEMS, _LOCAL):
            for ending in ("", *COMPRESSIONS):
                path = self.place / folder / (task.path + ending)
                if path.is_file():
                    return path
        return None


@dataclass(frozen=True)
class Source:
    """A file of items as found: its SHA-256, and whether that is the one of the original."""

    path: Path
    sha256: str
    verbatim: bool
    items: int

    def plain(self) -> dict[str, Any]:
        """The source as JSON values."""
        return {
            "file": self.path.name,
            "sha256": self.sha256,
            "verbatim": self.verbatim,
            "items": self.items,
        }


def read_bundle(place: Path) -> Bundle:
    """The bundle in a directory, or in the ``eval_bundle`` below it.

    Raises:
        DataError: if there is none, or a task is not the one that CORE knows by its label.
    """
    place = standing(place)
    below = place / "eval_bundle"
    place = below if not (place / LIST).exists() and (below / LIST).exists() else place
    entries = _listed(place / LIST)
    return Bundle(place, tuple(entries), _baselines(place / TABLE, entries))


def read_items(bundle: Bundle, task: Task) -> tuple[tuple[Item, ...], Source]:
    """The items of a task in the order of their file, and what file that was.

    Raises:
        DataError: if the file is missing or damaged, naming the line.
    """
    if task.label not in bundle.labels:
        raise DataError(f"{bundle.place / LIST}: does not list {task.label}; {AGAIN}")
    path = bundle.file(task)
    if path is None:
        raise DataError(
            f"{bundle.place / ITEMS / task.path}: not there, so {task.label} cannot run; name "
            f"only tasks whose files are there, or {AGAIN}"
        )
    raw = _content(path)
    items = tuple(
        _item(path, number, line, task)
        for number, line in enumerate(raw.split(b"\n"), 1)
        if line.strip()
    )
    if not items:
        raise DataError(f"{path}: no items in it; {AGAIN}")
    sha256 = hashlib.sha256(raw).hexdigest()
    verbatim = sha256 == task.sha256 if task.sha256 else _blob(raw) == task.blob
    return items, Source(path, sha256, verbatim, len(items))


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = plain(file, path.suffix).read(LARGEST + 1)
    except ERRORS as error:
        raise DataError(f"{path}: cannot be read ({reason(error)}); {AGAIN}") from error
    if len(raw) > LARGEST:
        raise DataError(f"{path}: more than {LARGEST:,} bytes; {AGAIN}")
    return raw


def _blob(raw: bytes) -> str:
    """The name that Git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()


def _item(path: Path, number: int, line: bytes, task: Task) -> Item:
    try:
        record = json.loads(line)
        known = {k: v for k, v in record.items() if k in _KEYS[task.form]}
        return decode(ITEM_OF[task.form], known, f"{path}:{number}")
    except SpecError as error:
        raise DataError(f"{error}; {AGAIN}") from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}:{number}: not a JSON object ({error}); {AGAIN}") from error


def _listed(path: Path) -> dict[str, Task]:
    """The CORE tasks that the list names, by label."""
    try:
        table = read_yaml(_content(path))
        entries = [dict(entry) for entry in table["icl_tasks"]]
        labels = [str(entry["label"]) for entry in entries]
    except NOT_YAML as error:
        raise DataError(f"{path}: no list of tasks under icl_tasks ({error}); {AGAIN}") from error
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise DataError(f"{path}: lists {twice[0]} twice; {AGAIN}")
    tasks = {}
    for label, entry in zip(labels, entries, strict=True):
        if label in BY_LABEL:
            _check(path, BY_LABEL[label], entry)
            tasks[label] = BY_LABEL[label]
    if not tasks:
        raise DataError(f"{path}: lists none of the {len(TASKS)} CORE tasks; {AGAIN}")
    return tasks


def _check(path: Path, task: Task, entry: dict[str, Any]) -> None:
    """Refuse an entry that would make another task of it than the one of that label."""
    shots, uri = entry.get("num_fewshot"), str(entry.get("dataset_uri"))
    facts = {
        "dataset_uri": (uri.removeprefix(f"{_LOCAL}/"), task.path),
        "num_fewshot": (shots[0] if isinstance(shots, list) and shots else shots, task.shots),
        "icl_task_type": (entry.get("icl_task_type"), task.form),
        "continuation_delimiter": (entry.get("continuation_delimiter", " "), task.delimiter),
    }
    for key, (listed, expected) in facts.items():
        if listed != expected:
            raise DataError(
                f"{path}: {task.label} has {key} {listed!r}, which is {expected!r} in CORE; {AGAIN}"
            )


def _baselines(path: Path, listed: dict[str, Task]) -> Baselines | None:
    """Which table of baselines a file holds; None if it is neither."""
    try:
        rows = csv.DictReader(io.StringIO(_content(path).decode()), strict=True)
        by_name = {row["Eval Task"]: row["Random baseline"] for row in rows}
        baselines = {label: float(by_name[label]) for label in listed}
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: no baseline for each task that {LIST} lists ({error}); {AGAIN}"
        ) from error
    for table in BASELINES:
        if all(baselines[label] == task.baseline(table) for label, task in listed.items()):
            return table
    return None
