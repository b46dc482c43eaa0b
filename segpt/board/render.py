"""Records as Markdown tables: the same bytes for the same records, whatever they contain."""

import re
from collections.abc import Iterable, Sequence

from segpt.errors import SegptError
from segpt.spec.track import Record, Track, figure

OPENING, CLOSING = "<!-- records -->", "<!-- /records -->"

_COLUMNS = {
    "Rank": "---:",
    "Name": ":---",
    "BPB": "---:",
    "Policy": ":---",
    "Bytes": "---:",
    "Parameters": "---:",
    "Authors": ":---",
    "Date": ":---",
    "Text": ":---",
    "Artifact": ":---",
    "State": ":---",
    "Record": ":---",
}

# Where a web address or a mail address could begin, which Markdown links unasked. A word joiner
# there has no width and ends both.
_LINKED = re.compile(r"(?=[.:/@]\S)")
_WORD_JOINER = "\u2060"


def render(page: str, tracks: Iterable[Track], records: Iterable[Record]) -> str:
    """``page`` with the tables of ``records`` between its two markers.

    Raises:
        SegptError: if the page has not each marker once, in order.
    """
    markers = re.findall(f"{OPENING}|{CLOSING}", page)
    if markers != [OPENING, CLOSING]:
        raise SegptError(f"the page needs one line {OPENING} and, below it, one line {CLOSING}")
    before, _, rest = page.partition(OPENING)
    _, _, after = rest.partition(CLOSING)
    return f"{before}{OPENING}\n\n{tables(tracks, records)}\n{CLOSING}{after}"


def tables(tracks: Iterable[Track], records: Iterable[Record]) -> str:
    """A section for each track, by name, with its records from the lowest bits per byte up.

    Tracks come from whoever keeps the page and may hold Markdown; records come from anyone.
    """
    ranked = sorted(records, key=lambda record: (record.bpb, record.date, record.name))
    return "\n".join(
        _section(track, [record for record in ranked if record.track == track.name])
        for track in sorted(tracks, key=lambda track: track.name)
    )


def inert(text: str) -> str:
    """``text`` on one line, as Markdown and HTML that can be nothing but this text."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    unlinked = _LINKED.sub(_WORD_JOINER, line)
    return "".join(c if c.isalnum() or c in " ,.-" else f"&#{ord(c)};" for c in unlinked)


def _section(track: Track, records: Sequence[Record]) -> str:
    seconds = "" if track.seconds is None else f" Seconds: at most {track.seconds:g}."
    lines = [
        f"### {track.name}",
        "",
        " ".join(track.about.split()),
        "",
        f"Bytes: at most {track.bytes:,}. Policies: {', '.join(track.policies)}.{seconds} "
        f"Text: {'any' if track.text is None else f'`{track.text}`'}.",
        "",
    ]
    if not records:
        return "\n".join([*lines, "No records yet.", ""])
    head = [_row(_COLUMNS), _row(_COLUMNS.values())]
    rows = [_row(_cells(rank, record)) for rank, record in enumerate(records, 1)]
    return "\n".join([*lines, *head, *rows, ""])


def _cells(rank: int, record: Record) -> list[str]:
    return [
        str(rank),
        inert(record.name),
        f"{record.bpb:.4f}",
        inert(figure(record.scores).policy),
        f"{record.bytes:,}",
        f"{record.parameters:,}",
        inert(", ".join(record.authors)),
        record.date,
        f"`{record.scores[0].text[:8]}`",
        f"`{record.artifact[:12]}`",
        record.state,
        f"[JSON](records/{record.file})",
    ]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
