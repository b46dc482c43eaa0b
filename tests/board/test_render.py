"""The page: order, markers, and text from contestants that must stay text."""

import dataclasses
import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from segpt.board.render import inert, render, tables
from segpt.errors import SegptError
from segpt.spec.track import Record, ScoreLine, Track

PAGE = "# Title\n\n<!-- records -->\nold\n<!-- /records -->\n\nThe end.\n"
LARGE = Track(name="large", about="Files of\na million bytes.", bytes=1_000_000)
SMALL = Track(
    name="small", about="Tiny.", bytes=1000, seconds=60.0, text="d" * 64, policies=("frozen",)
)
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])

HOSTILE = [
    "Eve | 0.0001 | frozen |",
    "`code`",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[me](javascript:alert(1))",
    "![pixel](https://evil.example/p.png)",
    "a\n\n# Heading\n| x | y |",
    "a\r\n<!-- /records -->",
    "\\|\\",
    "*bold* _under_ ~~struck~~ **x**",
    "&lt;b&gt; &#60;",
    "https://evil.example www.evil.example eve@evil.example <https://evil.example>",
    "\u202eright to left\u2028line",
    "\x1b[31mred",
]


def record(
    name: str = "tiny", nats: float = 6000.0, track: str = "large", author: str = "Ada"
) -> Record:
    bpb = nats / (math.log(2) * 5000)
    line = ScoreLine(
        policy={"kind": "frozen"},
        bpb=bpb,
        nats=nats,
        bytes=5000,
        tokens=2000,
        seconds=1.0,
        model="a" * 64,
        text="b" * 64,
        denominator="bytes",
        conditions={"causal": "by construction"},
    )
    return Record(
        name=name,
        track=track,
        authors=(author,),
        date="2025-03-01",
        artifact="a" * 64,
        bytes=987_654,
        parameters=1_234_567,
        bpb=bpb,
        scores=(line,),
        origin={},
        segpt="0.1.0",
    )


def leaves(markdown: str) -> list[Token]:
    found = []
    for token in MARKDOWN.parse(markdown):
        found += token.children if token.type == "inline" and token.children else [token]
    return found


def test_the_line_of_a_record() -> None:
    rows = [r for r in tables([LARGE], [record()]).splitlines() if r.startswith("| 1 ")]
    assert rows == [
        "| 1 | tiny | 1.7312 | frozen | 987,654 | 1,234,567 | Ada | 2025-03-01 | `bbbbbbbb` "
        "| `aaaaaaaaaaaa` | claimed | [JSON](records/2025-03-01-tiny.json) |"
    ]


@pytest.mark.parametrize(
    ("policy", "shown"),
    [
        ({"kind": "low_rank", "rank": 8}, "low_rank"),
        ({"kind": "sgd", "ngram": {"keep": 0.9}}, "sgd+ngram"),
        ({"kind": "frozen", "ngram": {"keep": 0.9}}, "frozen+ngram"),
    ],
)
def test_a_policy_and_its_mixture_are_shown(policy: dict[str, Any], shown: str) -> None:
    line = dataclasses.replace(record().scores[0], policy=policy)
    page = tables([LARGE], [dataclasses.replace(record(), scores=(line,))])
    assert f"| {inert(shown)} |" in page
    assert shown in "".join(leaf.content for leaf in leaves(page))
    assert f"Policies: {', '.join(LARGE.policies)}." in page
    assert "in_place, ngram" in page


def test_records_stand_under_their_track_from_the_lowest_figure_up() -> None:
    records = [
        record("worst", 7000.0),
        record("best", 5000.0),
        record("elsewhere", 1000.0, "small"),
        record("tied-b", 6000.0),
        record("tied-a", 6000.0),
    ]
    pages = set()
    for seed in range(5):
        random.Random(seed).shuffle(records)
        pages.add(render(PAGE, [SMALL, LARGE] if seed % 2 else [LARGE, SMALL], records))
    (page,) = pages
    places = [
        page.index(s) for s in ("### large", "best", "tied-a", "tied-b", "worst", "### small")
    ]
    assert places == sorted(places)
    assert page.index("elsewhere") > places[-1]
    assert page.count("| 1 |") == 2


def test_the_limits_of_a_track_are_shown() -> None:
    shown = tables([SMALL, LARGE], [])
    assert f"at most 1,000. Policies: frozen. Seconds: at most 60. Text: `{'d' * 64}`." in shown
    assert "Files of a million bytes.\n" in shown
    assert shown.count("No records yet.") == 2


def test_rendering_keeps_the_page_around_the_markers_and_settles_at_once() -> None:
    once = render(PAGE, [LARGE], [record()])
    assert once.startswith("# Title\n\n<!-- records -->\n")
    assert once.endswith("\n<!-- /records -->\n\nThe end.\n")
    assert "old" not in once
    assert render(once, [LARGE], [record()]) == once


@pytest.mark.parametrize(
    "page",
    [
        "",
        "<!-- records -->",
        "<!-- /records --> <!-- records -->",
        PAGE + "<!-- records -->",
        PAGE + PAGE,
    ],
)
def test_a_page_without_one_pair_of_markers_is_refused(page: str) -> None:
    with pytest.raises(SegptError, match="the page needs one line <!-- records -->"):
        render(page, [LARGE], [])


@pytest.mark.parametrize("author", HOSTILE)
def test_hostile_authors_are_inert(author: str) -> None:
    page = render(PAGE, [LARGE], [record(author=author[:100])])
    plain = render(PAGE, [LARGE], [record(author="Ada")])
    shape = [token.type for token in leaves(plain)]
    assert [token.type for token in leaves(page)] == shape
    assert "<script" not in page
    assert render(page, [LARGE], []) == render(PAGE, [LARGE], [])


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=40))
def test_any_text_stays_the_text_of_one_cell(text: str) -> None:
    tokens = leaves(f"| a | b |\n| --- | --- |\n| x{inert(text)} | y |\n")
    cells = list(itertools.dropwhile(lambda token: token.type != "tbody_open", tokens))
    assert {token.type for token in cells if token.content} == {"text"}
    printable = "".join(c if c.isprintable() else " " for c in f"x{text}")
    shown = "".join(token.content for token in cells).removesuffix("y").replace("\u2060", "")
    assert shown.split() == f"x{' '.join(printable[1:].split())}".replace("\u2060", "").split()


@pytest.mark.parametrize(
    "text", ["https://evil.example/x", "www.evil.example", "eve@evil.example", "ftp://a.b"]
)
def test_addresses_are_broken_so_that_nothing_links_them(text: str) -> None:
    shown = MARKDOWN.renderInline(inert(text))
    assert shown.replace("\u2060", "") == text
    for start in ("://", "www.", "eve@"):
        assert start not in shown


def test_a_name_reads_as_it_was_written() -> None:
    for name in ("J. Doe, Jr.", "María-José Núñez", "李雷", "Søren Ægir"):
        assert inert(name) == name
