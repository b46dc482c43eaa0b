"""The codec benchmark as people see it: a picture, and a section of ``docs/codec.md``."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segpt.atomic import write_file
from segpt.errors import SegptError
from segpt.report import plot

from .schemes import RATE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE = Path(__file__).resolve().parents[1] / "docs" / "codec.md"
PICTURE = "../bench/results/codec.png"  # from there
BEGIN, END = "<!-- codec: python -m bench.codec --render -->", "<!-- /codec -->"

_LINES = {
    "field": ("GPTQ + SDClip + brotli", plot.ORANGE, "s-"),
    "rd": ("designed steps (rd)", plot.GREEN, "^-"),
    "trellis": ("designed steps on a trellis", plot.BLUE, "o-"),
    "seed": ("int6 to nearest + zlib", plot.GREY, "D"),
}


def render(result: Mapping[str, Any], picture: Path, page: Path = PAGE) -> None:
    """Draw the picture, and rewrite the section of the page.

    Raises:
        SegptError: if the page has no such section.
    """
    draw(result, picture)
    text = page.read_text(encoding="utf-8")
    write_file(page, placed(text, section(result)).encode())


def placed(page: str, content: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with the section between two marks replaced.

    Raises:
        SegptError: if it has none.
    """
    pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise SegptError(f"the page needs one section between {begin} and {end}")
    return pattern.sub(lambda _: f"{begin}\n{content}{end}", page)


def section(result: Mapping[str, Any]) -> str:
    """What the page says about the codec: a table of points, the headline and the picture."""
    entries, found = result["checkpoints"], result["summary"]
    head = found["headline"]
    count = len(entries)
    text = result["text"]["validation"]
    lines = [
        "| scheme | bytes | bits per weight | KL, nats per token | BPB | bytes at equal KL |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, label in _rows(entries):
        points = [p for e in entries for p in e["points"] if p["name"] == name]
        if len(points) < count:
            continue
        size, bits, kl, gap = (
            float(np.mean([p[key] for p in points]))
            for key in ("bytes", "bits_per_weight", "kl", "bpb_gap")
        )
        ratio = found["by_rate"]["bytes_at_equal_kl"].get(name) or {"mean": None, "error": None}
        lines.append(
            f"| {label} | {size:,.0f} | {bits:.2f} | {kl:.4f} | {gap:+.4f} | {_ratio(ratio)} |"
        )
    weights = ", ".join(sorted({f"{e['parameters']:,}" for e in entries}))
    lines += [
        "",
        f"Means over {_many(count)} of {weights} weights, measured on {text['bytes']:,} bytes "
        "of held-out text; the last column is over the field's file of the same KL. At "
        f"{RATE:g} bits per weight the file is {_ratio(head['bytes_at_equal_kl'])} of the field's "
        f"at equal KL; in the same bytes its KL is {_ratio(head['kl_at_equal_bytes'])} of the "
        f"field's, and the BPB that quantization costs is {_pooled(head['bpb_gap_ratio_pooled'])}.",
    ]
    lines += ["", f"![KL over bits per weight of every scheme]({PICTURE})"]
    return "\n".join(lines) + "\n"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """KL over bits per weight of every scheme, and what each ingredient saves."""
    picture = plot.figure(11.5, 4.9)
    left, right = picture.subplots(1, 2, width_ratios=(1.25, 1.0))
    _curves(left, result["checkpoints"])
    _ingredients(right, result["summary"]["ingredients"])
    plot.save(picture, path)


def _rows(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Names of points and what the table calls them."""
    rows = [("seed", "int6 to nearest, clip 2.5 sigma, zlib-9")]
    rows += [(f"field k={k:g}", f"GPTQ, clip {k:g} sigma, brotli-11") for k in (9, 12.85, 18)]
    rows += [(f"rd {r:g}", f"`--method rd`, rate {r:g}") for r in (3.0, 3.5, 4.0)]
    rows += [(f"trellis {r:g}", f"`--method trellis`, rate {r:g}") for r in (3.0, 3.5, 4.0)]
    known = {p["name"] for e in entries for p in e["points"]}
    return [row for row in rows if row[0] in known]


def _many(count: int) -> str:
    return "one checkpoint" if count == 1 else f"{count} checkpoints"


def _ratio(value: Mapping[str, Any]) -> str:
    if value["mean"] is None:
        return ""
    error = "" if value["error"] is None else f" ± {100 * value['error']:.1f}"
    return f"{100 * value['mean']:.1f}{error} %"


def _pooled(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "not measured yet"
    return f"{100 * value['value']:.0f} ± {100 * value['error']:.0f} % of the field's"


def _curves(axes: "Axes", entries: Sequence[Mapping[str, Any]]) -> None:
    plot.kl_axes(axes, "KL to the float model, nats per token")
    for family, (label, colour, style) in _LINES.items():
        several = [
            sorted(
                (p["bits_per_weight"], p["kl"], p["kl_error"])
                for p in entry["points"]
                if p["family"] == family
            )
            for entry in entries
        ]
        several = [points for points in several if points]
        for number, points in enumerate(several):
            bits, kl, error = np.array(points).T
            axes.errorbar(
                bits,
                kl,
                error,
                fmt=style,
                color=colour,
                markersize=4.5,
                linewidth=1.1,
                elinewidth=0.8,
                alpha=0.85,
                label="_" if number else label,
            )
    axes.legend(frameon=False, fontsize=9)
    title = f"rate and distortion of {_many(len(entries))}"
    axes.set_title(title, loc="left", fontsize=10)


def _ingredients(axes: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    """The bytes at equal KL that are left after each ingredient, from top to bottom."""
    plot.plain(axes)
    known = [row for row in rows if row["over_the_field"]["mean"] is not None]
    names = ["the field's scheme", *(f"+ {row['ingredient']}" for row in known)]
    values = [100.0, *(100 * row["over_the_field"]["mean"] for row in known)]
    errors = [0.0, *(100 * (row["over_the_field"]["error"] or 0.0) for row in known)]
    places = range(len(names))
    axes.errorbar(values, places, xerr=errors, fmt="o", color=plot.BLUE, markersize=6)
    axes.plot(values[:1], [0], "s", color=plot.ORANGE, markersize=9)
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            f"{value:.1f} %",
            (value, place),
            (10, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(places, names)
    axes.set_ylim(len(names) - 0.6, -0.7)
    axes.margins(x=0.17)
    axes.set_xlabel("bytes at equal KL, % of the field's")
    axes.set_title(
        f"what each ingredient saves at {RATE:g} bits per weight", loc="left", fontsize=10
    )
