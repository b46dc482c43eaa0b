"""The leaderboard as one page that loads nothing: the same bytes for the same entries.

Every text of an entry passes through :func:`segpt.report.sanitise.shown` and is escaped; the page's
policy lets the browser use the page's own style and script, by their digests, and nothing else.
"""

import base64
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from segpt.report import chart
from segpt.report.figure import STYLE
from segpt.report.sanitise import pieces, shown

from .entry import Baseline, Chain, Claim, Link, Record, Run, ScoreLine, Verification, figure
from .ranking import STATES, Standing, standings
from .track import Track
from .wording import (
    FIGURES,
    LIMITED,
    NOTHING,
    authors_of,
    counted,
    limits,
    parameters_of,
    policy_of,
    said,
)

_KINDS = {Record: "record", Claim: "claim", Baseline: "baseline"}
_FAR = 4.0  # sizes farther apart than this ratio are drawn on a logarithmic axis
_DEEPEST = 3  # of conditions within conditions
_COLOURED = 5  # sections of an artifact with a colour of their own

# From what is read to what is packed; whatever else an artifact names comes after.
_LINEAGE = {
    "documents": "the documents that it was trained on",
    "tokens": "those documents as tokens",
    "init": "the checkpoint that training began with",
    "recipe": "the recipe of the training",
    "seed": "the seed of the training",
    "checkpoint": "the trained weights",
    "quantize": "how they were quantized",
}


class _Column(NamedTuple):
    key: str
    name: str
    numeric: bool


class _Part(NamedTuple):
    """A section of an artifact: its place in the bar, in thousandths, and its colour."""

    name: str
    bytes: int
    share: str
    left: str
    width: str
    colour: int


class _Condition(NamedTuple):
    """What held for every scoring, or under which policy and seed it held."""

    name: str
    values: Sequence[tuple[str, str]]


