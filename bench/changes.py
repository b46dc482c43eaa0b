"""What the runs of an ablation say: differences at equal tokens and seconds, as people see them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segpt.report import plot

from .curves import mean
from .summary import round_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BASE = "base"
CONTROL = "control"  # what a change is of that changes next to nothing
RESULTS = "../bench/results"
KINDS = ("equal_tokens", "equal_seconds")
_STYLES = {
    "equal_tokens": ("equal tokens", plot.BLUE),
    "equal_seconds": ("equal seconds", plot.ORANGE),
}
_POINTS = 3  # lengths that a parabola needs
_LONG = 4.0  # times the third quartile of all bars


def concluded(result: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a result as it is written, by text."""
    return {
        text: dict(round_figures(_summary(result, text), 6))
        for text in result["texts"]
        if any(run["text"] == text for run in result["runs"])
    }


def _summary(result: Mapping[str, Any], text: str) -> dict[str, Any]:
    runs = [run for run in result["runs"] if run["text"] == text]
    whole = {name: _of(runs, name, 1.0) for name in result["changes"]}
    base = whole.get(BASE, [])
    seeds = [run["seed"] for run in base]
    whole = {n: own for n, own in whole.items() if own and [run["seed"] for run in own] == seeds}
    controls = [n for n in whole if n == BASE or result["changes"][n]["of"] == CONTROL]
    times = [run["time"] for run in runs if run["change"] == BASE and run["time"] is not None]
    itself = fmean(times) if times else 1.0
    curve = Curve(runs)
    rows = []
    for name, own in whole.items():
        if name == BASE:
            continue
        about = result["changes"][name]
        peers = [n for n in controls if n != name]
        before = _reference([whole[n] for n in ([BASE] if _only_averages(about) else peers)])
        row = _row(own, before, curve, itself)
        more = row["parameters"] - base[0]["parameters"]
        rows.append({"change": name, "of": about["of"], "parameters_more": more, **row})
    return {
        "base": {
            "bpb": mean([run["bpb"] for run in base]),
            "reference": mean(_reference([whole[name] for name in controls])),
            "controls": sum(name != BASE for name in controls),
            "seeds": seeds,
            "time_over_itself": itself,
            "by_length": curve.points,
        },
        "rows": sorted(rows, key=lambda row: _order(row["equal_tokens"]["mean"])),
    }


def _only_averages(about: Mapping[str, Any]) -> bool:
    """Whether weights take the steps of the base itself, so that they share its luck."""
    return all(setting.startswith("train.average=") for setting in about["set"])


