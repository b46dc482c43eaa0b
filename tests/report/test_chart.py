"""Charts: numbers where they belong, the same bytes each time, and texts that stay texts."""

import itertools
import math
import re
from collections.abc import Callable
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from segpt.report.axes import HEIGHT, WIDTH
from segpt.report.chart import (
    BUCKETS,
    BarMark,
    Frame,
    Point,
    Series,
    bars,
    line,
    pareto,
    scatter,
    thinned,
)
from segpt.report.figure import STYLE

HOSTILE = [
    "<script>alert(1)</script>",
    "</title></svg><img src=x onerror=alert(1)>",
    "\"' onload=alert(1) x='",
    "]]><!-- -->",
    "&lt;b&gt; &#60;",
    "{{ 7 * 7 }} {% raw %}",
    "https://evil.example/x",
]


def drawn_line(text: str = "loss") -> Markup:
    points = [(float(i), 5.0 / (1 + i)) for i in range(50)]
    series = [Series(text, points, text), Series("held out", points[::10], dots=True)]
    return line(series, Frame(title=text, x=text, y=text, about=text))


def drawn_scatter(text: str = "a model") -> Markup:
    points = [Point(text, 1e5, 2.0, text, f"#{text}"), Point("other", 2e5, 1.5, "kind")]
    return scatter(points, Frame(title=text, x=text, y=text, about=text, log_x=True))


def drawn_bars(text: str = "codes") -> Markup:
    return bars([BarMark(text, 3.0), BarMark("b", 0.0, text)], title=text, x=text, about=text)


CHARTS = [drawn_line, drawn_scatter, drawn_bars]


def tree(chart: Markup) -> ET.Element:
    return ET.fromstring(f"<div>{chart}</div>")


def shape(chart: Markup) -> list[tuple[str, tuple[str, ...]]]:
    return [(node.tag, tuple(sorted(node.keys()))) for node in tree(chart).iter()]


@pytest.mark.parametrize("draw", CHARTS)
def test_the_same_numbers_are_the_same_bytes(draw: Callable[[], Markup]) -> None:
    assert draw() == draw()


@pytest.mark.parametrize("draw", CHARTS)
def test_a_chart_has_a_title_and_says_what_it_shows(draw: Callable[[], Markup]) -> None:
    (svg,) = [node for node in tree(draw()).iter("svg") if node.get("role")]
    title, description = svg[0], svg[1]
    assert (title.tag, description.tag) == ("title", "desc")
    assert svg.get("aria-labelledby") == title.get("id")
    assert svg.get("aria-describedby") == description.get("id")
    assert title.text
    assert description.text


@pytest.mark.parametrize("draw", CHARTS)
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_texts(draw: Callable[..., Markup], text: str) -> None:
    chart = draw(text)
    plain = re.sub(r"\w", "x", text)[:5]
    assert {tag for tag, _ in shape(chart)} == {tag for tag, _ in shape(draw(plain))}
    assert {key for _, keys in shape(chart) for key in keys} == {
        key for _, keys in shape(draw(plain)) for key in keys
    }
    assert text in "".join(tree(chart).itertext())


@pytest.mark.parametrize("draw", CHARTS)
def test_nothing_is_loaded_and_nothing_runs(draw: Callable[[], Markup]) -> None:
    for text in (draw(), STYLE):
        assert not re.search(r"https?:|url\(|@import|src=|<script|\son\w+=", text)


def places(chart: Markup) -> list[tuple[float, float]]:
    """The points of every line."""
    found = []
    for node in tree(chart).iter("path"):
        if "line" in (node.get("class") or "") and "M0 5" not in (node.get("d") or ""):
            numbers = [float(n) for n in re.findall(r"-?[\d.]+", node.get("d") or "")]
            found += list(itertools.pairwise(numbers))[::2]
    return found


NUMBERS = st.one_of(st.none(), st.floats(allow_nan=True), st.floats(-10, 10))


@settings(deadline=None, derandomize=True)
@given(st.lists(NUMBERS, max_size=40), st.booleans())
def test_whatever_the_numbers_lines_stay_inside(values: list[float | None], log: bool) -> None:
    chart = line([Series("a", list(enumerate(values)))], Frame(title="t", x="x", y="y", log_y=log))
    assert "nan" not in chart
    assert "inf" not in chart
    for x, y in places(chart):
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT


