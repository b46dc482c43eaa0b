"""The page as HTML: one file that loads nothing, in which text from strangers stays text."""

import base64
import dataclasses
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from segpt.leaderboard import page
from segpt.leaderboard.entry import Chain, Entry, Run
from segpt.leaderboard.track import Track
from segpt.report.sanitise import pieces, shown
from tests.leaderboard.entries import (
    HOSTILE,
    LARGE,
    SMALL,
    TOKENS,
    baseline,
    chained,
    claim,
    line,
    record,
    verification,
)

ROOT = Path(__file__).resolve().parents[2]
VOID = {"meta", "input", "link", "img", "br"}
REL = "noopener noreferrer nofollow ugc"

Attributes = tuple[tuple[str, str | None], ...]


class Parsed(HTMLParser):
    """The elements of a page in order, its text, and the text of its style and script."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, Attributes]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.raw: dict[str, list[str]] = {"style": [], "script": []}
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.raw:
            self.raw[self.open[-1]].append(data)
        else:
            self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data!r}")

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def values(self, *names: str) -> list[str]:
        """The values of all attributes of these names."""
        return [v or "" for _, attrs in self.elements for name, v in attrs if name in names]


def html_of(*entries: Entry, tracks: tuple[Track, ...] = (LARGE, SMALL, TOKENS)) -> str:
    return page.render(tracks, *chained(*entries))


def some() -> list[Entry]:
    """Every kind of entry."""
    best = record("best", 5000.0, bytes=900_000, about="About it.")
    seeds = tuple(
        Run(
            artifact=letter * 64,
            bytes=800_000,
            seed=seed,
            scores=(
                line(5600.0 + seed, conditions={"context": 128, "nats": seed}),
                line(5500.0 + seed, "sgd", conditions={"context": 256, "nats": seed}),
            ),
        )
        for seed, letter in ((1, "b"), (2, "c"))
    )
    return [
        baseline(),
        best,
        record("several", bytes=800_000, bpb=1.586, runs=seeds),
        record("large-one", 7000.0),
        record("tiny-one", track="small"),
        claim(bytes=850_000, values=(1.09, 1.11), source="https://example.org/1, figure 2"),
        claim("few-tokens", 668_467_200.0, "tokens", parameters=1_000_000),
        claim("more-tokens", 747_110_400.0, "tokens", parameters=900_000),
        verification(best),
        verification(best, "again-and-again", state="reproduced", bpb=best.bpb * 1.000001),
    ]


def test_the_page_of_every_kind_of_entry() -> None:
    parsed = Parsed(html_of(*some()))
    for words in (
        "reproduced",
        "1.586",
        "668,467,200",
        "With artifact",
        "xz 5.4.1",
        "About it.",
        "It advanced its track when it was added",
        "segpt leaderboard verify large-one",
        "1.0900, 1.1100",
        "+1.0e-06",
        "the 5,000 bytes that it was scored on",
        "sgd, seed 2",
    ):
        assert words in parsed.text, words
    assert ("a", (("href", "https://example.org/1"), ("rel", REL))) in parsed.elements


def test_nothing_is_loaded_from_elsewhere() -> None:
    parsed = Parsed(html_of(*some()))
    for name in ("src", "srcset", "action", "formaction", "data", "poster", "background", "ping"):
        assert parsed.values(name) == []
    for link in parsed.values("href", "xlink:href"):
        assert re.fullmatch(
            r"#[a-z0-9-]+|records/\d{4,}-[a-z0-9-]+\.json|https://example\.org/1", link
        )
    code = "".join(parsed.raw["style"] + parsed.raw["script"])
    for word in ("url(", "@import", "http:", "https:", "fetch", "XMLHttp", "import(", "innerHTML"):
        assert word not in code
    assert {tag for tag, _ in parsed.elements}.isdisjoint(
        {
            "iframe",
            "object",
            "embed",
            "link",
            "img",
            "base",
            "form",
            "video",
            "audio",
            "image",
            "use",
        }
    )


def test_the_policy_allows_the_page_s_own_style_and_script_alone() -> None:
    parsed = Parsed(html_of(*some()))
    (policy,) = [
        value or ""
        for _, attrs in parsed.elements
        if ("http-equiv", "Content-Security-Policy") in attrs
        for name, value in attrs
        if name == "content"
    ]
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert directives["default-src"] == directives["base-uri"] == "'none'"
    for kind in ("style", "script"):
        (text,) = parsed.raw[kind]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert directives[f"{kind}-src"] == f"'sha256-{digest}'"
    assert parsed.values("style") == []
    assert [
        name for _, attrs in parsed.elements for name, _ in attrs if name.startswith("on")
    ] == []


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_colour_of_text_can_be_read(scheme: int) -> None:
    place = ROOT / "segpt" / "leaderboard" / "templates" / "leaderboard.css"
    style = place.read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", blocks[scheme]))
    for ink in ("ink", "soft", "link", "claimed", "checked", "reproduced", "elsewhere"):
        for ground in ("page", "raised"):
            high, low = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


def test_ids_are_unique_and_all_that_names_one_finds_it() -> None:
    parsed = Parsed(html_of(*some()))
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    named = parsed.values("aria-labelledby", "aria-describedby", "for")
    assert {word for value in named for word in value.split()} <= set(ids)
    assert {link[1:] for link in parsed.values("href") if link.startswith("#")} <= set(ids)


def test_tables_are_marked_up_as_such() -> None:
    parsed = Parsed(html_of(*some()))
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("table") == tags.count("caption") > 6
    assert all("scope" in dict(attrs) for tag, attrs in parsed.elements if tag == "th")
    assert [tags.count(tag) for tag in ("h1", "main", "nav", "header", "footer")] == [1] * 5
    assert parsed.values("aria-sort") == ["ascending"] * 3


def test_the_points_of_a_chart_are_the_rows_of_a_table() -> None:
    html = html_of(*some())
    (chart,) = re.findall(r'<section id="track-large".*?<figure.*?</figure>', html, re.DOTALL)
    (table,) = re.findall(r"Size against bits per byte on large.*?</table>", html, re.DOTALL)
    for name, size, front in (
        ("best", "900,000", "no"),
        ("several", "800,000", "yes"),
        ("large-one", "987,654", "no"),
        ("said", "850,000", "yes"),
    ):
        assert f"<title>{name}: " in chart
        (row,) = re.findall(rf'<tr><th scope="row">{name}</th>.*', table)
        assert f">{size}<" in row
        assert row.endswith(f"<td>{front}</td></tr>")
    assert ">xz</text>" in chart


def test_a_board_without_entries() -> None:
    html = html_of()
    assert html.count("No entries yet.") == 3
    assert "The chain has no entries yet." in html
    assert "<figure" not in html
    assert "No entries" not in page.render([], [], None)


def test_the_head_of_the_chain_is_at_the_end() -> None:
    links, chain = chained(*some())
    assert isinstance(chain, Chain)
    html = page.render([LARGE, SMALL, TOKENS], links, chain)
    assert f"segpt leaderboard check --head {chain.head}" in html
    assert f"sha256sum leaderboard/records/{links[-1].file}" in html
    assert html.index("</main>") < html.index(chain.head)


def test_entries_stand_in_order_so_that_no_script_is_needed() -> None:
    html = html_of(*some())
    (table,) = re.findall(r"Entries of large</caption>.*?</section>", html, re.DOTALL)
    names = re.findall(r'class="name" data-sort="([a-z-]+)"', table)
    assert names == ["said", "best", "several", "large-one", "xz"]
    assert table.count("<details>") == 5
    assert "hidden" not in Parsed(html).values("hidden")


def turned(value: Any) -> Any:
    """The same with every table turned around."""
    if isinstance(value, Mapping):
        return {key: turned(value[key]) for key in reversed(value)}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(turned(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: turned(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def test_the_bytes_do_not_depend_on_the_order_of_tables_and_links() -> None:
    links, chain = chained(*some())
    around = [turned(link) for link in reversed(links)]
    tracks = [LARGE, SMALL, TOKENS]
    assert page.render(tracks, around, chain) == page.render(tracks, links, chain)


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_hashes_locale_or_clock() -> None:
    code = (
        "import locale, sys; locale.setlocale(locale.LC_ALL, '')\n"
        "from tests.leaderboard.test_page import html_of, some\n"
        "sys.stdout.buffer.write(html_of(*some()).encode())\n"
    )
    pages = set()
    for seed, name, zone in (("1", "C.UTF-8", "UTC"), ("2", "C", "Asia/Tokyo")):
        environment = os.environ | {"PYTHONHASHSEED": seed, "LC_ALL": name, "TZ": zone}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True
        )
        pages.add(done.stdout)
    assert pages == {html_of(*some()).encode()}


def test_rendering_needs_no_torch() -> None:
    code = "import sys, segpt.leaderboard.page; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def hostile_entries(text: str) -> list[Entry]:
    """``text`` wherever an entry can hold one."""
    foreign = record(
        authors=(text[:100], text[:100]),
        about=text[:2000],
        recipe=text[:2000],
        segpt=text,
        origin={text: text},
        sections={text: 987_654},
        scores=[
            line(
                policy={"kind": f"x{text}", "text": text},
                conditions={text: text, "list": [text], "table": {text: {text: {text: text}}}},
            )
        ],
    )
    return [
        foreign,
        claim(authors=(text[:100],), about=text[:2000], source=text[:500]),
        baseline(program=text[:100], version=text[:100]),
        verification(foreign, authors=(text[:100],), conditions={text: [text, None, True, 1.5]}),
    ]


@pytest.fixture(scope="module")
def plain() -> Parsed:
    return Parsed(html_of(*hostile_entries("plain")))


@pytest.mark.slow
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_comes_back_as_text(text: str, plain: Parsed) -> None:
    parsed = Parsed(html_of(*hostile_entries(text)))
    links = [link for _, link in pieces(shown(text[:500])) if link]
    ours = [(tag, attrs) for tag, attrs in parsed.elements if ("rel", REL) not in attrs]
    assert ours == plain.elements
    assert [v for v in parsed.values("href") if v in links] == links
    assert parsed.text.count(shown(text)) >= 6
    assert parsed.text.count(shown(text[:100])) >= 15
    assert parsed.raw == plain.raw


@pytest.mark.parametrize(
    "change",
    [
        lambda: record(scores=[line(conditions={"deep": deep(3)})]),
        lambda: record(scores=[line(conditions={str(i): i for i in range(500)})]),
        lambda: record(scores=[line(conditions={"n": 2**53, "m": -1, "f": 1e-300})]),
        lambda: record(sections={f"s{i}": i for i in range(300)}),
        lambda: record(sections={"none": 0}),
        lambda: record(sections={}, origin={}),
    ],
)
def test_unusual_shapes_are_shown(change: Callable[[], Entry]) -> None:
    Parsed(html_of(change()))


def deep(levels: int) -> Any:
    value: Any = "end"
    for _ in range(levels):
        value = {"in": [value]}
    return value
