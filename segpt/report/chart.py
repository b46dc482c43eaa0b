"""Charts as inline SVG: lines, points and bars, the same bytes for the same numbers.

A chart is a ``<figure>`` that loads nothing and runs nothing: its colours are the classes of
:data:`STYLE`, light or dark as the reader has it, and every text in it is escaped.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from markupsafe import Markup, escape

from .scale import Scale, drawable, scale, short

WIDTH, HEIGHT = 480, 260
LEFT, RIGHT, TOP, BOTTOM = 54, 22, 28, 46
COLOURS = 6  # classes c1 to c6
BUCKETS = 220  # of a line, each drawn as its first, lowest, highest and last point
MOST_DOTS = 100  # that are marked on a line

_LONGEST_NAME = 22  # of a bar
_LETTER = 8.4  # width of one, roughly, where the page is narrow
_LARGE_LETTER = 8.4  # on a narrow screen

STYLE = Markup("""
:root {
  --chart-ink: #1f2328; --chart-soft: #57606a; --chart-grid: #e3e6ea; --chart-page: #ffffff;
  --c1: #0b66b2; --c2: #bf4b00; --c3: #0a7d55; --c4: #7a4fb5; --c5: #a3356e; --c6: #57606a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --chart-ink: #e6edf3; --chart-soft: #a4aeb9; --chart-grid: #30363d; --chart-page: #0d1117;
    --c1: #58a9f0; --c2: #f0975a; --c3: #4cc38a; --c4: #b99bf0; --c5: #ee8cbd; --c6: #a4aeb9;
  }
}
.chart { margin: 0; }
.chart figcaption { color: var(--chart-soft); font-size: 0.92rem; }
.chart figcaption strong { color: var(--chart-ink); display: block; font-size: 1rem; }
.chart ul { display: flex; flex-wrap: wrap; gap: 0.1rem 1.1rem; list-style: none; padding: 0;
  margin: 0.4rem 0 0; font-size: 0.88rem; color: var(--chart-ink); }
