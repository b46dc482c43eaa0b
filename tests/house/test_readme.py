"""What the documentation tells people to type exists."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from segpt.__main__ import load_commands
from segpt.config.base import fingerprint
from segpt.config.layout import parameters
from segpt.config.recipe import names, read_recipe
from tests import processes

ROOT = Path(__file__).resolve().parents[2]
DEMOS = {"demo", "demo256"}
DOCS = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))
PAGES = [
    *("README.md", ".github/CONTRIBUTING.md", "artifacts/README.md", "leaderboard/README.md"),
    *DOCS,
]


def lines(*pages: str) -> list[str]:
    found: list[str] = []
    for page in pages or PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
            found += [line.split("#")[0].strip() for line in block.splitlines()]
    return [line for line in found if line]


@pytest.mark.parametrize("line", sorted({line for line in lines() if "segpt " in line}))
def test_commands_and_flags_exist(line: str) -> None:
    words = shlex.split(line[line.index("segpt ") :])[1:]
    command: click.Command = load_commands().main
    context = click.Context(command)
    while isinstance(command, click.Group) and not (command.invoke_without_command and not words):
        found = command.get_command(context, words.pop(0))
        assert found is not None, line
        command = found
    known = {option for parameter in command.params for option in parameter.opts}
    assert {w.split("=")[0] for w in words if w.startswith("--")} <= known


@pytest.mark.slow
def test_a_score_can_be_checked_by_hand(tmp_path: Path) -> None:
    """What the page says about that runs as it is written, and the hashes agree."""
    text = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
    script = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    shutil.copy(ROOT / "artifacts" / "demo256-2.segpt", tmp_path / "model.segpt")
    held_out = (ROOT / "tests" / "artifacts" / "fixture.txt").read_bytes()[:200]
    (tmp_path / "text.txt").write_bytes(held_out)
    command = f'segpt() {{ {shlex.quote(sys.executable)} -m segpt "$@"; }}\n{script}'
    done = subprocess.run(
        ["bash", "-e", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "  audit, fresh_process: " in done.stdout
    assert "  proof: 200 bytes of text in " in done.stdout
    assert "VIOLATED" not in done.stdout
    first, second = re.findall(r"\b[0-9a-f]{64}(?=  (?:text\.txt|elsewhere))", done.stdout)
    assert first == second
    assert (tmp_path / "elsewhere" / "text.txt").read_bytes() == held_out


def settings_in_tables() -> list[tuple[str, ...]]:
    """The settings of each row of a table, those in backquotes with an equals sign."""
    found = []
    for page in DOCS:
        text = (ROOT / page).read_text(encoding="utf-8")
        for row in re.findall(r"^\|.*\|$", text, re.MULTILINE):
            spans = re.findall(r"`((?:model|train|quantize|score|adapt)\.[^`=]*=[^`]+)`", row)
            found += [tuple(spans)] * bool(spans)
    return found


@pytest.mark.slow
def test_settings_of_the_documentation_are_accepted() -> None:
    plain = fingerprint(read_recipe("demo256"))
    rows = settings_in_tables()
    assert len(rows) > 50
    alike = [row for row in rows if fingerprint(read_recipe("demo256", row)) == plain]
    # what the recipe has already is told like the rest
    assert len(alike) < 12, alike


@pytest.mark.slow
@pytest.mark.parametrize("line", sorted({line for line in lines(*DOCS) if "--dry-run" in line}))
def test_dry_runs_of_the_documentation_run(line: str, tmp_path: Path) -> None:
    words = shlex.split(line)
    assert words[0] == "segpt"
    done = processes.run(["-m", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "parameters: " in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_recipes_of_the_documentation_are_those_that_ship() -> None:
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in DOCS)
    told = re.findall(r"^\| `([\w-]+)` \| ([\d,]+) \|.*\| `([\w-]+)` \|$", text, re.MULTILINE)
    assert {name for row in told for name in (row[0], row[2])} == set(names()) - DEMOS
    for name, count, _ in told:
        assert f"{parameters(read_recipe(name).model):,}" == count


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in lines():
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE), line


def test_relative_links_lead_somewhere() -> None:
    for page in PAGES:
        place = ROOT / page
        for target in re.findall(r"\]\(([^)#]+)\)", place.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (place.parent / target).exists(), f"{page}: {target}"


def test_the_two_commands_come_first() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"```sh\nmake demo\nmake test\n```", text)
