"""What the difference between two scores is worth: means, intervals and Student's t.

Figures are of runs that differ in their seed, or of the documents of one text. Lower is better,
and every difference is B - A.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from segpt.config.base import PlainSpec

CONFIDENCE = 0.95
FEWEST = 3  # runs of a side that a verdict rests on

_ROUNDING = 1e-12  # relative: figures that differ by less are the same
_SMALLEST = 1e-300
_LARGE = 50.0


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), for a, b > 0 and x in [0, 1]."""
    return _incomplete_beta(a, b, x, 1 - x)


def survival(t: float, freedom: float) -> float:
    """P(T > t) for Student's t with ``freedom`` degrees of freedom, which may be broken."""
    whole = freedom + t * t
    far = t * t / whole if whole < math.inf else 1.0
    tail = _incomplete_beta(freedom / 2, 0.5, freedom / whole, far) / 2
    return tail if t >= 0 else 1 - tail


def _incomplete_beta(a: float, b: float, x: float, y: float) -> float:
    """Its continued fraction (DLMF 8.17.22), evaluated as Lentz does; ``y`` is 1 - ``x``."""
    if min(x, y) <= 0:
        return float(y <= 0)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, y, x)
    fraction, above, below, k = 1.0, 1.0, 0.0, 0
    while k == 0 or abs(above * below - 1) > 1e-15:
        m, k = (k + 1) // 2, k + 1
        term = m * (b - m) if k % 2 == 0 else -(a + m) * (a + b + m)
        term *= x / ((a + k - 1) * (a + k))
        below = 1 / ((1 + term * below) or _SMALLEST)
        above = (1 + term / above) or _SMALLEST
        fraction *= above * below
    logs = [math.log(z) if z < 0.5 else math.log1p(-rest) for z, rest in ((x, y), (y, x))]
    return math.exp(a * logs[0] + b * logs[1] - _log_beta(a, b)) / a / fraction


def _log_beta(a: float, b: float) -> float:
    small, large = sorted((a, b))
    if large < _LARGE:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    # Stirling's series for the ratio, since the difference of two large numbers is not exact
    ratio = (large - 0.5) * math.log1p(small / large) + small * math.log(large + small) - small
    return math.lgamma(small) - ratio - (_stirling(large + small) - _stirling(large))


def _stirling(z: float) -> float:
    return (1 / 12 - (1 / 360 - 1 / 1260 / z**2) / z**2) / z


def quantile(tail: float, freedom: float) -> float:
    """The t that is exceeded with probability ``tail``, in (0, 0.5]."""
    low, high = 0.0, 1.0
    while survival(high, freedom) > tail:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        if survival(middle, freedom) > tail:
            low = middle
        else:
            high = middle
    return high


@dataclass(frozen=True)
class Summary(PlainSpec):
    """Figures and their mean, with a 95 % confidence interval of it.

    ``sd`` is the standard deviation over the figures (n - 1 in its denominator). It and the
    interval are None for a single figure.
    """

    values: tuple[float, ...]
    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """An estimate of B - A with its standard error, to be judged by Student's t."""

    mean: float
    error: float
    freedom: float

    @property
    def t(self) -> float:
        return self.mean / self.error

    @property
    def low(self) -> float:
        """The lower end of the 95 % confidence interval."""
        return self.mean - self._reach

    @property
    def high(self) -> float:
        """The upper end of the 95 % confidence interval."""
        return self.mean + self._reach

    @property
    def p(self) -> float:
        """How often chance alone makes a difference as large, in either direction."""
        return 2 * survival(abs(self.t), self.freedom)

    @property
    def p_better(self) -> float:
        """How often chance alone makes B as much better (lower) than A, or more."""
        return self.p_beyond(0.0)

    def p_beyond(self, margin: float) -> float:
        """The same, if in truth B were better by ``margin``."""
        return survival(-(self.mean + margin) / self.error, self.freedom)

    @property
    def _reach(self) -> float:
        return quantile((1 - CONFIDENCE) / 2, self.freedom) * self.error


def summary(values: Sequence[float]) -> Summary:
    """The mean of at least one figure, and how far it can be trusted."""
    mean = fmean(values)
    if len(values) < 2:
        return Summary(tuple(values), mean, None, None, None)
    sd = stdev(values)
    reach = quantile((1 - CONFIDENCE) / 2, len(values) - 1) * sd / math.sqrt(len(values))
    return Summary(tuple(values), mean, sd, mean - reach, mean + reach)


def welch(a: Sequence[float], b: Sequence[float]) -> Difference | None:
    """The difference of the means of two sets of runs (Welch 1947, doi 10.1093/biomet/34.1-2.28).

    Spreads may differ. None if a side has a single figure, or neither has any spread.
    """
    if min(len(a), len(b)) < 2:
        return None
    errors = [stdev(side) ** 2 / len(side) for side in (a, b)]
    if _is_rounding(math.sqrt(sum(errors)), *a, *b):
        return None
    shares = [e * e / (len(side) - 1) for e, side in zip(errors, (a, b), strict=True)]
    freedom = sum(errors) ** 2 / sum(shares)
    return Difference(fmean(b) - fmean(a), math.sqrt(sum(errors)), freedom)


def paired(a: Sequence[float], b: Sequence[float]) -> Difference | None:
    """The mean of the differences of pairs, such as the same seed under two recipes.

    None if there is a single pair, or the differences have no spread.
    """
    if len(a) < 2:
        return None
    differences = [after - before for before, after in zip(a, b, strict=True)]
    error = stdev(differences) / math.sqrt(len(differences))
    if _is_rounding(error, *a, *b):
        return None
    return Difference(fmean(differences), error, len(differences) - 1)


def paired_ratio(
    a: Sequence[float], b: Sequence[float], weights: Sequence[float]
) -> Difference | None:
    """The difference of sum(b) / sum(weights) and sum(a) / sum(weights), over random pairs.

    Such as nats of documents, by their bytes. The error is that of a ratio of two means, from
    its linearisation (Cochran 1977, Sampling Techniques, 6.4). None as for :func:`paired`.
    """
    count, total = len(weights), math.fsum(weights)
    if count < 2:
        return None
    differences = [after - before for before, after in zip(a, b, strict=True)]
    ratio = math.fsum(differences) / total
    residuals = [d - ratio * w for d, w in zip(differences, weights, strict=True)]
    squares = math.fsum(r * r for r in residuals)
    error = math.sqrt(squares * count / (count - 1)) / total
    if _is_rounding(error, *[max(abs(x), abs(y)) / total for x, y in zip(a, b, strict=True)]):
        return None
    return Difference(ratio, error, count - 1)


def _is_rounding(error: float, *values: float) -> bool:
    return error <= _ROUNDING * max(map(abs, values))