.chart li svg { width: 1.7rem; height: 0.8rem; vertical-align: -0.05rem; margin-right: 0.35rem; }
.chart li span { color: var(--chart-soft); }
.chart > svg { display: block; width: 100%; height: auto; margin-top: 0.3rem; overflow: visible; }
.chart text { fill: var(--chart-soft); font: 12px system-ui, sans-serif; }
.chart text.ink { fill: var(--chart-ink); }
.chart .end { text-anchor: end; } .chart .middle { text-anchor: middle; }
.chart .grid { stroke: var(--chart-grid); stroke-width: 1; }
.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.chart .front { fill: none; stroke: var(--chart-soft); stroke-width: 1.5; stroke-dasharray: 2 4; }
.chart .level { fill: none; stroke: var(--chart-soft); stroke-width: 1; }
.chart .halo { stroke: var(--chart-page); stroke-width: 1.5; }
.chart a:focus-visible path { stroke: var(--chart-ink); stroke-width: 3; outline: none; }
.line.c1 { stroke: var(--c1); } .fill.c1 { fill: var(--c1); }
.line.c2 { stroke: var(--c2); } .fill.c2 { fill: var(--c2); }
.line.c3 { stroke: var(--c3); } .fill.c3 { fill: var(--c3); }
.line.c4 { stroke: var(--c4); } .fill.c4 { fill: var(--c4); }
.line.c5 { stroke: var(--c5); } .fill.c5 { fill: var(--c5); }
.line.c6 { stroke: var(--c6); } .fill.c6 { fill: var(--c6); }
.line.c2 { stroke-dasharray: 7 3; } .line.c3 { stroke-dasharray: 2 2.5; }
.line.c4 { stroke-dasharray: 9 3 2 3; } .line.c5 { stroke-dasharray: 4 3; }
@media (max-width: 30rem) { .chart text { font-size: 15px; } }
""")

# A marker of each group about (0, 0): they differ in shape as well as in colour.
_MARKERS = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "M-4.5-4.5h9v9h-9z",
    "M0-6l5.6 10h-11.2z",
    "M0-6.4l6.4 6.4-6.4 6.4-6.4-6.4z",
    "M0 6l5.6-10h-11.2z",
    "M-6-2h4v-4h4v4h4v4h-4v4h-4v-4h-4z",
)

Pair = tuple[float, float | None]


@dataclass(frozen=True)
class Series:
    """A line of a chart. Where a value is None or no finite number, the line has a gap.

    ``note`` follows the name in the legend; ``dots`` marks every point, unless there are many.
    """

    name: str
    points: Sequence[Pair]
    note: str = ""
    dots: bool = False


@dataclass(frozen=True)
class Point:
    """A point of a scatter chart. ``group`` names its kind; ``href`` is a place on the page."""

    name: str
    x: float
    y: float
    group: str = ""
    href: str = ""


class Level(NamedTuple):
    """A named height of a chart, drawn as a line from side to side."""

    name: str
    y: float


class Bar(NamedTuple):
    """A bar; ``note`` is written at its end in place of the value."""

    name: str
    value: float
    note: str = ""


def line(
    series: Sequence[Series],
    *,
    title: str,
    x: str,
    y: str,
    about: str = "",
    log_x: bool = False,
    log_y: bool = False,
) -> Markup:
    """Lines over a common axis, each of points in the order of their x.

    Args:
        series: one line each; their names are the legend.
        title: what the chart shows.
        x: name and unit of the axis across.
        y: name and unit of the axis upwards.
        about: a sentence that says how to read it.
        log_x: whether the axis across is logarithmic.
        log_y: whether the axis upwards is.
    """
    pieces = [_pieces(one.points, log_x, log_y) for one in series]
    found = [pair for one in pieces for piece in one for pair in piece]
    if not found:
        return _empty(title, about)
    axes = _Axes(
        scale([p[0] for p in found], log=log_x), scale([p[1] for p in found], log=log_y), x, y
    )
    drawn, legend, told = [], [], []
    for number, (one, parts) in enumerate(zip(series, pieces, strict=True)):
        if not parts:
            continue
        colour = _colour(number)
        count = sum(map(len, parts))
        drawn += [
            _path(axes, thinned(part, 1 + BUCKETS * len(part) // count), colour)
            for part in parts
            if len(part) > 1
        ]
        dots = one.dots and count <= MOST_DOTS
        marked = [pair for part in parts if dots or len(part) == 1 for pair in part]
        drawn += [_dot(axes, one.name, pair, colour) for pair in marked]
        sample = Markup('<path class="line {}" d="M0 5h28"/>').format(colour)
        if marked:
            dot = Markup('<circle class="fill {}" cx="14" cy="5" r="4"/>').format(colour)
            sample = sample + dot if any(len(part) > 1 for part in parts) else dot
        legend.append(_entry(sample, "0 0 28 10", one.name, one.note))
        told.append(_told(one.name, [pair for part in parts for pair in part], x))
    return _figure(title, about, legend, f"{y} over {x}. {' '.join(told)}", axes.svg(drawn))


def scatter(
    points: Sequence[Point],
    *,
    title: str,
    x: str,
    y: str,
    about: str = "",
    front: bool = True,
    higher: bool = False,
    log_x: bool = False,
    log_y: bool = False,
    groups: Sequence[str] = (),
    levels: Sequence[Level] = (),
) -> Markup:
    """Points, and a staircase along those that no other betters in both ways.

    Args:
        points: in any order; the groups that they are of are the legend.
        title: what the chart shows.
        x: name and unit of the axis across, where less is better.
        y: name and unit of the axis upwards.
        about: a sentence that says how to read it.
        front: whether to draw the front and to name its points.
        higher: whether more is better upwards; less is by default.
        log_x: whether the axis across is logarithmic.
        log_y: whether the axis upwards is.
        groups: which colours come first; groups not named follow in the order they come.
        levels: what to compare the points with.
    """
    points = [p for p in points if drawable(p.x, log=log_x) and drawable(p.y, log=log_y)]
    if not points:
        return _empty(title, about)
    levels = [level for level in levels if drawable(level.y, log=log_y)]
    heights = [*(p.y for p in points), *(level.y for level in levels)]
    axes = _Axes(_padded([p.x for p in points], log_x), _padded(heights, log_y), x, y)
    best = pareto(points, higher=higher) if front else []
    found = [point.group for point in points]
    groups = list(dict.fromkeys([*groups, *found]))
    drawn = [_level(axes, level) for level in levels]
    drawn += [_staircase(axes, best)] if len(best) > 1 else []
    drawn += [
        _marker(axes, point, groups.index(point.group), x, y)
        for point in sorted(points, key=lambda p: (p.x, p.y, p.name))
    ]
    drawn += _names(axes, best, points)
    legend = [
        _entry(_sample(number), "-14 -6 28 12", group, "")
        for number, group in enumerate(groups)
        if group and group in found
    ]
    told = "; ".join(f"{p.name}: {short(p.y)} at {short(p.x)}" for p in best)
    told = f" The front, from the left: {told}." if best else ""
    compared = "".join(f" {level.name}: {short(level.y)}." for level in levels)
    said = f"{y} over {x}, {len(points)} points.{told}{compared}"
    links = any(point.href for point in points)
    return _figure(title, about, legend, said, axes.svg(drawn), links=links)


def bars(rows: Sequence[Bar], *, title: str, x: str, about: str = "") -> Markup:
    """Horizontal bars from 0 in the order given, all of a quantity ``x`` that is never negative."""
    shown = [row for row in rows if drawable(row.value) and row.value >= 0]
    if not shown:
        return _empty(title, about)
    most = max(row.value for row in shown) or 1.0
    height = 25 if len(shown) <= 16 else 18
    names = [
        row.name if len(row.name) <= _LONGEST_NAME else f"{row.name[: _LONGEST_NAME - 1]}…"
        for row in shown
    ]
    notes = [row.note or short(row.value) for row in shown]
    left, right = (12 + _LARGE_LETTER * max(map(len, texts)) for texts in (names, notes))
    room = max(60.0, WIDTH - left - right)
    parts = []
    for number, row in enumerate(shown):
        top, note, width = number * height, notes[number], max(1.0, room * row.value / most)
        parts.append(
            Markup(
                '<g><title>{}: {}</title><text class="ink end" x="{}" y="{}">{}</text>'
                '<rect class="fill c1" x="{}" y="{}" width="{}" height="{}" rx="2"/>'
                '<text x="{}" y="{}">{}</text></g>'
            ).format(
                *(row.name, note, _n(left - 8), top + height // 2 + 4, names[number]),
                *(_n(left), top + 3, _n(width), height - 6),
                *(_n(left + width + 6), top + height // 2 + 4, note),
            )
        )
    pairs = zip(shown, notes, strict=True)
    told = f"{x}. " + "; ".join(f"{row.name}: {note}" for row, note in pairs)
    return _figure(title, about, [], told, (Markup("").join(parts), len(shown) * height))


def pareto(points: Iterable[Point], *, higher: bool = False) -> list[Point]:
    """The points that no other betters in both ways, by rising x: less is better across."""
    sign = -1 if higher else 1
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, sign * p.y, p.name)):
        if not best or sign * point.y < sign * best[-1].y:
            best.append(point)
    return best


def thinned(
    points: Sequence[tuple[float, float]], buckets: int = BUCKETS
) -> Sequence[tuple[float, float]]:
    """Points that look the same when drawn: the extremes and ends of each stretch of them."""
    if len(points) <= 4 * buckets:
        return points
    kept: list[tuple[float, float]] = []
    for bucket in range(buckets):
        first, last = (len(points) * (bucket + end) // buckets for end in (0, 1))
        stretch = range(first, last)
        low = min(stretch, key=lambda i: points[i][1])
        high = max(stretch, key=lambda i: points[i][1])
        kept += [points[i] for i in sorted({first, low, high, last - 1})]
    return kept


class _Axes:
    """Two scales, and where they put a value in the picture."""

    def __init__(self, across: Scale, up: Scale, x: str, y: str) -> None:
        self.across, self.up, self.x, self.y = across, up, x, y

    def place(self, x: float, y: float) -> tuple[float, float]:
        width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return LEFT + width * self.across.at(x), TOP + height * (1 - self.up.at(y))

    def svg(self, drawn: Iterable[Markup]) -> tuple[Markup, int]:
        """The axes with ``drawn`` upon them, and the height of it all."""
        right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = [
            Markup('<text x="0" y="13">{}</text><path class="grid" d="M{} {}H{}"/>').format(
                self.y, LEFT, floor, right
            )
        ]
        for tick, name in zip(self.up.ticks, self.up.tick_names(), strict=True):
            y = _n(self.place(self.across.low, tick)[1])
            parts.append(
                Markup(
                    '<path class="grid" d="M{} {}H{}"/><text class="end" x="{}" y="{}">{}</text>'
                ).format(LEFT, y, right, LEFT - 7, _n(float(y) + 4), name)
            )
        for tick, name in zip(self.across.ticks, self.across.tick_names(), strict=True):
            x = _n(self.place(tick, self.up.low)[0])
            parts.append(
                Markup(
                    '<path class="grid" d="M{} {}v5"/><text class="middle" x="{}" y="{}">{}</text>'
                ).format(x, floor, x, floor + 19, name)
            )
        parts.append(
            Markup('<text class="end" x="{}" y="{}">{}</text>').format(right, floor + 38, self.x)
        )
        return Markup("").join([*parts, *drawn]), HEIGHT


def _padded(values: Sequence[float], log: bool) -> Scale:
    """A scale with some room at both ends, for markers and their names."""
    low, high = min(values), max(values)
    if log:
        room = max(high / low, 1.5) ** 0.06
        return scale([low / room, high * room], log=True)
    reach = 0.06 * (high - low)
    return scale([low - reach, high + reach])


def _pieces(points: Sequence[Pair], log_x: bool, log_y: bool) -> list[list[tuple[float, float]]]:
    """The stretches of a line without a gap, or all as one where there are too many to see."""
    pieces = []
    for drawn, stretch in groupby(
        points, lambda pair: drawable(pair[0], log=log_x) and drawable(pair[1], log=log_y)
    ):
        if drawn:
            pieces.append([(x, y) for x, y in stretch if y is not None])
    return pieces if len(pieces) <= MOST_DOTS else [[pair for piece in pieces for pair in piece]]


def _path(axes: _Axes, points: Sequence[tuple[float, float]], colour: str) -> Markup:
    places = " ".join(f"{_n(x)} {_n(y)}" for x, y in (axes.place(*point) for point in points))
    return Markup('<path class="line {}" d="M{}"/>').format(colour, places)


def _dot(axes: _Axes, name: str, pair: tuple[float, float], colour: str) -> Markup:
    x, y = axes.place(*pair)
    return Markup(
        '<circle class="fill halo {}" cx="{}" cy="{}" r="3.8"><title>{}: {} at {}</title></circle>'
    ).format(colour, _n(x), _n(y), name, short(pair[1]), short(pair[0]))


def _staircase(axes: _Axes, best: Sequence[Point]) -> Markup:
    x, y = axes.place(best[0].x, best[0].y)
    steps = [f"M{_n(x)} {_n(y)}"]
    for point in best[1:]:
        x, y = axes.place(point.x, point.y)
        steps.append(f"H{_n(x)}V{_n(y)}")
    return Markup('<path class="front" d="{}"/>').format("".join(steps))


def _level(axes: _Axes, level: Level) -> Markup:
    y = axes.place(axes.across.low, level.y)[1]
    return Markup(
        '<path class="level" d="M{} {}H{}"/><text class="end" x="{}" y="{}">{}</text>'
    ).format(LEFT, _n(y), WIDTH - RIGHT, WIDTH - RIGHT, _n(y - 5), level.name)


def _marker(axes: _Axes, point: Point, group: int, across: str, up: str) -> Markup:
    x, y = axes.place(point.x, point.y)
    told = f"{point.name}: {short(point.y)} {up}, {short(point.x)} {across}"
    shape = Markup(
        '<path class="fill halo {}" transform="translate({} {})" d="{}"><title>{}</title></path>'
    ).format(_colour(group), _n(x), _n(y), _MARKERS[group % len(_MARKERS)], told)
    if not point.href:
        return shape
    return Markup('<a href="{}" aria-label="{}">{}</a>').format(point.href, told, shape)


def _names(axes: _Axes, best: Sequence[Point], points: Sequence[Point]) -> Iterator[Markup]:
    """The names of the best points, each where it covers neither a point nor another name."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in (axes.place(p.x, p.y) for p in points)]
    for point in best:
        x, y = axes.place(point.x, point.y)
        name = point.name if len(point.name) <= 24 else f"{point.name[:23]}…"
        width = _LETTER * len(name)
        sides = [(x + 9, y - 7), (x - 9 - width, y + 16), (x + 9, y + 16), (x - 9 - width, y - 7)]
        for left, base in sides:
            box = (left, base - 10, left + width, base + 3)
            inside = left >= LEFT and left + width <= WIDTH and base < HEIGHT - BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                yield Markup('<text class="ink" x="{}" y="{}">{}</text>').format(
                    _n(left), _n(base), name
                )
                break


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _sample(group: int) -> Markup:
    return Markup('<path class="fill {}" d="{}"/>').format(
        _colour(group), _MARKERS[group % len(_MARKERS)]
    )


