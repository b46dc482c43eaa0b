"""``segpt doctor``: what works and what does not, on machines that lack something."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segpt.doctor.doctor import EXTRAS, REQUIRED, WORK

Run = Callable[..., Any]


@pytest.fixture
def run(anew: Run) -> Run:
    """New processes: what is missing is missing from their start."""
    return anew


def lacking(place: Path, *modules: str) -> dict[str, str]:
    """An environment in which no process can import the modules."""
    lines = [f"sys.modules[{module!r}] = None" for module in modules]
    place.mkdir()
    (place / "sitecustomize.py").write_text("\n".join(["import sys", *lines]))
    return {"PYTHONPATH": str(place)}


def broken(place: Path, module: str, source: str) -> dict[str, str]:
    """An environment in which a module is there but does not work."""
    place.mkdir()
    (place / f"{module}.py").write_text(source)
    return {"PYTHONPATH": str(place)}


@pytest.mark.slow
def checks(done: Any, code: int) -> dict[str, dict[str, str]]:
    assert done.code == code, (done.stdout, done.stderr)
    found = json.loads(done.stdout)
    assert found["healthy"] == (code == 0)
    named: dict[str, dict[str, str]] = found["checks"]
    return named


@pytest.mark.slow
def test_a_machine_that_can_run_these_tests_is_well(tmp_path: Path, run: Run) -> None:
    found = checks(run(tmp_path, "doctor", "--json"), 0)
    assert all(found[name]["state"] == "good" for name in REQUIRED)
    assert found["training"]["state"] == found["writing"]["state"] == "good"
    assert "forward and backward on cpu: loss" in found["training"]["found"]
    assert "cpu: torch, within" in found["kernel attention"]["found"]
    assert found["kernels"]["state"] == "good"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_optional_packages_are_not_missed(tmp_path: Path, run: Run) -> None:
    place = tmp_path / "site"
    modules = [extra.module for extra in EXTRAS.values()]
    found = checks(run(tmp_path, "doctor", "--json", **lacking(place, *modules)), 0)
    for name, extra in EXTRAS.items():
        assert found[name]["state"] == "optional"
        assert found[name]["advice"] is None
        assert extra.purpose in found[name]["found"]
        assert f"pip install 'segpt[{extra.extra}]'" in found[name]["found"]


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["rich", "jinja2"])
def test_a_missing_package_is_named_with_what_to_do(tmp_path: Path, run: Run, missing: str) -> None:
    environment = lacking(tmp_path / "site", missing, "torch")
    done = run(tmp_path, "doctor", **environment)
    assert done.code == 1
    assert "Traceback" not in done.stdout + done.stderr
    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines() if line[:1].isalpha()]
    states = {row[1]: row[0] for row in rows if len(row) == 3}
    assert states[missing] == states["torch"] == "broken"
    assert states["click"] == states["brotli"] == "good"
    assert f"pip install --force-reinstall {missing}" in done.stdout
    assert "does not work here" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ImportError('libtorch_cpu.so: cannot open')", "libtorch_cpu.so: cannot open"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "SIGILL"),
        ("raise SystemExit(3)", "exit code 3"),
    ],
)
def test_a_torch_that_does_not_start_takes_nothing_with_it(
    tmp_path: Path, run: Run, source: str, reason: str
) -> None:
    environment = broken(tmp_path / "site", "torch", source)
    found = checks(run(tmp_path, "doctor", "--json", **environment), 1)
    assert found["torch"]["state"] == "broken"
    assert reason in found["torch"]["found"]
    assert "--force-reinstall torch" in found["torch"]["advice"]
    assert not found.keys() & (WORK.keys() - {"torch"})
    assert found["disk"]["state"] in ("good", "advice")


@pytest.mark.slow
def test_what_dies_in_one_check_is_told_and_the_others_go_on(tmp_path: Path, run: Run) -> None:
    """Whatever starts a compiler there is killed for it."""
    environment = broken(
        tmp_path / "site",
        "sitecustomize",
        "import os, signal, sys\n"
        "def audit(event, arguments):\n"
        "    if event == 'subprocess.Popen' and 'doctor.worker' in ' '.join(sys.orig_argv):\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "sys.addaudithook(audit)\n",
    )
    found = checks(run(tmp_path, "doctor", "--json", **environment), 0)
    assert found["compiler"]["state"] == "advice"
    assert found["compiler"]["found"] == "it ended with SIGSEGV"
    assert found["training"]["state"] == "good"


@pytest.mark.slow
def test_a_machine_without_compilers(tmp_path: Path, run: Run) -> None:
    (tmp_path / "bin").mkdir()
    environment = {"PATH": str(tmp_path / "bin"), "CC": "", "CXX": ""}
    found = checks(run(tmp_path, "doctor", "--json", **environment), 0)
    assert found["compiler"]["state"] in ("optional", "advice")
    assert "no C++ compiler" in found["compiler"]["found"]


@pytest.mark.slow
def test_a_place_that_cannot_be_written_to_is_broken(tmp_path: Path, run: Run) -> None:
    (tmp_path / "runs").write_text("a file in the way")
    environment = lacking(tmp_path / "site", "torch")
    found = checks(run(tmp_path, "doctor", "--json", **environment), 1)
    assert found["writing"]["state"] == "broken"
    assert str(tmp_path / "runs") in found["writing"]["found"]
    assert (tmp_path / "runs").read_text() == "a file in the way"
