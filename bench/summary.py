"""What the points of the codec benchmark say: bytes at equal KL, and KL and BPB at equal bytes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .curves import Curve, mean
from .measure import Ratio, ratio
from .schemes import HEADLINE, RATES, STEPS, TUNING

Point = Mapping[str, Any]
CODER = "brotli-11"  # the field's

READ_ME = {
    "bytes_at_equal_kl": "bytes of our packed file over bytes of the field's file, whose clip is "
    "such that it has the KL of ours",
    "kl_at_equal_bytes": "our KL over the field's, at the bytes of our packed file",
    "bpb_gap_ratio": "the BPB that quantization costs ours over what it costs the field's, at the "
    "bytes of our packed file; pooled over checkpoints, with the standard error over documents",
    "ingredients": "bytes at equal KL, each over the line before it; the first over the field",
    "coders": "the field's codes at our KL, in the bytes of other coders over those of brotli",
    "error": "standard error over checkpoints",
}


def summary(checkpoints: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over checkpoints with their standard errors; None for what is not covered yet."""
    found = [_Checkpoint(c) for c in checkpoints if c["points"]]
    names = [f"{method} {rate:g}" for method in ("rd", "trellis") for rate in RATES]
    size = mean([c.bytes_at_equal_kl(HEADLINE) for c in found])
    damage = mean([c.kl_at_equal_bytes(HEADLINE) for c in found])
    return {
        "read_me": READ_ME,
        "bytes_at_equal_kl": size["mean"],
        "kl_at_equal_bytes": damage["mean"],
        "by_rate": {
            "bytes_at_equal_kl": {n: mean([c.bytes_at_equal_kl(n) for c in found]) for n in names},
            "kl_at_equal_bytes": {n: mean([c.kl_at_equal_bytes(n) for c in found]) for n in names},
        },
        "headline": {
            "point": HEADLINE,
            "bytes_at_equal_kl": size,
            "kl_at_equal_bytes": damage,
            "kl_ratio_pooled": _pooled(found, "divergence"),
            "bpb_gap_ratio": mean([c.gap_ratio() for c in found]),
            "bpb_gap_ratio_pooled": _pooled(found, "loss"),
        },
        "states": {
            label: mean([c.bytes_at_equal_kl(name) for c in found])
            for label, name in (
                ("4 states", "4 states"),
                ("8 states", "feedback between rows"),  # like the others neither searched nor tuned
                ("16 states", "16 states"),
            )
        },
        "ingredients": _ingredients(found),
        "coders": _coders(found),
    }


class _Checkpoint:
    """The points of one checkpoint by name, and the field's curve through them."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self.points: dict[str, Point] = {p["name"]: p for p in entry["points"]}
        self.field = sorted(
            (p for p in entry["points"] if p["family"] == "field"), key=lambda p: p["bytes"]
        )

    def curve(self, coder: str = CODER) -> Curve | None:
        """KL over bytes in one coder; None before there are two points."""
        known = [p for p in self.field if coder in p["coders"]]
        if len(known) < 2:
            return None
        return Curve((p["coders"][coder], p["kl"]) for p in known)

    def bytes_at_equal_kl(self, name: str, coder: str = CODER) -> float | None:
        point, curve = self.points.get(name), self.curve(coder)
        if point is None or curve is None:
            return None
        theirs = curve.place(point["kl"])
        return None if theirs is None else point["bytes"] / theirs

    def kl_at_equal_bytes(self, name: str) -> float | None:
        point, curve = self.points.get(name), self.curve()
        if point is None or curve is None:
            return None
        theirs = curve.value(point["bytes"])
        return None if theirs is None else point["kl"] / theirs

    def documents(self, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Nats of each document at the headline: ours, and the field's at the same bytes."""
        point, curve = self.points.get(HEADLINE), self.curve()
        if point is None or curve is None or (mix := curve.mix(point["bytes"])) is None:
            return None
        low, high = (np.array(p["documents"][key]) for p in self.field[mix.first : mix.first + 2])
        return np.array(point["documents"][key]), low + mix.share * (high - low)

    def gap_ratio(self) -> float | None:
        pair = self.documents("loss")
        return None if pair is None else ratio(*pair).value


def _pooled(found: Sequence[_Checkpoint], key: str) -> dict[str, float] | None:
    """Ours over the field's, from the sums of every document over all checkpoints."""
    pairs = [pair for c in found if (pair := c.documents(key)) is not None]
    if not pairs or len(pairs) < len(found):
        return None
    pooled: Ratio = ratio(sum(a for a, _ in pairs), sum(b for _, b in pairs))  # type: ignore[arg-type]
    return {"value": pooled.value, "error": pooled.error, "checkpoints": len(pairs)}


def _ingredients(found: Sequence[_Checkpoint]) -> list[dict[str, Any]]:
    """Each line's bytes at equal KL over the field's, and over those of the line before."""
    lines = [("the field's codes in our coder", [_recoded(c, "segpt") for c in found])]
    for line, name in [(name, name) for name, _ in STEPS] + [(TUNING, HEADLINE)]:
        lines.append((line, [c.bytes_at_equal_kl(name) for c in found]))
    result = []
    before: list[float | None] = [1.0] * len(found)
    for line, now in lines:
        steps = [
            None if a is None or b is None else b / a for a, b in zip(before, now, strict=True)
        ]
        result.append(
            {"ingredient": line, "over_the_field": mean(now), "over_the_line_before": mean(steps)}
        )
        before = now
    return result


def _coders(found: Sequence[_Checkpoint]) -> dict[str, Any]:
    names = {coder for c in found for p in c.field for coder in p["coders"]}
    return {name: mean([_recoded(c, name) for c in found]) for name in sorted(names)}


def _recoded(checkpoint: _Checkpoint, coder: str) -> float | None:
    """Bytes of the field's codes in another coder, over those in its own, at our KL."""
    point = checkpoint.points.get(HEADLINE)
    curves = checkpoint.curve(coder), checkpoint.curve()
    if point is None or curves[0] is None or curves[1] is None:
        return None
    places = [curve.place(point["kl"]) for curve in curves if curve is not None]
    if places[0] is None or places[1] is None:
        return None
    return places[0] / places[1]


def round_figures(value: Any, digits: int = 7) -> Any:
    """JSON values with their floats to so many digits, which is more than they are good for."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: round_figures(v, digits) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [round_figures(v, digits) for v in value]
    return value
