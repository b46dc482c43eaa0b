"""What hides in a text is spelled, what reads well is kept, and few addresses are links."""

import unicodedata

import pytest

from segpt.report.sanitise import LONGEST, pieces, shown
from tests.leaderboard.entries import HOSTILE


@pytest.mark.parametrize(
    "text",
    [
        "J. Doe, Jr.",
        "María-José Núñez",
        "Mari\u0301a Nu\u0303n\u0303ez",
        "李雷 and 山田",
        "אדה לאבלייס",
        "عائشة",
        "\u0645\u06cc\u200c\u062e\u0648",  # Persian writes with the joiner
        "क्\u200dष",
        "Nguye\u0302\u0303n",
        "👩\u200d🔬 and ❤\ufe0f",
        "two\nlines\tand a tab",
        "a\u00a0b",
    ],
)
def test_what_reads_well_is_kept(text: str) -> None:
    assert shown(text) == text


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("a\u202eb", "a[U+202E]b"),
        ("pay\u200bpal", "pay[U+200B]pal"),
        ("pay\u200cpal\u200d", "pay[U+200C]pal[U+200D]"),
        ("\x1b[31m\x00", "[U+001B][31m[U+0000]"),
        ("a\r\nb\u2028", "a[U+000D]\nb[U+2028]"),
        ("soft\u00adhyphen\ufeff", "soft[U+00AD]hyphen[U+FEFF]"),
        ("\U000e0041\ue000\U0010ffff", "[U+E0041][U+E000][U+10FFFF]"),
        ("a\ufe0f", "a[U+FE0F]"),
        ("e" + 6 * "\u0301", "e" + 4 * "\u0301" + "[U+0301][U+0301]"),
    ],
)
def test_what_hides_is_spelled(text: str, spelled: str) -> None:
    assert shown(text) == spelled


def test_no_character_that_reorders_or_has_no_place_of_its_own_stays() -> None:
    """Of all of Unicode, whatever version this Python knows."""
    bidirectional = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "BN"}
    hidden = [
        c
        for c in map(chr, range(0x110000))
        if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(c) in bidirectional
    ]
    assert len(hidden) > 2_000
    assert [c for c in hidden if shown(f"a{c}b") == f"a{c}b"] == ["\t", "\n"]
    for code in (0xE000, 0xF8FF, 0xF0000, 0x10FFFD):
        assert shown(chr(code)) == f"[U+{code:04X}]"


def test_a_long_text_is_cut_and_says_so() -> None:
    cut = shown("x" * 3 * LONGEST)
    assert cut == "x" * LONGEST + "… [4,000 more characters]"
    assert shown("x" * LONGEST) == "x" * LONGEST


@pytest.mark.parametrize("text", HOSTILE)
def test_spelling_settles_at_once(text: str) -> None:
    assert shown(shown(text)[:LONGEST]) == shown(text)[:LONGEST]


@pytest.mark.parametrize(
    "address",
    [
        "https://github.com/openai/parameter-golf/pull/1855",
        "https://arxiv.org/abs/2602.00001v2#page=3",
        "https://example.org",
        "https://en.wikipedia.org/wiki/A_(b)?x=1&y=%20",
        "https://en.wikipedia.org/wiki/A_(b)",
    ],
)
def test_a_plain_address_is_a_link(address: str) -> None:
    assert pieces(address) == [(address, address)]
    assert pieces(f"see {address}, table 3") == [
        ("see ", None),
        (address, address),
        (", table 3", None),
    ]
    assert pieces(f"({address}).")[1] == (address, address)


@pytest.mark.parametrize(
    "text",
    [
        "http://example.org",
        "HTTPS://example.org",
        "https://Example.org",
        "javascript:alert(1)//https://example.org",
        "https://user@example.org/",
        "https://user:password@example.org/",
        "https://example.org:8443/",
        "https://example.org@evil.example.com:80/",
        "https://127.0.0.1/x",
        "https://[::1]/",
        "https://localhost/",
        "https://xn--80ak6aa92e.com/",
        "https://example.xn--p1ai/",
        "https://\u0435xample.org/",
        "https://example.org\u2024evil.com/",
        "https://-example.org/",
        "https://example..org/",
        "https://example.org\\evil",
        'https://example.org/"x',
        "https://example.org/<b>",
        "https://example.org/`x`",
        "https://example.org|x",
        "https:/example.org",
        "https://",
        "ahttps://example.org",
    ],
)
def test_any_other_address_is_text(text: str) -> None:
    assert pieces(text) == [(text, None)]


@pytest.mark.parametrize("text", HOSTILE)
def test_the_pieces_are_the_text(text: str) -> None:
    assert "".join(piece for piece, _ in pieces(text)) == text
    assert all(link in (None, piece) for piece, link in pieces(text))