def _entry(sample: Markup, box: str, name: str, note: str) -> Markup:
    shown = Markup(" <span>{}</span>").format(note) if note else ""
    return Markup('<li><svg viewBox="{}" aria-hidden="true">{}</svg>{}{}</li>').format(
        box, sample, name, shown
    )


def _told(name: str, points: Sequence[tuple[float, float]], x: str) -> str:
    """A line in words, for who cannot see it."""
    (first_x, first), (last_x, last) = points[0], points[-1]
    low_x, low = min(points, key=lambda p: p[1])
    return (
        f"{name}: from {short(first)} at {short(first_x)} to {short(last)} at {short(last_x)} "
        f"{x}, lowest {short(low)} at {short(low_x)}."
    )


def _figure(
    title: str,
    about: str,
    legend: Sequence[Markup],
    told: str,
    drawing: tuple[Markup, int],
    *,
    links: bool = False,
) -> Markup:
    inner, height = drawing
    key = f"chart-{hashlib.sha256(f'{title}|{inner}'.encode(errors='replace')).hexdigest()[:10]}"
    entries = Markup("<ul>{}</ul>").format(Markup("").join(legend)) if legend else Markup("")
    return Markup(
        '<figure class="chart">{}{}<svg viewBox="0 0 {} {}" role="{}" '
        'aria-labelledby="{}" aria-describedby="{}-d"><title id="{}">{}</title>'
        '<desc id="{}-d">{}</desc>{}</svg></figure>'
    ).format(
        *(_caption(title, about), entries, WIDTH, height, "group" if links else "img"),
        *(key, key, key, title, key, told, inner),
    )


def _empty(title: str, about: str) -> Markup:
    return Markup('<figure class="chart">{}<p>There is nothing to draw yet.</p></figure>').format(
        _caption(title, about)
    )


def _caption(title: str, about: str) -> Markup:
    return Markup("<figcaption><strong>{}</strong>{}</figcaption>").format(title, escape(about))


def _colour(number: int) -> str:
    return f"c{number % COLOURS + 1}"


def _n(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text
