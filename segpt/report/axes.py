"""The two axes of a chart: their scales, ticks and names, and where a value lies between them."""

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from .scale import Scale, scale

WIDTH, HEIGHT = 480, 260
LEFT, RIGHT, TOP, BOTTOM = 54, 22, 28, 46


class Axes:
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
            y = rounded(self.place(self.across.low, tick)[1])
            parts.append(
                Markup(
                    '<path class="grid" d="M{} {}H{}"/><text class="end" x="{}" y="{}">{}</text>'
                ).format(LEFT, y, right, LEFT - 7, rounded(float(y) + 4), name)
            )
        for tick, name in zip(self.across.ticks, self.across.tick_names(), strict=True):
            x = rounded(self.place(tick, self.up.low)[0])
            parts.append(
                Markup(
                    '<path class="grid" d="M{} {}v5"/><text class="middle" x="{}" y="{}">{}</text>'
                ).format(x, floor, x, floor + 19, name)
            )
        parts.append(
            Markup('<text class="end" x="{}" y="{}">{}</text>').format(right, floor + 38, self.x)
        )
        return Markup("").join([*parts, *drawn]), HEIGHT


def padded(values: Sequence[float], log: bool) -> Scale:
    """A scale with some room at both ends, for markers and their names."""
    low, high = min(values), max(values)
    if log:
        room = max(high / low, 1.5) ** 0.06
        return scale([low / room, high * room], log=True)
    reach = 0.06 * (high - low)
    return scale([low - reach, high + reach])


def rounded(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text
