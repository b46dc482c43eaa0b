"""The action, the workflows and the hook: what they run exists, and works on files that are odd."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
ACTION = GITHUB / "actions" / "artifact-size" / "action.yml"
SMALL = ROOT / "tests" / "artifact" / "format-1.segpt"
SIZE = SMALL.stat().st_size


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(path: Path) -> list[dict[str, Any]]:
    table = read(path)
    if "runs" in table:
        return list(table["runs"]["steps"])
    return [step for job in table["jobs"].values() for step in job.get("steps", ())]


WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", [ACTION, *WORKFLOWS], ids=lambda p: p.name)
def test_scripts_are_sound_and_nothing_is_pasted_into_them(path: Path) -> None:
    for step in steps(path):
        assert ("run" in step) != ("uses" in step)
        script = step.get("run", "")
        assert "inputs." not in script, "an input reaches a script through its environment"
        assert "github." not in script
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        used = step.get("uses", "")
        if used.startswith("./"):
            assert (ROOT / used / "action.yml").exists()
        elif used:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", used), used


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_workflows_may_only_read_and_call_what_is_there(path: Path) -> None:
    table = read(path)
    assert table["permissions"] == {"contents": "read"}
    for job in table["jobs"].values():
        called = job.get("uses")
        if called is None:
            assert job["timeout-minutes"] <= 60
            continue
        inputs = read(ROOT / called)[True]["workflow_call"]["inputs"]  # YAML 1.1 reads `on` so
        required = {name for name, about in inputs.items() if about.get("required")}
        assert required <= job["with"].keys() <= inputs.keys()


def test_the_workflow_passes_on_what_the_action_takes() -> None:
    passed = next(step for step in steps(WORKFLOWS[0]) if step["uses"].startswith("./"))["with"]
    inputs = read(ACTION)["inputs"]
    assert passed.keys() <= inputs.keys()
    assert {name for name, about in inputs.items() if about.get("required")} <= passed.keys()


def check(place: Path, files: str, budget: int) -> "subprocess.CompletedProcess[str]":
    """Run the last step of the action, as a runner does."""
    (place / "temp" / "segpt" / "bin").mkdir(parents=True, exist_ok=True)
    command = place / "temp" / "segpt" / "bin" / "segpt"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m segpt "$@"\n')
    command.chmod(0o755)
    last = steps(ACTION)[-1]
    assert last["env"].keys() == {"FILES", "BUDGET"}
    told = {"FILES": files, "BUDGET": str(budget), "RUNNER_TEMP": str(place / "temp")}
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", last["run"]],
        cwd=place,
        env=os.environ | told | {"CI": "true", "GITHUB_ACTIONS": "true", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("a.segpt", "out/b c.segpt", "out/deep/d.segpt", "-o.segpt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SMALL, tmp_path / name)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "budget", "code", "lines"),
    [
        ("a.segpt", SIZE, 0, ["a.segpt"]),
        ("a.segpt\nout/*.segpt\n", SIZE, 0, ["a.segpt", "out/b c.segpt"]),
        ("out/**/*.segpt", SIZE, 0, ["out/b c.segpt", "out/deep/d.segpt"]),
        ("*.segpt", SIZE, 0, ["-o.segpt", "a.segpt"]),
        ("out/b c.segpt", SIZE - 1, 1, ["out/b c.segpt"]),
        ("a.segpt\nnone-*.segpt", SIZE, 2, []),
        ("$(touch planted)\n", SIZE, 2, []),
    ],
)
def test_the_action_checks_every_file(
    repository: Path, files: str, budget: int, code: int, lines: list[str]
) -> None:
    done = check(repository, files, budget)
    assert done.returncode == code, done.stderr
    shown = [line.split(":")[0] for line in done.stdout.splitlines() if not line.startswith("::")]
    assert shown == lines
    assert not (repository / "planted").exists()
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("::")]
    assert len(said) == (code > 0)


def test_the_action_refuses_to_guess_what_to_install(tmp_path: Path) -> None:
    install = steps(ACTION)[-2]
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", install["run"]],
        env=os.environ | {"SEGPT": "", "BESIDE": str(tmp_path), "RUNNER_TEMP": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "::error::there is no segpt beside this action" in done.stdout
    assert (ACTION.parent / "../../.." / "segpt" / "__main__.py").exists()


NEEDED = """
import sys, json
from segpt.__main__ import main
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
found = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
sys.stderr.write(" ".join(sorted(found)))
"""


def test_inspecting_needs_only_the_packages_that_the_action_installs() -> None:
    (listed,) = re.findall(r"install --quiet (brotli .*)$", steps(ACTION)[-2]["run"], re.MULTILINE)
    brings = {"rich": {"rich", "markdown_it", "mdurl", "pygments"}, "PyYAML": {"yaml", "_yaml"}}
    allowed = {name for package in listed.split() for name in brings.get(package, {package})}
    done = subprocess.run(
        [sys.executable, "-c", NEEDED, "inspect", "--budget", str(SIZE), str(SMALL)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    started = {"segpt", "_brotli", "sitecustomize", "usercustomize", "_distutils_hack"}
    foreign = {name for name in done.stderr.split() if not name.startswith("__")}
    assert "torch" not in foreign
    assert foreign - started <= allowed


@pytest.mark.slow
def test_the_hook_checks_the_files_that_it_is_given(repository: Path) -> None:
    (hook,) = read(ROOT / ".pre-commit-hooks.yaml")
    assert hook["id"] == "segpt-artifact-size"
    assert hook["entry"] == "segpt inspect --budget"
    assert re.search(hook["files"], "out/deep/d.segpt")
    assert not re.search(hook["files"], "model.segpt.documents")
    for budget, code in ((str(SIZE), 0), (str(SIZE - 1), 1)):
        words = [*hook["entry"].split()[1:], budget, "a.segpt", "out/b c.segpt"]
        done = subprocess.run(
            [sys.executable, "-m", "segpt", *words],
            cwd=repository,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code
        assert len(done.stdout.splitlines()) == 2
