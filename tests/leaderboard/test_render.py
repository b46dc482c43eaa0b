"""The Markdown page: order, markers, and text from contestants that must stay text."""

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from segpt.errors import SegptError
from segpt.leaderboard.entry import Entry
from segpt.leaderboard.render import inert, render, tables
from segpt.report.sanitise import shown
from tests.leaderboard.entries import (
    HOSTILE,
    LARGE,
    SMALL,
    TEXT,
    TOKENS,
    baseline,
    chained,
    claim,
    line,
    record,
    verification,
)

PAGE = "# Title\n\n<!-- records -->\nold\n<!-- /records -->\n\nThe end.\n"
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def shown_tables(*entries: Entry) -> str:
    return tables([LARGE, SMALL, TOKENS], chained(*entries)[0])


def leaves(markdown: str) -> list[Token]:
    found = []
    for token in MARKDOWN.parse(markdown):
        found += token.children if token.type == "inline" and token.children else [token]
    return found


def test_the_line_of_each_kind_of_entry() -> None:
    made = record()
    page = shown_tables(
        made,
        claim(source="https://example.org/a(b), table 3", bytes=900_000),
        baseline(),
        verification(made),
    )
    assert [row for row in page.splitlines() if row.startswith(("| 1 ", "| 2 ", "| 3 "))] == [
        "| 1 | said | 1.1000 | — | 900,000 | — | — | Grace | 2025-02-01 | claimed "
        "| [JSON](records/0002-said.json), [source](<https://example.org/a(b)>) |",
        "| 2 | tiny | 1.7312 | 1581.9776 | 987,654 | 1,234,567 | frozen | Ada | 2025-03-01 "
        "| checked | [JSON](records/0001-tiny.json) |",
        "| 3 | xz | 2.4000 | 2.4000 | — | — | xz 5\u2060.4\u2060.1 |  | 2025-01-01 | claimed "
        "| [JSON](records/0003-xz.json) |",
    ]


def test_a_figure_is_in_units_of_its_track() -> None:
    page = shown_tables(claim(track="tokens", value=668_467_200.0, parameters=1_999_999))
    assert "| Training tokens |" in page
    assert "| 1 | said | 668,467,200 | — | — | 1,999,999 |" in page


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"kind": "low_rank", "rank": 8}, "low_rank"),
        ({"kind": "sgd", "ngram": {"keep": 0.9}}, "sgd+ngram"),
        ({"kind": "frozen", "ngram": {"keep": 0.9}}, "frozen+ngram"),
    ],
)
def test_a_policy_and_its_mixture_are_shown(policy: dict[str, Any], words: str) -> None:
    page = shown_tables(record(scores=[line(policy=policy)]))
    assert f"| {inert(words)} |" in page
    assert words in "".join(leaf.content for leaf in leaves(page))
    assert f"Policies: {', '.join(LARGE.policies)}." in page


def test_entries_stand_under_their_track_from_the_best_figure_on() -> None:
    entries = [
        record("worst", 7000.0),
        record("best", 5000.0),
        record("elsewhere", 1000.0, "small"),
        record("tied-a", 6000.0),
        record("tied-b", 6000.0),
    ]
    links, _ = chained(*entries)
    pages = set()
    for seed in range(5):
        random.Random(seed).shuffle(links)
        pages.add(render(PAGE, [LARGE, SMALL], links))
    (page,) = pages
    words = ["### large", "best", "tied-a", "tied-b", "worst", "### small", "elsewhere"]
    places = [page.index(word) for word in words]
    assert places == sorted(places)
    assert page.count("| 1 |") == 2


def test_the_limits_of_a_track_are_shown() -> None:
    page = shown_tables()
    assert "Artifact: at most 1,000 bytes. Policies: frozen. Scoring: at most 60 seconds." in page
    assert f"Text: `{TEXT}`." in page
    assert "A new record: lower bits per byte, over 1 run." in page
    assert "Parameters: at most 2,000,000. A new record: fewer training tokens" in page
    assert "Files of a million bytes.\n" in page
    assert page.count("No entries yet.") == 3


def test_rendering_keeps_the_page_around_the_markers_and_settles_at_once() -> None:
    links, _ = chained(record())
    once = render(PAGE, [LARGE], links)
    assert once.startswith("# Title\n\n<!-- records -->\n")
    assert once.endswith("\n<!-- /records -->\n\nThe end.\n")
    assert "old" not in once
    assert render(once, [LARGE], links) == once


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


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_inert(text: str) -> None:
    def page(words: str) -> str:
        entries = (
            record(authors=(words[:100],)),
            claim(authors=("Ada", words[:100])),
            baseline(program=words[:100], version=words[:100]),
        )
        return render(PAGE, [LARGE], chained(*entries)[0])

    hostile = page(text)
    assert [leaf.type for leaf in leaves(hostile)] == [leaf.type for leaf in leaves(page("Ada"))]
    assert "<script" not in hostile
    assert render(hostile, [LARGE], []) == render(PAGE, [LARGE], [])


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=40))
def test_any_text_stays_the_text_of_one_cell(text: str) -> None:
    tokens = leaves(f"| a | b |\n| --- | --- |\n| x{inert(text)} | y |\n")
    cells = list(itertools.dropwhile(lambda token: token.type != "tbody_open", tokens))
    assert {token.type for token in cells if token.content} == {"text"}
    found = "".join(token.content for token in cells).removesuffix("y").replace("\u2060", "")
    assert found.split() == f"x{' '.join(shown(text).split())}".split()


@pytest.mark.parametrize(
    "text", ["https://evil.example/x", "www.evil.example", "eve@evil.example", "ftp://a.b"]
)
def test_addresses_are_broken_so_that_nothing_links_them(text: str) -> None:
    rendered = MARKDOWN.renderInline(inert(text))
    assert rendered.replace("\u2060", "") == text
    for start in ("://", "www.", "eve@"):
        assert start not in rendered


def test_a_name_reads_as_it_was_written() -> None:
    for name in ("J. Doe, Jr.", "María-José Núñez", "李雷", "Søren Ægir"):
        assert inert(name) == name
