"""What ``doctor`` says: by the numbers of the machine, and of the project's own requirements."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from segpt.doctor import doctor, worker
from segpt.doctor.doctor import (
    DEEP,
    EXTRAS,
    REQUIRED,
    WORK,
    CheckResult,
    examine,
    fitting,
    healthy,
    numbers,
    plain,
)
from segpt.machine import memory, processors

ROOT = Path(__file__).resolve().parents[2]
GOOD, BROKEN = CheckResult("a", "good", "1"), CheckResult("b", "broken", "none", "get one")


def requirement(line: str) -> tuple[str, str]:
    name, least = re.split(">=", line.split(",")[0])
    return name, least


def test_the_packages_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = dict(map(requirement, project["dependencies"]))
    assert {n: numbers(v) for n, v in wanted.items()} == {n: r.least for n, r in REQUIRED.items()}
    unfit = {n: f"!={r.unfit}" for n, r in REQUIRED.items() if r.unfit}
    for name, line in unfit.items():
        assert any(d.startswith(name) and line in d for d in project["dependencies"])
    optional = project["optional-dependencies"]
    found = {extra: requirement(lines[0])[0] for extra, lines in optional.items()}
    assert {e.extra: name for name, e in EXTRAS.items()} == found
    least = tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    assert sys.version_info[:2] >= least == (3, 11)


def test_every_check_of_the_other_process_is_known_to_it() -> None:
    assert {*WORK, *DEEP} == worker.CHECKS.keys()


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("2.13.0+cpu", (2, 13, 0)),
        ("2.14.0.dev20260101+cu130", (2, 14, 0)),
        ("0.2.1rc1", (0, 2, 1)),
        ("5", (5,)),
        ("0 (no metadata)", (0,)),
        ("unknown", ()),
    ],
)
def test_the_numbers_of_a_version(version: str, expected: tuple[int, ...]) -> None:
    assert numbers(version) == expected


@pytest.mark.parametrize(
    ("name", "version", "state"),
    [
        ("torch", "2.10.1", "broken"),
        ("torch", "2.11.0+cpu", "good"),
        ("sentencepiece", "0.2.1", "broken"),
        ("sentencepiece", "0.2.0", "good"),
        ("safetensors", "0.4.2", "broken"),
    ],
)
def test_an_unfit_version_says_which_one_fits(name: str, version: str, state: str) -> None:
    found = fitting(name, version)
    assert (found.name, found.state) == (name, state)
    if state == "broken":
        assert found.advice is not None
        assert found.advice.startswith(f"pip install '{name}>=")
    else:
        assert found.advice is None


def test_limits_of_a_container_count(tmp_path: Path) -> None:
    available, total = memory(tmp_path)
    assert 0 < available <= total
    assert 1 <= processors(tmp_path) <= (os.cpu_count() or 1)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert memory(tmp_path) == (600_000, 1_000_000)
    assert processors(tmp_path) == 1
    for name in ("memory.max", "cpu.max"):
        (tmp_path / name).write_text("max 100000\n")
    assert memory(tmp_path)[1] == total
    assert processors(tmp_path) == processors(tmp_path / "nowhere")


def test_more_threads_than_processors_are_too_many() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(processors())
        assert worker.check_threads().state == "good"
        torch.set_num_threads(processors() + 1)
        found = worker.check_threads()
    finally:
        torch.set_num_threads(before)
    assert found.state == "advice"
    assert found.advice == f"export OMP_NUM_THREADS={processors()}"


def test_other_programs_on_the_cores_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {}
    for busy in (0.1, 8.0 * processors()):
        monkeypatch.setattr(os, "getloadavg", lambda busy=busy: (busy, 0.0, 0.0))
        (load,) = doctor._load()
        states[busy] = load.state
        assert f"{busy:.1f} programs wanted" in load.found
    assert list(states.values()) == ["good", "advice"]
    monkeypatch.delattr(os, "getloadavg")
    assert not list(doctor._load())


def test_one_broken_check_is_enough() -> None:
    assert healthy([GOOD, CheckResult("c", "optional", "-"), CheckResult("d", "advice", "-", "-")])
    assert not healthy([GOOD, BROKEN])
    assert plain([GOOD, BROKEN]) == {
        "healthy": False,
        "checks": {
            "a": {"state": "good", "found": "1", "advice": None},
            "b": {"state": "broken", "found": "none", "advice": "get one"},
        },
    }


@pytest.mark.slow
def test_findings_are_unique_and_leave_nothing_behind(tmp_path: Path) -> None:
    found = list(examine(tmp_path / "runs" / "deeper"))
    assert len({f.name for f in found}) == len(found)
    assert {*REQUIRED, *EXTRAS, *WORK, "segpt", "python"} < {f.name for f in found}
    assert all((f.advice is None) == (f.state in ("good", "optional")) for f in found)
    assert all("\n" not in f.found and "\n" not in (f.advice or "") for f in found)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.campaign
def test_a_small_model_compiles() -> None:
    """Or the process says why not; either way nothing but this check is concerned."""
    done = subprocess.run(
        [sys.executable, "-m", "segpt.doctor.worker", "compile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "of eager" in done.stdout
