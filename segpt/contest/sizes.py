"""Sizes that a submission claims, held against its logs and files."""

from collections.abc import Iterable, Iterator
from decimal import Decimal
from itertools import pairwise
from pathlib import PurePosixPath

from segpt.config.parameter_golf import BYTES

from . import imports
from .logs import Log
from .submission_folder import LOGS, NEEDS, Case, Contradiction, decimals, is_log

_EXACT = 6  # decimals in which two runs do not agree
SHOWN = (".md", ".png", ".svg", ".jpg", ".pdf", ".csv", ".jsonl", ".json")  # for people to look at


def claimed_sizes(case: Case) -> Iterator[Contradiction]:
    """Sizes over the cap, sizes that no log has, and one size given to several seeds."""
    about, place = case.about, case.place
    counts = [(f"seed {s.seed}", s.bytes) for s in about.seeds if s.bytes is not None]
    whole = [] if about.bytes is None else [("the submission", about.bytes)]
    for who, size in whole + counts:
        if size > BYTES:
            over = f"{who} claims {size:,} bytes, {size - BYTES:,} over the cap of {BYTES:,}"
            yield Contradiction("cap", place, over)
    least = max((size for _, size in whole + counts), default=None)
    for run in case.runs:
        if run.total is not None and run.total > BYTES:
            note = "" if least is None else f"; {place} claims at most {least:,}"
            over = f"{run.total:,} bytes, {run.total - BYTES:,} over the cap of {BYTES:,}{note}"
            yield Contradiction("cap", run.name, over)
    absent = []
    for seed in about.seeds:
        runs = case.of_seed.get(seed.seed, [])
        if seed.bytes is None or not runs or is_known(seed.bytes, runs):
            continue
        absent.append(seed.seed)
        logged = next((run.total for run in runs if run.total is not None), None)
        says = "no size" if logged is None else f"{logged:,}"
        alone = any(seed.bytes in run.sizes for run in runs)
        text = (
            f"seed {seed.seed} claims {seed.bytes:,} bytes, and {runs[0].name} says {says}"
            f"{', with the code' if alone else ''}"
        )
        yield Contradiction("bytes", place, text)
    sizes = [size for _, size in counts]
    if len(sizes) > 1 and len(set(sizes)) == 1 and absent:
        text = f"all {len(sizes)} seeds claim {sizes[0]:,} bytes, which not all logs have"
        yield Contradiction("copied", place, text)
    if not counts and about.bytes is not None and case.runs:
        totals = [run.total for run in case.runs if run.total is not None]
        if totals and not is_known(about.bytes, case.runs):
            near = min(totals, key=lambda size: abs(size - (about.bytes or 0)))
            text = f"claims {about.bytes:,} bytes, and the logs say {near:,}"
            yield Contradiction("bytes", place, text)
    if sizes and about.bytes is not None and about.bytes < max(sizes):
        text = f"bytes_total is {about.bytes:,}, and its largest seed takes {max(sizes):,}"
        yield Contradiction("total", place, text)
    claims: dict[Decimal, list[int]] = {}
    for seed in about.seeds:
        if seed.bpb is not None and decimals(seed.bpb) >= _EXACT:
            claims.setdefault(seed.bpb, []).append(seed.seed)
    for bpb, seeds in claims.items():
        for first, second in pairwise(seeds):
            text = f"seeds {first} and {second} both claim {bpb} BPB"
            yield Contradiction("copied", place, text)


def is_known(size: int, runs: Iterable[Log]) -> bool:
    """Whether logs call this the size of the submission, or else have it, or it without code."""
    for run in runs:
        totals = {total for sizes in run.totals.values() for total in sizes}
        codes = {code for sizes in run.codes.values() for code in sizes}
        known = totals or run.sizes
        if size in known or (not totals and any(size - code in known for code in codes)):
            return True
    return False


def files(case: Case) -> Iterator[Contradiction]:
    """Code bytes that are not those of the script, and files that nothing counts."""
    about, script = case.about, case.script
    if script is None:
        return
    size = case.folder.sizes[script]
    if about.code is not None and about.code != size:
        text = f"is {size:,} bytes, and {case.place} counts {about.code:,} bytes of code"
        yield Contradiction("code", script, text)
    for code in dict.fromkeys(run.code for run in case.runs if run.code is not None):
        if code != size and code != about.code:
            run = next(run for run in case.runs if run.code == code)
            text = f"is {size:,} bytes, and {run.name} counts {code:,} bytes of code"
            yield Contradiction("code", script, text)
    beside = {
        name: length
        for name, length in case.folder.sizes.items()
        if name != script and not is_log(name) and not _is_shown(name)
    }
    counts = {s.bytes for s in about.seeds} | {about.bytes}
    if sum(beside.values()) + size in counts:
        return
    for name, length in sorted(beside.items()):
        if length + size not in counts:
            text = f"{length:,} bytes beside the {size:,} of {script}, and no size counts them"
            yield Contradiction("uncounted", name, text)


def _is_shown(name: str) -> bool:
    """Whether a file is for people, or for the contest, and never read by the script."""
    path = PurePosixPath(name)
    if path.suffix == ".json":
        return path.name.startswith("submission") or "result" in path.name
    known = path.name.lower().startswith(("requirements", "license", "."))
    return known or path.suffix.lower() in (*SHOWN, *LOGS)


def needed(case: Case) -> Iterator[Contradiction]:
    if case.script is None or case.script not in case.folder.texts:
        return
    local = {PurePosixPath(n).stem for n in case.folder.sizes if n.endswith(".py")}
    listed = case.folder.texts.get(NEEDS, "")
    absent = imports.absent(case.folder.texts[case.script], listed, local)
    if absent:
        text = f"{case.script} imports {', '.join(absent)}, which it does not list"
        yield Contradiction("requirements", NEEDS, text)