def test_a_line_has_a_gap_where_a_value_is_none() -> None:
    values = [3.0, 2.0, math.nan, 1.5, 1.4, None, 1.3, math.inf, 1.2, 1.1]
    chart = line([Series("loss", list(enumerate(values)))], Frame(title="t", x="x", y="y"))
    assert chart.count('class="line c1"') == 1 + 3  # the legend, and three stretches
    assert chart.count("<circle") == 1 + 1  # 1.3 stands alone


@pytest.mark.parametrize(
    "chart",
    [
        line([], Frame(title="t", x="x", y="y")),
        line([Series("a", [(0, math.nan), (1, None)])], Frame(title="t", x="x", y="y")),
        line([Series("a", [(1, -1.0)])], Frame(title="t", x="x", y="y", log_y=True)),
        scatter([], Frame(title="t", x="x", y="y")),
        scatter([Point("a", 0.0, 1.0)], Frame(title="t", x="x", y="y", log_x=True)),
        bars([BarMark("a", math.nan), BarMark("b", -1.0)], title="t", x="x"),
    ],
)
def test_without_numbers_the_chart_says_so(chart: Markup) -> None:
    assert "nothing to draw" in chart
    assert "<svg" not in chart


def test_points_lie_where_their_numbers_say() -> None:
    points = [(0.0, 1.0), (5.0, 3.0), (10.0, 2.0)]
    found = places(line([Series("a", points)], Frame(title="t", x="x", y="y")))
    (x0, y0), (x1, y1), (x2, y2) = found
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y2 == pytest.approx(y2 - y1, abs=0.11)
    assert y1 < y2 < y0  # more is higher up


def test_long_lines_are_thinned_and_keep_their_extremes() -> None:
    points = [(float(i), math.sin(i) / (1 + i)) for i in range(100_000)]
    points[54_321] = (54_321.0, 9.0)
    kept = thinned(points)
    assert len(kept) <= 4 * BUCKETS
    assert points[54_321] in kept
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert all(a[0] < b[0] for a, b in itertools.pairwise(kept))
    assert len(line([Series("a", points)], Frame(title="t", x="x", y="y"))) < 20_000


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20),
    st.booleans(),
)
def test_the_front_is_what_no_other_point_betters(
    pairs: list[tuple[int, int]], higher: bool
) -> None:
    sign = -1 if higher else 1
    points = [Point(str(i), float(x), float(y)) for i, (x, y) in enumerate(pairs)]
    best = {(p.x, p.y) for p in pareto(points, higher=higher)}
    for p in points:
        beaten = any(
            q.x <= p.x and sign * q.y <= sign * p.y and (q.x, q.y) != (p.x, p.y) for q in points
        )
        assert ((p.x, p.y) in best) == (not beaten)


def test_points_lead_to_their_places_and_differ_in_shape() -> None:
    chart = drawn_scatter()
    links = [node.get("href") for node in tree(chart).iter("a")]
    assert links == ["#a model"]
    assert 'role="group"' in chart  # an image holds nothing that can be reached by keyboard
    shapes = {node.get("d") for node in tree(chart).iter("path") if "halo" in node.get("class", "")}
    assert len(shapes) == 2


def test_bars_are_as_long_as_their_values() -> None:
    chart = bars([BarMark("a", 4.0), BarMark("b", 1.0), BarMark("c", 2.0, "two")], title="t", x="x")
    widths = [float(node.get("width", "0")) for node in tree(chart).iter("rect")]
    assert widths[0] == pytest.approx(4 * widths[1], abs=0.3)
    assert widths[2] == pytest.approx(2 * widths[1], abs=0.2)
    assert "two" in "".join(tree(chart).itertext())


def test_long_names_are_cut_and_whole_in_the_tooltip() -> None:
    name = "layers.0.mixer.body.query_key_parts.2.gain"
    chart = bars([BarMark(name, 1.0)], title="t", x="x")
    texts = [node.text or "" for node in tree(chart).iter("text")]
    assert max(map(len, texts)) < len(name)
    assert f"<title>{name}: 1</title>" in chart
