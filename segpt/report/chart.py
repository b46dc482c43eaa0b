"""Charts as inline SVG: lines, points and bars, the same bytes for the same numbers.

A chart is a ``<figure>`` that loads nothing and runs nothing: its colours are the classes of
:data:`.figure.STYLE`, light or dark as the reader has it, and every text in it is escaped.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from markupsafe import Markup

from .axes import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, Axes, padded, rounded
from .figure import MARKERS, colour_class, empty, figure, legend_entry, line_told, marker_sample
from .scale import drawable, scale, short

BUCKETS = 220  # of a line, each drawn as its first, lowest, highest and last point
MOST_DOTS = 100  # that are marked on a line

_LONGEST_NAME = 22  # of a bar
_LETTER = 8.4  # width of one, roughly, where the page is narrow
_LARGE_LETTER = 8.4  # on a narrow screen


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


class BarMark(NamedTuple):
    """A bar; ``note`` is written at its end in place of the value."""

    name: str
    value: float
    note: str = ""


@dataclass(frozen=True)
class Frame:
    """What a chart shows, and over which axes.

    Attributes:
        title: what the chart shows.
        x: name and unit of the axis across.
        y: name and unit of the axis upwards.
        about: a sentence that says how to read it.
        log_x: whether the axis across is logarithmic.
        log_y: whether the axis upwards is.
    """

    title: str
    x: str
    y: str
    about: str = ""
    log_x: bool = False
    log_y: bool = False


def line(series: Sequence[Series], frame: Frame) -> Markup:
    """Lines over a common axis, each of points in the order of their x.

    Args:
        series: one line each; their names are the legend.
        frame: what the chart shows, and its axes.
    """
    pieces = [_pieces(curve.points, frame) for curve in series]
    pairs = [pair for curve in pieces for piece in curve for pair in piece]
    if not pairs:
        return empty(frame.title, frame.about)
    across = scale([p[0] for p in pairs], log=frame.log_x)
    axes = Axes(across, scale([p[1] for p in pairs], log=frame.log_y), frame.x, frame.y)
    drawn, legend, sentences = [], [], []
    for number, (curve, parts) in enumerate(zip(series, pieces, strict=True)):
        if not parts:
            continue
        colour = colour_class(number)
        count = sum(map(len, parts))
        drawn += [
            _path(axes, thinned(part, 1 + BUCKETS * len(part) // count), colour)
            for part in parts
            if len(part) > 1
        ]
        dots = curve.dots and count <= MOST_DOTS
        marked = [pair for part in parts if dots or len(part) == 1 for pair in part]
        drawn += [_dot(axes, curve.name, pair, colour) for pair in marked]
        sample = Markup('<path class="line {}" d="M0 5h28"/>').format(colour)
        if marked:
            dot = Markup('<circle class="fill {}" cx="14" cy="5" r="4"/>').format(colour)
            sample = sample + dot if any(len(part) > 1 for part in parts) else dot
        legend.append(legend_entry(sample, "0 0 28 10", curve.name, curve.note))
        sentences.append(line_told(curve.name, [pair for part in parts for pair in part], frame.x))
    said = f"{frame.y} over {frame.x}. {' '.join(sentences)}"
    return figure(frame.title, frame.about, legend, said, axes.svg(drawn))


def scatter(
    points: Sequence[Point],
    frame: Frame,
    *,
    front: bool = True,
    higher: bool = False,
    groups: Sequence[str] = (),
    levels: Sequence[Level] = (),
) -> Markup:
    """Points, and a staircase along those that no other betters in both ways.

    Args:
        points: in any order; the groups that they are of are the legend.
        frame: what the chart shows, and its axes; less is better across.
        front: whether to draw the front and to name its points.
        higher: whether more is better upwards; less is by default.
        groups: which colours come first; groups not named follow in the order they come.
        levels: what to compare the points with.
    """
    points = [
        p for p in points if drawable(p.x, log=frame.log_x) and drawable(p.y, log=frame.log_y)
    ]
    if not points:
        return empty(frame.title, frame.about)
    levels = [level for level in levels if drawable(level.y, log=frame.log_y)]
    heights = [*(p.y for p in points), *(level.y for level in levels)]
    across = padded([p.x for p in points], frame.log_x)
    axes = Axes(across, padded(heights, frame.log_y), frame.x, frame.y)
    best = pareto(points, higher=higher) if front else []
    used = [point.group for point in points]
    groups = list(dict.fromkeys([*groups, *used]))
    drawn = [_level(axes, level) for level in levels]
    drawn += [_staircase(axes, best)] if len(best) > 1 else []
    drawn += [
        _marker(axes, point, groups.index(point.group))
        for point in sorted(points, key=lambda p: (p.x, p.y, p.name))
    ]
    drawn += _names(axes, best, points)
    legend = [
        legend_entry(marker_sample(number), "-14 -6 28 12", group, "")
        for number, group in enumerate(groups)
        if group and group in used
    ]
    listed = "; ".join(f"{p.name}: {short(p.y)} at {short(p.x)}" for p in best)
    listed = f" The front, from the left: {listed}." if best else ""
    compared = "".join(f" {level.name}: {short(level.y)}." for level in levels)
    said = f"{frame.y} over {frame.x}, {len(points)} points.{listed}{compared}"
    links = any(point.href for point in points)
    return figure(frame.title, frame.about, legend, said, axes.svg(drawn), links=links)


def bars(rows: Sequence[BarMark], *, title: str, x: str, about: str = "") -> Markup:
    """Horizontal bars from 0 in the order given, all of a quantity ``x`` that is never negative."""
    shown = [row for row in rows if drawable(row.value) and row.value >= 0]
    if not shown:
        return empty(title, about)
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
                *(row.name, note, rounded(left - 8), top + height // 2 + 4, names[number]),
                *(rounded(left), top + 3, rounded(width), height - 6),
                *(rounded(left + width + 6), top + height // 2 + 4, note),
            )
        )
    pairs = zip(shown, notes, strict=True)
    description = f"{x}. " + "; ".join(f"{row.name}: {note}" for row, note in pairs)
    return figure(title, about, [], description, (Markup("").join(parts), len(shown) * height))


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


def _pieces(points: Sequence[Pair], frame: Frame) -> list[list[tuple[float, float]]]:
    """The stretches of a line without a gap, or all as one where there are too many to see."""
    pieces = []
    for drawn, stretch in groupby(
        points,
        lambda pair: drawable(pair[0], log=frame.log_x) and drawable(pair[1], log=frame.log_y),
    ):
        if drawn:
            pieces.append([(x, y) for x, y in stretch if y is not None])
    return pieces if len(pieces) <= MOST_DOTS else [[pair for piece in pieces for pair in piece]]


def _path(axes: Axes, points: Sequence[tuple[float, float]], colour: str) -> Markup:
    places = " ".join(
        f"{rounded(x)} {rounded(y)}" for x, y in (axes.place(*point) for point in points)
    )
    return Markup('<path class="line {}" d="M{}"/>').format(colour, places)


def _dot(axes: Axes, name: str, pair: tuple[float, float], colour: str) -> Markup:
    x, y = axes.place(*pair)
    return Markup(
        '<circle class="fill halo {}" cx="{}" cy="{}" r="3.8"><title>{}: {} at {}</title></circle>'
    ).format(colour, rounded(x), rounded(y), name, short(pair[1]), short(pair[0]))


def _staircase(axes: Axes, best: Sequence[Point]) -> Markup:
    x, y = axes.place(best[0].x, best[0].y)
    steps = [f"M{rounded(x)} {rounded(y)}"]
    for point in best[1:]:
        x, y = axes.place(point.x, point.y)
        steps.append(f"H{rounded(x)}V{rounded(y)}")
    return Markup('<path class="front" d="{}"/>').format("".join(steps))


def _level(axes: Axes, level: Level) -> Markup:
    y = axes.place(axes.across.low, level.y)[1]
    return Markup(
        '<path class="level" d="M{} {}H{}"/><text class="end" x="{}" y="{}">{}</text>'
    ).format(LEFT, rounded(y), WIDTH - RIGHT, WIDTH - RIGHT, rounded(y - 5), level.name)


def _marker(axes: Axes, point: Point, group: int) -> Markup:
    x, y = axes.place(point.x, point.y)
    label = f"{point.name}: {short(point.y)} {axes.y}, {short(point.x)} {axes.x}"
    shape = Markup(
        '<path class="fill halo {}" transform="translate({} {})" d="{}"><title>{}</title></path>'
    ).format(colour_class(group), rounded(x), rounded(y), MARKERS[group % len(MARKERS)], label)
    if not point.href:
        return shape
    return Markup('<a href="{}" aria-label="{}">{}</a>').format(point.href, label, shape)


def _names(axes: Axes, best: Sequence[Point], points: Sequence[Point]) -> Iterator[Markup]:
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
                    rounded(left), rounded(base), name
                )
                break


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
