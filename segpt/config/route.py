"""The order in which layers run: their visits, the routes people write, and the loops in them."""

import dataclasses
import functools
import re
from typing import NamedTuple

from segpt.errors import SpecError

from .base import ADDED, spec
from .parts import JoinPart
from .window import check_window

_STEP = re.compile(
    r"(?:\((?P<loop>[^()*@\s]+)\)|(?P<pick>[^()*@\s]+))"
    r"(?:\*(?P<times>[0-9]{1,9}))?(?:@(?P<since>[0-9.,]+))?"
)
MOST_VISITS = 4096


@spec
class Visit:
    """One step of the forward pass: which layer runs, and how the stream enters it.

    ``since`` is the fraction of training at which the visit joins the model. ``norm_scale``
    multiplies that of the layer, and a ``window`` narrows that of its attention.
    """

    layer: int
    join: tuple[JoinPart, ...] = ()
    since: float = 0.0
    norm_scale: float = dataclasses.field(default=1.0, metadata=ADDED)
    window: int | None = dataclasses.field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        check_window(self.window)


class Loop(NamedTuple):
    """Where a route repeats itself: ``times`` passes of ``size`` visits, from visit ``start``."""

    start: int
    size: int
    times: int

    @property
    def end(self) -> int:
        """The visit after the last one of the loop."""
        return self.start + self.size * self.times


def indices(selection: str, depth: int) -> list[int]:
    """The layers a selection names: ``"3"``, ``"-1"``, ``"7:"``, ``"::2"`` or ``"0,4,-1"``."""
    chosen: list[int] = []
    for item in str(selection).split(","):
        try:
            if ":" in item:
                bounds = [int(b) if b else None for b in item.split(":")]
                chosen.extend(range(depth)[slice(*bounds)])
            else:
                chosen.append(range(depth)[int(item)])
        except (ValueError, IndexError, TypeError):
            raise SpecError(
                f"cannot read {item!r} as a selection of {depth} layers; "
                "write an index or a slice such as '3', '7:' or '::2'"
            ) from None
    return chosen


def parse_route(route: str, depth: int) -> list[tuple[int, float]]:
    """The order in which layers run, and from which progress on.

    ``"0:3 (3:6)*3 6:"`` loops layers 3 to 5 three times. ``"(3:6)*3@0.35"`` starts with one
    pass and adds the other two at 35 percent of training; ``"@0.5,0.65"`` adds them one by one.

    Returns:
        One ``(layer, since)`` per visit, in order; ``since`` is 0 for a visit that always runs.
    """
    order: list[tuple[int, float]] = []
    for step in route.split():
        if (match := _STEP.fullmatch(step)) is None:
            raise SpecError(f"cannot read {step!r} in route {route!r}; write e.g. '(3:6)*3'")
        times = int(match["times"] or 1)
        layers = indices(match["loop"] or match["pick"], depth)
        if len(order) + len(layers) * times > MOST_VISITS:
            raise SpecError(f"route {route!r} makes more than {MOST_VISITS} visits")
        joins = _joins(match["since"], times, step)
        order += [(layer, since) for since in joins for layer in layers]
    if missing := set(range(depth)) - {layer for layer, since in order if since == 0}:
        raise SpecError(f"route {route!r} never visits layer {min(missing)} from the start")
    return order


def _joins(since: str | None, times: int, step: str) -> list[float]:
    if since is None:
        return [0.0] * times
    if times < 2:
        raise SpecError(f"{step!r} has no extra pass to join at '@'; write e.g. '(3:6)*2@0.35'")
    try:
        fractions = [float(s) for s in since.split(",")]
    except ValueError:
        raise SpecError(f"cannot read the numbers after '@' in {step!r}") from None
    extra = fractions * (times - 1) if len(fractions) == 1 else fractions
    if len(extra) != times - 1 or sorted(extra) != extra:
        raise SpecError(
            f"{step!r} has {times - 1} extra passes; give one '@' number for all of them, "
            "or one for each in rising order"
        )
    return [0.0, *extra]


@functools.lru_cache(maxsize=64)
def longest_loop(order: tuple[int, ...]) -> Loop | None:
    longest: Loop | None = None
    for size in range(1, len(order) // 2 + 1):
        same = 0
        for i in range(size, len(order)):
            same = same + 1 if order[i] == order[i - size] else 0
            times = same // size + 1
            if times > 1 and (longest is None or size * times > longest.size * longest.times):
                longest = Loop(i - same - size + 1, size, times)
    return longest