def _reference(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[float | None]:
    """The mean BPB of several rows for each seed; None where one of them diverged."""
    by_seed = zip(*([run["bpb"] for run in own] for own in runs), strict=True)
    return [None if None in found else fmean(found) for found in by_seed]


def _row(
    own: Sequence[Mapping[str, Any]],
    reference: Sequence[float | None],
    curve: "Curve",
    itself: float,
) -> dict[str, Any]:
    tokens: list[float | None] = []
    seconds: list[float | None] = []
    times: list[float | None] = []
    for run, before in zip(own, reference, strict=True):
        time = None if run["time"] is None else run["time"] / itself
        gap = None if run["bpb"] is None or before is None else run["bpb"] - before
        moved = None if time is None else curve.moved(time)
        tokens.append(gap)
        seconds.append(None if gap is None or moved is None else gap - moved)
        times.append(time)
    return {
        "parameters": own[0]["parameters"],
        "time": mean(times),
        "equal_tokens": mean(tokens),
        "equal_seconds": mean(seconds),
        "failed": sum(run["bpb"] is None for run in own),
    }


def _of(runs: Sequence[Mapping[str, Any]], name: str, length: float) -> list[Mapping[str, Any]]:
    own = [run for run in runs if (run["change"], run["length"]) == (name, length)]
    return sorted(own, key=lambda run: int(run["seed"]))


class Curve:
    """BPB of the base over the length of its run: a parabola in the logarithm of the length."""

    def __init__(self, runs: Sequence[Mapping[str, Any]]) -> None:
        """Take the means over those seeds that all lengths have."""
        own = [run for run in runs if run["change"] == BASE and run["bpb"] is not None]
        lengths = sorted({run["length"] for run in own})
        by_length = [{r["seed"]: r["bpb"] for r in own if r["length"] == n} for n in lengths]
        seeds = set.intersection(*(set(found) for found in by_length)) if by_length else set()
        self.points = [
            {"length": length, "bpb": fmean(found[seed] for seed in seeds)}
            for length, found in zip(lengths, by_length, strict=True)
            if seeds
        ]
        self.fit: NDArray[np.float64] | None = None
        if len(self.points) >= _POINTS:
            logs = [math.log(point["length"]) for point in self.points]
            self.fit = np.polyfit(logs, [point["bpb"] for point in self.points], 2)

    def moved(self, length: float) -> float | None:
        """BPB at a length minus that at length 1; None beyond the ends of what was measured."""
        if self.fit is None:
            return None
        if not self.points[0]["length"] <= length <= self.points[-1]["length"]:
            return None
        here, one = np.polyval(self.fit, [math.log(length), 0.0])
        return float(here - one)


def section(result: Mapping[str, Any], picture: str) -> str:
    """What the docs say: the table, what it was measured on, and the picture of that name."""
    found = concluded(result)
    if not found:
        return ""
    texts = list(found)
    head = "| change | of | weights | time |"
    rule = "|---|---|---:|---:|"
    for text in texts:
        head += f" {text}: equal tokens | equal seconds |"
        rule += "---:|---:|"
    lines = [head, rule]
    for name, rows in _together(found):
        first = next(row for row in rows if row is not None)
        cells = [name, first["of"], _more(first), _time(rows)]
        for row in rows:
            cells += ["", ""] if row is None else [_gap(row, k) for k in KINDS]
        lines.append(f"| {' | '.join(cells)} |")
    base = result["base"]
    picture = f"![All changes, sorted by equal tokens]({RESULTS}/{picture})"
    lines += ["", _about(base, found), "", picture]
    return "\n".join(lines) + "\n"


def _about(base: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    bpb = " and ".join(f"{s['base']['reference']['mean']:.4f} ({t})" for t, s in found.items())
    seeds = max(len(s["base"]["seeds"]) for s in found.values())
    controls = max(s["base"]["controls"] for s in found.values())
    besides = (
        f" The base stands for the mean of itself and {controls} controls, which change next to "
        "nothing; a control is compared with the rest of them, and an average of weights, which "
        "shares the base's steps, with the base alone."
    )
    return (
        f"Bits per byte of held-out text minus those of the base, {bpb}, of the same seed; less "
        f"is better. Means and standard errors of {seeds} seeds; a 95 % interval is about four "
        f"times as wide as an error.{besides if controls else ''} The base has "
        f"{base['parameters']:,} weights and reads {base['tokens']:,} tokens in rows of "
        f"{base['context']}; time is per token, over the base's."
    )


def _together(
    found: Mapping[str, Any],
) -> list[tuple[str, list[Mapping[str, Any] | None]]]:
    """Rows of all texts by change, in the order of the first text that has them."""
    by_text = [{row["change"]: row for row in summary["rows"]} for summary in found.values()]
    names = dict.fromkeys(name for rows in by_text for name in rows)
    return [(name, [rows.get(name) for rows in by_text]) for name in names]


def _more(row: Mapping[str, Any]) -> str:
    return f"{row['parameters_more']:+,}" if row["parameters_more"] else ""


def _time(rows: Sequence[Mapping[str, Any] | None]) -> str:
    times = [row["time"]["mean"] for row in rows if row is not None]
    known = [time for time in times if time is not None]
    return f"{fmean(known):.2f}" if known else ""


def _gap(row: Mapping[str, Any], kind: str) -> str:
    value = row[kind]
    if row["failed"]:
        return "diverges" if kind == "equal_tokens" else ""
    if value["mean"] is None:
        return ""
    error = "" if value["error"] is None else f" ± {value['error']:.4f}"
    return f"{value['mean']:+.4f}{error}"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Differences of every change, a panel for each text."""
    found = concluded(result)
    rows = _together(found)
    picture = plot.figure(5.2 + 3.4 * len(found), 1.3 + 0.27 * max(4, len(rows)))
    panels = picture.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for number, (axes, text) in enumerate(zip(panels, found, strict=True)):
        _panel(axes, [row[number] for _, row in rows])
        axes.set_title(text, loc="left", fontsize=10)
        axes.set_xlabel("BPB minus that of the base")
    panels[0].set_yticks(range(len(rows)), [name for name, _ in rows])
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    handles, labels = panels[0].get_legend_handles_labels()
    picture.legend(handles, labels, frameon=False, fontsize=9, ncols=2, loc="outside upper right")
    plot.save(picture, path)


def _panel(axes: "Axes", rows: Sequence[Mapping[str, Any] | None]) -> None:
    plot.plain(axes)
    axes.axvline(0.0, color=plot.GREY, linewidth=1.0)
    bars = [
        (place + offset, row[kind]["mean"], row[kind]["error"] or 0.0, kind)
        for place, row in enumerate(rows)
        for kind, offset in zip(KINDS, (-0.19, 0.19), strict=True)
        if row is not None and row[kind]["mean"] is not None
    ]
    for kind, (label, colour) in _STYLES.items():
        known = [bar[:3] for bar in bars if bar[3] == kind]
        places, values, errors = zip(*known, strict=True) if known else ((), (), ())
        axes.barh(places, values, 0.36, xerr=errors, color=colour, ecolor="#333333", label=label)
    if bars:
        _cut(axes, [bar[:3] for bar in bars])


def _cut(axes: "Axes", bars: Sequence[tuple[float, float, float]]) -> None:
    """Let a few long bars leave the picture, with their value beside, so that others stay seen."""
    usual = float(np.quantile([abs(value) for _, value, _ in bars], 0.75))
    ends = [side * (side * value + error) for _, value, error in bars for side in (-1, 1)]
    left, right = (min(1.1 * max(side * end for end in ends), _LONG * usual) for side in (-1, 1))
    axes.set_xlim(-max(left, 0.1 * right), max(right, 0.1 * left))
    for place, value, _ in bars:
        limit = axes.get_xlim()[value > 0]
        if abs(value) > abs(limit):
            axes.annotate(
                f"{value:+.3f}",
                (limit, place),
                (-3 if value > 0 else 3, 0),
                textcoords="offset points",
                ha="right" if value > 0 else "left",
                va="center",
                fontsize=7,
                color="white",
            )


def _order(value: float | None) -> float:
    return math.inf if value is None else value
