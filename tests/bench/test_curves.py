"""Interpolation between measured points, and standard errors over documents."""

import math

import numpy as np
import pytest

from bench.curves import Curve, mean
from bench.measure import ratio


def test_a_curve_is_straight_in_the_logarithm() -> None:
    curve = Curve([(20.0, 1.0), (10.0, 4.0), (40.0, 0.5)])
    assert curve.value(15.0) == pytest.approx(2.0)
    assert curve.place(2.0) == pytest.approx(15.0)
    assert curve.value(30.0) == pytest.approx(math.sqrt(0.5))
    assert curve.place(4.0) == 10.0


@pytest.mark.parametrize("x", [9.0, 41.0])
def test_nothing_is_extrapolated(x: float) -> None:
    curve = Curve([(10.0, 4.0), (40.0, 0.5)])
    assert curve.value(x) is None
    assert curve.mix(x) is None
    assert curve.place(4.1) is None
    assert curve.place(0.4) is None


def test_a_curve_that_turns_back_gives_the_fewest_bytes() -> None:
    curve = Curve([(10.0, 4.0), (20.0, 1.0), (30.0, 2.0), (40.0, 1.0)])
    assert curve.place(1.0) == 20.0


def test_a_mix_of_two_points_has_the_value_of_the_curve() -> None:
    points = [(10.0, 4.0), (20.0, 1.0), (40.0, 0.5)]
    curve = Curve(points)
    for x in (10.0, 13.0, 20.0, 33.0, 40.0):
        mix = curve.mix(x)
        assert mix is not None
        low, high = points[mix.first][1], points[mix.first + 1][1]
        assert low + mix.share * (high - low) == pytest.approx(curve.value(x))


def test_a_mean_is_missing_where_a_part_of_it_is() -> None:
    assert mean([1.0, 3.0]) == {"mean": 2.0, "error": pytest.approx(1.0), "each": [1.0, 3.0]}
    assert mean([1.0])["error"] is None
    assert mean([1.0, None])["mean"] is None
    assert mean([])["mean"] is None


def test_the_error_of_a_ratio_is_what_other_documents_would_change() -> None:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(400):
        under = generator.gamma(2.0, size=80)
        over = 0.5 * under + 0.1 * generator.standard_normal(80)
        found.append(ratio(over, under))
    values = [f.value for f in found]
    assert np.mean(values) == pytest.approx(0.5, abs=0.003)
    assert np.mean([f.error for f in found]) == pytest.approx(np.std(values), rel=0.15)
