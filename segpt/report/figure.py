"""What is around the drawing of a chart: its colours, caption, legend and description."""

import hashlib
from collections.abc import Sequence

from markupsafe import Markup, escape

from .axes import WIDTH
from .scale import short

COLOURS = 6  # classes c1 to c6

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
MARKERS = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "M-4.5-4.5h9v9h-9z",
    "M0-6l5.6 10h-11.2z",
    "M0-6.4l6.4 6.4-6.4 6.4-6.4-6.4z",
    "M0 6l5.6-10h-11.2z",
    "M-6-2h4v-4h4v4h4v4h-4v4h-4v-4h-4z",
)


def figure(
    title: str,
    about: str,
    legend: Sequence[Markup],
    description: str,
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
        *(key, key, key, title, key, description, inner),
    )


def empty(title: str, about: str) -> Markup:
    return Markup('<figure class="chart">{}<p>There is nothing to draw yet.</p></figure>').format(
        _caption(title, about)
    )


def _caption(title: str, about: str) -> Markup:
    return Markup("<figcaption><strong>{}</strong>{}</figcaption>").format(title, escape(about))


def legend_entry(sample: Markup, box: str, name: str, note: str) -> Markup:
    shown = Markup(" <span>{}</span>").format(note) if note else ""
    return Markup('<li><svg viewBox="{}" aria-hidden="true">{}</svg>{}{}</li>').format(
        box, sample, name, shown
    )


def marker_sample(group: int) -> Markup:
    return Markup('<path class="fill {}" d="{}"/>').format(
        colour_class(group), MARKERS[group % len(MARKERS)]
    )


def line_told(name: str, points: Sequence[tuple[float, float]], x: str) -> str:
    """A line in words, for who cannot see it."""
    (first_x, first), (last_x, last) = points[0], points[-1]
    low_x, low = min(points, key=lambda p: p[1])
    return (
        f"{name}: from {short(first)} at {short(first_x)} to {short(last)} at {short(last_x)} "
        f"{x}, lowest {short(low)} at {short(low_x)}."
    )


def colour_class(number: int) -> str:
    return f"c{number % COLOURS + 1}"
