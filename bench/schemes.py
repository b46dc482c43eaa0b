"""What is compared: the seed's scheme, the field's, and ours by rate and by ingredient."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from segpt.config.quant import QuantSpec, Rule

from .curves import Curve

Family = Literal["seed", "field", "rd", "trellis", "steps", "states"]

CALIBRATION = 65_536  # tokens of training text, for every scheme alike
CLIPS = (6.0, 9.0, 12.85, 18.0, 25.0, 35.0)
RATES = (2.5, 3.0, 3.5, 4.0)
RATE = 3.5  # bits per weight, of the headline
HEADLINE = f"trellis {RATE:g}"

_PLAIN: dict[str, Any] = {"two_sided": False, "search": 0, "tune_steps": 0, "penalty": 0.0}
# One ingredient more per line. The last is HEADLINE, and what comes first is the field's scheme.
STEPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("designed steps", _PLAIN | {"method": "rd"}),
    ("rounding against the rate", _PLAIN | {"method": "rd", "penalty": 0.05}),
    ("trellis of 8 states", _PLAIN),
    ("feedback between rows", {"search": 0, "tune_steps": 0}),
    ("search of steps", {"tune_steps": 0}),
)
TUNING = "tuning"

_FINEST, _COARSEST, _LADDER = 3.5, 100.0, 1.25  # clips beyond CLIPS, where a curve needs more
_CLOSE = 0.02  # clips nearer than this are one


class Scheme(NamedTuple):
    """One point to measure: a name that no other has, what it belongs to, and how it is made."""

    name: str
    family: Family
    spec: QuantSpec


def schemes(context: int) -> tuple[Scheme, ...]:
    """All that is planned from the start, what matters most first.

    The stage's own measurement is cut to one block of ``context`` tokens: quality is measured
    by :class:`bench.measure.HeldOut` instead.
    """

    def ours(name: str, family: Family, **settings: Any) -> Scheme:
        base: dict[str, Any] = {"calibration_tokens": CALIBRATION, "report_tokens": context}
        return Scheme(name, family, QuantSpec(**(base | {"rate": RATE} | settings)))

    return (
        ours(HEADLINE, "trellis"),
        *(field(k, context) for k in CLIPS),
        *(ours(name, "steps", **settings) for name, settings in STEPS),
        *(ours(f"trellis {r:g}", "trellis", rate=r) for r in RATES if r != RATE),
        # The scalar curve and the other machines are for comparison: as coded, not tuned.
        *(ours(f"rd {r:g}", "rd", method="rd", rate=r, search=0, tune_steps=0) for r in RATES),
        *(
            ours(f"{states} states", "states", states=states, search=0, tune_steps=0)
            for states in (4, 16)
        ),
        Scheme(
            "seed",
            "seed",
            QuantSpec(
                method="nearest",
                rules=_rules(2.5, 2.5),
                calibration_tokens=CALIBRATION,
                report_tokens=context,
            ),
        ),
    )


def field(k: float, context: int) -> Scheme:
    """GPTQ in the order of activations, int6 and an int8 table, clipped at ``k`` deviations."""
    spec = QuantSpec(
        method="gptq",
        rules=_rules(k, k * 20 / 12.85),
        calibration_tokens=CALIBRATION,
        report_tokens=context,
    )
    return Scheme(f"field k={k:g}", "field", spec)


def more(points: Sequence[Mapping[str, Any]], context: int) -> Scheme | None:
    """The clip that the field's curve still needs, if any.

    It has to reach as low and as high in KL as ours does, since nothing is extrapolated; and it
    gets a point at the bytes of the headline and one at its KL, so that there the headline rests
    on measured points rather than on a line between distant ones.
    """
    clips = {float(p["name"].split("=")[1]): p for p in points if p["family"] == "field"}
    ours = [p for p in points if p["family"] not in ("field", "seed")]
    best = next((p for p in ours if p["name"] == HEADLINE), None)
    if len(clips) < len(CLIPS) or best is None:
        return None
    finest, coarsest = min(clips), max(clips)
    wanted: list[float | None] = []
    if min(p["kl"] for p in ours) < clips[finest]["kl"] and finest / _LADDER >= _FINEST:
        wanted.append(finest / _LADDER)
    if max(p["kl"] for p in ours) > clips[coarsest]["kl"] and coarsest * _LADDER <= _COARSEST:
        wanted.append(coarsest * _LADDER)
    for key in ("bytes", "kl"):
        where = Curve((math.log(k), p[key]) for k, p in clips.items()).place(best[key])
        wanted.append(None if where is None else math.exp(where))
    for k in wanted:
        if k is not None and all(abs(k / other - 1) > _CLOSE for other in clips):
            return field(float(f"{k:.4g}"), context)
    return None


def _rules(matrix: float, table: float) -> tuple[Rule, ...]:
    return (
        Rule(role="table", bits=8, clip=table),
        Rule(role="matrix", bits=6, clip=matrix),
        Rule(role="head", bits=8, clip=table),
        Rule(role="vector", bits=16),
    )
