"""What the documentation tells people to type exists."""

import re
import shlex
from pathlib import Path

import click
import pytest

from segpt.__main__ import load_commands
from segpt.config.base import fingerprint
from segpt.config.layout import parameters
from segpt.config.recipe import names, read_recipe

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
