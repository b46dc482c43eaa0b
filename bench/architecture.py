"""``python -m bench.architecture``: the picture of the rooms, from the import graph.

The floors are those of the import contract in ``pyproject.toml``; what a room is for is the first
line of its package, and what it uses is what its modules import. ``--check`` says whether the
committed picture is that of the code.
"""

import ast
import html
import textwrap
import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import grimp

from segpt.atomic import write_file

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"
FLOW = (
    ("Text", "prepare"),
    ("Tokens", "train"),
    ("Checkpoint", "quantize"),
    ("Quantized", "pack"),
    ("Artifact", "score"),
    ("Score", "record"),
    ("Record", "render"),
    ("Page", None),
)
_WIDTH, _MARGIN, _GAP = 980, 16, 10
_LINE = 15  # height of a line of text
_CHARACTER = 6.4  # width of one, on average
_BOLD = 8.4  # of a character of a name
_HEAD = 74  # height of the flow above the floors

_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328; }
.name { font-weight: 600; font-size: 13px; }
.uses { fill: #57606a; font-size: 11px; }
.room { fill: #f6f8fa; stroke: #d0d7de; }
.arrow { stroke: #57606a; fill: none; }
.page { fill: #ffffff; }
"""


@click.command()
@click.option("--check", is_flag=True, help="Only say whether the picture is up to date.")
def main(check: bool) -> None:
    """Draw the rooms of the library and what each of them uses."""
    drawing = picture(floors(), uses())
    if not check:
        write_file(PICTURE, drawing.encode())
    elif not PICTURE.is_file() or PICTURE.read_text(encoding="utf-8") != drawing:
        raise click.ClickException(
            f"{PICTURE.relative_to(ROOT)} is not that of the code; draw it: make architecture"
        )


def floors() -> list[list[str]]:
    """The rooms of each floor from the top down, as the import contract names them."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    (contract,) = (c for c in tool["importlinter"]["contracts"] if c["type"] == "layers")
    return [layer.split(" | ") for layer in contract["layers"]]


def uses() -> dict[str, set[str]]:
    """The rooms whose modules those of a room import, by its name."""
    graph = grimp.build_graph("segpt", "commands", cache_dir=None)
    used: dict[str, set[str]] = defaultdict(set)
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            if _room(module) != _room(imported):
                used[_room(module)].add(_room(imported))
    return dict(used)


def picture(rooms: list[list[str]], used: Mapping[str, set[str]]) -> str:
    """The picture as SVG; the same graph gives the same bytes."""
    parts, top = [_flow()], float(_HEAD)
    for floor in rooms:
        width = (_WIDTH - 2 * _MARGIN - _GAP * (len(floor) - 1)) / len(floor)
        texts = [_lines(room, used.get(room, set()), width) for room in floor]
        height = _LINE * max(map(len, texts)) + 14
        for place, lines in enumerate(texts):
            left = _MARGIN + place * (width + _GAP)
            parts.append(_box(left, top, width, height, lines))
        top += height + _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top:g}">\n'
        f"<title>The flow of segpt, and its rooms from the shell down to the errors</title>\n"
        f'<style>{_STYLE}</style>\n<rect class="page" width="{_WIDTH}" height="{top:g}"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _room(module: str) -> str:
    """The room of a module: a package of the library, one of its modules, or the shell."""
    return ".".join(module.split(".")[:2]) if module.startswith("segpt.") else module.split(".")[0]


def _lines(room: str, used: set[str], width: float) -> list[tuple[str, str]]:
    """The text of a room, each line with its class: its name, what it is for, what it uses."""
    most = int((width - 16) / _CHARACTER)
    names = sorted(name.removeprefix("segpt.") for name in used if name != "segpt")
    lines = [("name", room.removeprefix("segpt."))]
    lines += [("about", line) for line in textwrap.wrap(_about(room), most)]
    if names:
        lines += [("uses", line) for line in textwrap.wrap("uses " + ", ".join(names), most)]
    return lines


def _about(room: str) -> str:
    """The first sentence of a package or module."""
    place = ROOT.joinpath(*room.split("."))
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0].replace("``", "")


def _box(
    left: float, top: float, width: float, height: float, lines: Sequence[tuple[str, str]]
) -> str:
    size = f'width="{width:g}" height="{height:g}"'
    parts = [f'<rect class="room" x="{left:g}" y="{top:g}" {size} rx="6"/>']
    for number, (kind, line) in enumerate(lines, 1):
        place = f'x="{left + 8:g}" y="{top + 4 + number * _LINE:g}"'
        parts.append(f'<text class="{kind}" {place}>{html.escape(line)}</text>')
    return "\n".join(parts)


def _flow() -> str:
    """The values of the flow, and over each arrow between two the stage that makes the next."""
    step = (_WIDTH - 2 * _MARGIN) / (len(FLOW) - 0.5)
    parts = []
    for number, (value, stage) in enumerate(FLOW):
        left = _MARGIN + number * step
        parts.append(f'<text class="name" x="{left:g}" y="44">{value}</text>')
        if stage is None:
            continue
        begin, end = left + _BOLD * len(value) + 6, left + step - 6
        parts.append(
            f'<path class="arrow" d="M{begin:g} 40H{end:g}m-5 -4 5 4-5 4"/>'
            f'<text class="uses" x="{(begin + end) / 2:g}" y="28" text-anchor="middle">'
            f"{stage}</text>"
        )
    return "\n".join(parts)


if __name__ == "__main__":
    main()