def render(tracks: Iterable[Track], links: Iterable[Link], chain: Chain | None) -> str:
    """The page of all entries; ``chain`` is None as long as there are none.

    Raises:
        SpecError: if no policy scored every run of a record.
    """
    tracks, links = list(tracks), list(links)
    rows = standings(tracks, links)
    style, script = STYLE + _resource("leaderboard.css"), _resource("leaderboard.js")
    page = _environment().get_template("leaderboard.html")
    return page.render(
        tables=[_table(track, rows[track.name]) for track in tracks],
        kinds={kind: _count(rows, kind) for kind in _KINDS.values()},
        states=STATES,
        chain=chain,
        files={link.number: link.file for link in links},
        style=style,
        script=script,
        policy="; ".join(
            (
                "default-src 'none'",
                f"style-src '{_integrity(style)}'",
                f"script-src '{_integrity(script)}'",
                "base-uri 'none'",
                "form-action 'none'",
            )
        ),
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("segpt.leaderboard", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(pieces=pieces, told=_told, exact=lambda value: f"{value:.6f}")
    return environment


def _finalize(value: Any) -> Any:
    """Every text that is no markup of ours has all that hides in it spelled."""
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _resource(name: str) -> Markup:
    return Markup((resources.files("segpt.leaderboard") / "templates" / name).read_text("utf-8"))


def _integrity(text: str) -> str:
    """The source expression of Content Security Policy that allows ``text`` alone."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _count(rows: Mapping[str, Sequence[Standing]], kind: str) -> int:
    return sum(_KINDS[type(row.entry)] == kind for of in rows.values() for row in of)


def _table(track: Track, rows: Sequence[Standing]) -> dict[str, Any]:
    points = [point for row in rows if (point := _point(track, row)) is not None]
    front = {(point.x, point.y) for point in chart.pareto(points, higher=track.sign < 0)}
    return {
        "track": track,
        "limits": limits(track),
        "unit": LIMITED[track.metric],
        "columns": _columns(track, rows),
        "rows": [_entry(track, row) for row in rows],
        "chart": _chart(track, rows, points) if len(points) > 1 else None,
        "points": [
            (point.name, counted(int(point.x)), said(track, point.y), (point.x, point.y) in front)
            for point in points
        ],
        "size": _size_name(track),
    }


def _columns(track: Track, rows: Sequence[Standing]) -> list[_Column]:
    """Those that at least one entry fills."""
    columns = [_Column("rank", "#", True), _Column("name", "Entry", False)]
    columns.append(_Column("value", FIGURES[track.metric], True))
    if any(row.total is not None for row in rows):
        columns.append(_Column("total", "With artifact", True))
    if any(row.bytes is not None for row in rows):
        columns.append(_Column("bytes", "Bytes", True))
    if any(parameters_of(row.entry) is not None for row in rows):
        columns.append(_Column("parameters", "Parameters", True))
    return [*columns, _Column("date", "Date", False), _Column("state", "State", True)]


def _entry(track: Track, row: Standing) -> dict[str, Any]:
    """What is shown of an entry: its cells, what they are sorted by, and its details."""
    entry = row.entry
    cells = {
        "rank": (str(row.rank), row.rank),
        "name": (entry.name, entry.name),
        "value": (said(track, row.value), row.value),
        "total": (said(track, row.total), row.total),
        "bytes": (counted(row.bytes), row.bytes),
        "parameters": (counted(parameters_of(entry)), parameters_of(entry)),
        "date": (entry.date, entry.date),
        "state": (row.state, STATES.index(row.state)),
    }
    return {
        "row": row,
        "entry": entry,
        "kind": _KINDS[type(entry)],
        "cells": cells,
        "authors": authors_of(entry),
        "policy": "" if isinstance(entry, Claim) else policy_of(entry),
        "verifications": [(v, _off(row, v)) for v in row.verifications],
        "runs": _runs(entry) if isinstance(entry, Record) else (),
        "conditions": _conditions(entry) if isinstance(entry, Record) else (),
        "parts": _parts(entry.sections) if isinstance(entry, Record) else (),
        "lineage": _lineage(entry) if isinstance(entry, Record) else (),
        "values": [said(track, value) for value in getattr(entry, "values", ())],
    }


def _off(row: Standing, check: Verification) -> str:
    """By how much a verification differs from the figure of its entry, relatively."""
    return f"{(check.bpb - row.value) / row.value:+.1e}" if check.bpb != row.value else "none"


def _runs(record: Record) -> list[tuple[str, str, int, bool, ScoreLine]]:
    """Every scoring with its run: seed, artifact, bytes, whether the figure rests on it."""
    counts = figure(record.runs).policy
    return [
        (
            NOTHING if run.seed is None else str(run.seed),
            run.artifact,
            run.bytes,
            line.policy_kind == counts,
            line,
        )
        for run in record.runs
        for line in run.scores
    ]


def _conditions(record: Record) -> list[_Condition]:
    """The policy and the conditions of all scorings, once where they are the same."""
    scores = [(run, line) for run in record.runs for line in run.scores]
    names = sorted({name for _, line in scores for name in line.conditions})
    parts = [_condition("policy", [(run, line, line.policy) for run, line in scores])]
    for name in names:
        having = [(run, line) for run, line in scores if name in line.conditions]
        parts.append(_condition(name, [(run, line, line.conditions[name]) for run, line in having]))
    return parts


def _condition(name: str, scores: Sequence[tuple[Run, ScoreLine, Any]]) -> _Condition:
    worded = [(line.policy_kind, run.seed, _told(value)) for run, line, value in scores]
    if len({value for *_, value in worded}) == 1:
        return _Condition(name, [("", worded[0][2])])
    if len({(kind, value) for kind, _, value in worded}) == len({kind for kind, *_ in worded}):
        return _Condition(name, list({kind: value for kind, _, value in worded}.items()))
    return _Condition(name, [(f"{kind}, seed {seed}", value) for kind, seed, value in worded])


def _told(value: Any, depth: int = 0) -> str:
    """A value of JSON for people, in the same words whatever the order of its keys."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case str():
            return value
        case int():
            return f"{value:,}" if abs(value) < 10**30 else "a huge number"
        case float():
            return f"{value:.6g}"
        case _ if depth == _DEEPEST:
            return "…"
        case Mapping():
            items = (f"{key} {_told(of, depth + 1)}" for key, of in sorted(value.items()))
        case _:
            items = (_told(of, depth + 1) for of in value)
    return ", ".join(items)


def _parts(sections: Mapping[str, int]) -> list[_Part]:
    """The sections that have bytes, the largest first."""
    whole = sum(sections.values())
    largest = sorted(sections.items(), key=lambda item: (-item[1], item[0]))
    parts, left = [], 0
    for place, (name, size) in enumerate(largest):
        if size == 0:
            break
        ends = [1000 * end / whole for end in (left, left + size)]
        parts.append(
            _Part(
                name=name,
                bytes=size,
                share=f"{100 * size / whole:.1f} %",
                left=f"{ends[0]:.2f}",
                width=f"{ends[1] - ends[0]:.2f}",
                colour=min(place, _COLOURED) + 1,
            )
        )
        left += size
    return parts


def _lineage(record: Record) -> list[tuple[str, str, str]]:
    """What the artifact was made from, step by step: kind, fingerprint, and what that is."""
    known = [kind for kind in _LINEAGE if kind in record.origin]
    others = sorted(record.origin.keys() - _LINEAGE.keys())
    steps = [(kind, record.origin[kind], _LINEAGE.get(kind, "")) for kind in [*known, *others]]
    text = record.runs[0].scores[0]
    return [
        *steps,
        ("artifact", record.artifact, f"what is submitted, packed by segpt {record.segpt}"),
        ("text", text.text, f"the {text.bytes:,} bytes that it was scored on"),
    ]


def _point(track: Track, row: Standing) -> chart.Point | None:
    size = parameters_of(row.entry) if track.bytes is None else row.bytes
    if size is None:
        return None
    return chart.Point(
        name=row.entry.name,
        x=size,
        y=row.value,
        group="published elsewhere" if isinstance(row.entry, Claim) else row.state,
        href=f"#entry-{row.link.number}",
    )


def _size_name(track: Track) -> str:
    return "parameters" if track.bytes is None else "bytes of the artifact"


def _chart(track: Track, rows: Sequence[Standing], points: Sequence[chart.Point]) -> Markup:
    """Size against figure, with the best baseline as a level."""
    sizes = [point.x for point in points]
    baselines = [row for row in rows if isinstance(row.entry, Baseline)]
    return chart.scatter(
        points,
        chart.Frame(
            title="Size against " + LIMITED[track.metric],
            x=_size_name(track),
            y=LIMITED[track.metric],
            about="The dotted line joins the entries that no other betters in both ways.",
            log_x=max(sizes) >= _FAR * min(sizes),
        ),
        higher=track.sign < 0,
        groups=[*reversed(STATES), "published elsewhere"],
        levels=[chart.Level(row.entry.name, row.value) for row in baselines[:1]],
    )
