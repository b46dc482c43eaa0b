"""What the documentation tells people to type exists."""

import re
from pathlib import Path

import click
import pytest

from segpt.__main__ import load_commands

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", ".github/CONTRIBUTING.md", "artifacts/README.md", "leaderboard/README.md"]


def lines() -> list[str]:
    found: list[str] = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
            found += [line.split("#")[0].strip() for line in block.splitlines()]
    return [line for line in found if line]


@pytest.mark.parametrize("line", sorted({line for line in lines() if "segpt " in line}))
def test_commands_and_flags_exist(line: str) -> None:
    words = line[line.index("segpt ") :].split()[1:]
    command: click.Command = load_commands().main
    context = click.Context(command)
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None, line
        command = found
    known = {option for parameter in command.params for option in parameter.opts}
    assert {w.split("=")[0] for w in words if w.startswith("--")} <= known


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
