"""Entries as Markdown tables: the same bytes for the same entries, whatever they contain."""

import re
from collections.abc import Iterable, Sequence

from segpt.errors import SegptError
from segpt.report.sanitise import pieces, shown

from .entry import Claim, Link
from .ranking import Standing, standings
from .track import Track
from .wording import FIGURES, authors_of, counted, limits, parameters_of, policy_of, said

OPENING, CLOSING = "<!-- records -->", "<!-- /records -->"

# Where a web address or a mail address could begin, which Markdown links unasked. A word joiner
# there has no width and ends both.
_LINKED = re.compile(r"(?=[.:/@]\S)")
_WORD_JOINER = "\u2060"


def render(page: str, tracks: Iterable[Track], links: Iterable[Link]) -> str:
    """``page`` with the tables of all entries between its two markers.

    Raises:
        SegptError: if the page has not each marker once, in order.
    """
    markers = re.findall(f"{OPENING}|{CLOSING}", page)
    if markers != [OPENING, CLOSING]:
        raise SegptError(f"the page needs one line {OPENING} and, below it, one line {CLOSING}")
    before, _, rest = page.partition(OPENING)
    _, _, after = rest.partition(CLOSING)
    return f"{before}{OPENING}\n\n{tables(tracks, links)}\n{CLOSING}{after}"


def tables(tracks: Iterable[Track], links: Iterable[Link]) -> str:
    """A section for each track, in the order given, with its entries by their rank.

    Tracks come from whoever keeps the page and may hold Markdown; entries come from anyone.
    """
    tracks = list(tracks)
    rows = standings(tracks, links)
    return "\n".join(_section(track, rows[track.name]) for track in tracks)


def inert(text: str) -> str:
    """``text`` on one line, as Markdown and HTML that can be nothing but this text."""
    unlinked = _LINKED.sub(_WORD_JOINER, " ".join(shown(text).split()))
    return "".join(
        c if c.isalnum() or c in " ,.-" or not c.isascii() else f"&#{ord(c)};" for c in unlinked
    )


def _section(track: Track, rows: Sequence[Standing]) -> str:
    rules = " ".join(f"{name}: {rule}." for name, rule in limits(track))
    text = "any" if track.text is None else f"`{track.text}`"
    lines = [f"### {track.name}", "", " ".join(track.about.split()), "", f"{rules} Text: {text}."]
    if not rows:
        return "\n".join([*lines, "", "No entries yet.", ""])
    columns = {
        "Rank": "---:",
        "Name": ":---",
        FIGURES[track.metric]: "---:",
        "With artifact": "---:",
        "Bytes": "---:",
        "Parameters": "---:",
        "Policy": ":---",
        "Authors": ":---",
        "Date": ":---",
        "State": ":---",
        "Entry": ":---",
    }
    table = [_row(columns), _row(columns.values()), *(_row(_cells(track, row)) for row in rows)]
    return "\n".join([*lines, "", *table, ""])


def _cells(track: Track, row: Standing) -> list[str]:
    entry = row.entry
    return [
        str(row.rank),
        inert(entry.name),
        said(track, row.value),
        said(track, row.total),
        counted(row.bytes),
        counted(parameters_of(entry)),
        inert(policy_of(entry)),
        inert(authors_of(entry)),
        entry.date,
        row.state,
        ", ".join([f"[JSON](records/{row.link.file})", *_sources(row)]),
    ]


def _sources(row: Standing) -> list[str]:
    if not isinstance(row.entry, Claim):
        return []
    return [f"[source](<{link}>)" for _, link in pieces(row.entry.source) if link][:1]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
