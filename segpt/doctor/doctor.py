"""What of this machine works, what is missing, and what to do about it.

What could take a process down with it runs in another one (:mod:`.worker`), so this module
needs nothing but Python.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import segpt
from segpt.machine import memory, processors

State = Literal["good", "optional", "advice", "broken"]

SECONDS = 120.0  # for the checks of the other process; ten times as many for deep ones
_LEAST_PYTHON = (3, 11)
_GB = 1_000_000_000
_LEAST_DISK, _LEAST_MEMORY = _GB, _GB
_CROWDED = 0.75  # of the cores, beyond which programs wait for each other


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """The outcome of one check.

    ``state`` is ``good``; ``optional`` if something that not everybody needs is missing;
    ``advice`` if it works but should be better; or ``broken`` if segpt cannot work like this.
    ``advice`` is what to do, where something should be done.
    """

    name: str
    state: State
    found: str
    advice: str | None = None


class Extra(NamedTuple):
    """An optional package: the one to import, the extra that installs it and what it is for."""

    module: str
    extra: str
    purpose: str


EXTRAS = {
    "triton": Extra("triton", "triton", "compiles models for CUDA"),
    "pyarrow": Extra("pyarrow", "parquet", "reads parquet"),
    "transformers": Extra("transformers", "hf", "asks models of Hugging Face"),
    "gguf": Extra("gguf", "gguf", "reads and writes GGUF files"),
    "lm-eval": Extra("lm_eval", "eval", "runs lm-evaluation-harness"),
    "matplotlib": Extra("matplotlib", "plot", "draws"),
    "numba": Extra("numba", "fast", "decodes artifacts and searches trellises faster"),
    "starlette": Extra("starlette", "serve", "answers over HTTP"),
}

# What the other process checks, in order, and what to do where it does not survive that. Nothing
# after the first runs without it.
WORK = {
    "torch": "install it again: pip install --force-reinstall torch (pytorch.org has CPU builds)",
    "device": "try CUDA_VISIBLE_DEVICES= (empty) to work without the GPU",
    "threads": "install torch again: pip install --force-reinstall torch",
    "kernels": "install torch again: pip install --force-reinstall torch",
    "training": "install torch and segpt again, best in a new environment",
    "decoding": "install numba again, or uninstall it: numpy decodes without it",
    "compiler": "install a C++ compiler, e.g. apt install g++",
}
DEEP = {
    "compile": "train with --set train.compile=off, or install a C++ compiler and Python's headers"
}
_NEEDED = {"torch", "kernels", "training"}


def examine(place: Path, *, deep: bool = False) -> Iterator[CheckResult]:
    """Check the machine and the installation; nothing is left behind.

    Args:
        place: the directory that runs are written to; it need not exist.
        deep: also import every optional package and compile a small function.

    Yields:
        One finding for each check, as it is made.
    """
    yield CheckResult("segpt", "good", f"{segpt.__version__}, {Path(segpt.__file__).parent}")
    yield _python()
    yield from _required()
    yield from _worked(WORK | (DEEP if deep else {}), SECONDS * (10 if deep else 1))
    for name in EXTRAS:
        yield _optional(name, deep)
    yield _memory()
    yield from _load()
    yield from _place(place)


def healthy(findings: Iterable[CheckResult]) -> bool:
    """Whether nothing that segpt needs is broken."""
    return all(finding.state != "broken" for finding in findings)


def plain(findings: Sequence[CheckResult]) -> dict[str, Any]:
    """JSON values."""
    return {
        "healthy": healthy(findings),
        "checks": {
            f.name: {"state": f.state, "found": f.found, "advice": f.advice} for f in findings
        },
    }


def _python() -> CheckResult:
    observed = f"{platform.python_version()}, {sys.executable}, {platform.platform(terse=True)}"
    if sys.version_info < _LEAST_PYTHON:
        wanted = ".".join(map(str, _LEAST_PYTHON))
        return CheckResult("python", "broken", observed, f"use Python {wanted} or later")
    return CheckResult("python", "good", observed)


class Requirement(NamedTuple):
    """A package that segpt cannot do without: what to import, and its least version."""

    module: str
    least: tuple[int, ...]
    unfit: str | None = None


REQUIRED = {
    "brotli": Requirement("brotli", (1, 2)),
    "click": Requirement("click", (8, 1)),
    "jinja2": Requirement("jinja2", (3, 1)),
    "numpy": Requirement("numpy", (1, 26)),
    "PyYAML": Requirement("yaml", (6, 0)),
    "rich": Requirement("rich", (13, 7)),
    "safetensors": Requirement("safetensors", (0, 4, 3)),
    "sentencepiece": Requirement("sentencepiece", (0, 2), unfit="0.2.1"),
    "tokenizers": Requirement("tokenizers", (0, 21)),
    "torch": Requirement("torch", (2, 11)),
    "zstandard": Requirement("zstandard", (0, 22)),
}


def _required() -> Iterator[CheckResult]:
    """Every package but torch, which is looked at more closely."""
    needs = {name: need for name, need in REQUIRED.items() if name != "torch"}
    together = _import(*(need.module for need in needs.values()))
    for name, need in needs.items():
        reason = together and _import(need.module)
        if reason is not None:
            yield CheckResult(name, "broken", reason, f"pip install --force-reinstall {name}")
        else:
            yield fitting(name, _version(name))


def fitting(name: str, version: str) -> CheckResult:
    """What to say of a required package that can be imported, given its version."""
    need = REQUIRED[name]
    if numbers(version) < need.least or version == need.unfit:
        least = ".".join(map(str, need.least))
        but = f",!={need.unfit}" if need.unfit else ""
        wanted = f"'{name}>={least}{but}'"
        return CheckResult(name, "broken", f"{version}, needs {wanted}", f"pip install {wanted}")
    return CheckResult(name, "good", version)


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 13, 0) of 2.13.0+cpu."""
    leading: list[int] = []
    for part in version.partition("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        leading += [int(digits)] if digits else []
        if digits != part:
            break
    return tuple(leading)


def _optional(name: str, deep: bool) -> CheckResult:
    module, extra, purpose = EXTRAS[name]
    install = f"pip install 'segpt[{extra}]'"
    if importlib.util.find_spec(module) is None:
        return CheckResult(name, "optional", f"not installed; it {purpose}: {install}")
    if deep and (reason := _import(module)) is not None:
        return CheckResult(
            name, "advice", f"{reason}; it {purpose}", f"{install} again, or uninstall"
        )
    return CheckResult(name, "good", _version(name))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "0 (no metadata)"


def _import(*modules: str) -> str | None:
    """Import modules in another process; why that does not work, or None."""
    done = _python_process("-c", f"import {', '.join(modules)}", seconds=SECONDS)
    return None if done.returncode == 0 else _reason(done)


def _worked(checks: Mapping[str, str], seconds: float) -> Iterator[CheckResult]:
    """Run checks in another process, and those after one that it did not survive in a third."""
    left = list(checks)
    while left:
        done = _python_process("-m", f"{__package__}.worker", *left, seconds=seconds)
        for line in done.stdout.splitlines():
            if line.startswith('{"finding"'):
                said = json.loads(line)
                yield CheckResult(**said["finding"])
                if said["check"] in left:
                    left.remove(said["check"])
        if not left:
            return
        name = left.pop(0)
        state: State = "broken" if name in _NEEDED else "advice"
        yield CheckResult(name, state, _reason(done), checks[name])
        if name == "torch":
            return


def _python_process(*arguments: str, seconds: float) -> "subprocess.CompletedProcess[str]":
    path = [str(Path(segpt.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, *arguments]
    try:
        return subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode(errors="replace") if error.stdout else ""
        reason = f"it took more than {seconds:.0f} seconds"
        return subprocess.CompletedProcess(command, 1, said, reason)


def _reason(done: "subprocess.CompletedProcess[str]") -> str:
    """Why a process failed, in one line."""
    if done.returncode < 0:
        return f"it ended with {signal.Signals(-done.returncode).name}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"it ended with exit code {done.returncode}"


def _memory() -> CheckResult:
    available, total = memory()
    observed = f"{available / _GB:.1f} of {total / _GB:.1f} GB available"
    if available < _LEAST_MEMORY:
        advice = "end other programs; the demo takes about 1 GB, larger recipes more"
        return CheckResult("memory", "advice", observed, advice)
    return CheckResult("memory", "good", observed)


def _load() -> Iterator[CheckResult]:
    """Whether other programs want the cores, which slows products on several threads down."""
    try:
        busy = os.getloadavg()[0]
    except (AttributeError, OSError):
        return  # this system does not count
    cores = processors()
    observed = f"{busy:.1f} programs wanted the {cores} cores in the last minute"
    if busy > _CROWDED * cores:
        advice = (
            "end other programs while segpt computes; training takes fewer threads beside them, "
            "and OMP_NUM_THREADS=1 makes every command do so"
        )
        yield CheckResult("load", "advice", observed, advice)
    else:
        yield CheckResult("load", "good", observed)


def _place(place: Path) -> Iterator[CheckResult]:
    """Room and the right to write where runs go."""
    existing = place.absolute()
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"segpt")
        yield CheckResult("writing", "good", str(place.absolute()))
    except OSError as error:
        yield CheckResult(
            "writing",
            "broken",
            f"cannot write to {existing}: {error.strerror or error}",
            "change to a directory that you may write to",
        )
    free = shutil.disk_usage(existing).free
    observed = f"{free / _GB:.1f} GB free at {place.absolute()}"
    if free < _LEAST_DISK:
        advice = "free some space; the demo writes about 0.1 GB, larger runs more"
        yield CheckResult("disk", "advice", observed, advice)
    else:
        yield CheckResult("disk", "good", observed)
