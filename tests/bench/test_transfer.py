"""The benchmark of rates over widths: what it measures, and that it goes on where it stopped."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench.transfer import WAYS, best_factor, concluded, draw, measure, model, opened, run_of
from segpt.config.layout import Role, layout
from segpt.errors import DataError

SIZE = {"steps": 5, "depth": 1, "context": 8, "batch": 2}


class Text:
    """A stream of tokens in memory."""

    def __init__(self, count: int) -> None:
        self.tokens = np.random.default_rng(0).integers(0, 257, count)

    def __len__(self) -> int:
        return len(self.tokens)

    def slice(self, start: int, stop: int) -> NDArray[np.int64]:
        return self.tokens[start:stop]


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_stopped_and_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    torch.set_num_threads(1)
    out, text = tmp_path / "transfer.json", Text(2000)
    ways = ["Muon", "Muon, muP"]
    measure(opened(out, SIZE), text, out, ways, [32, 64], [1.0])
    first = json.loads(out.read_bytes())
    assert [(p["way"], p["width"]) for p in first["sweep"]] == [
        (w, n) for n in (32, 64) for w in ways
    ]
    measure(opened(out, SIZE), text, out, ways, [32, 64], [1.0, 4.0])
    found = json.loads(out.read_bytes())
    assert [p for p in found["sweep"] if p["factor"] == 1] == first["sweep"]
    assert len(found["sweep"]) == 8
    assert found["checks"] == first["checks"]
    for check in found["checks"]:
        assert len(check["start"]) == 2  # what enters the visit, and the logits
        assert len(check["moved"]) == 10
        assert 0 < check["moved"][0][-1] < check["moved"][-1][-1]
    narrow, scaled = (
        next(p["loss"] for p in found["sweep"] if (p["way"], p["width"]) == (way, 64))
        for way in ways
    )
    assert narrow == scaled  # at the base width nothing is scaled
    draw(found, tmp_path / "transfer.png")
    assert (tmp_path / "transfer.png").stat().st_size > 10_000
    with pytest.raises(DataError, match="holds runs of another size"):
        opened(out, SIZE | {"steps": 6})
    with pytest.raises(DataError, match="too short to be read once"):
        measure(opened(out, SIZE), Text(60), out, ways, [32], [1.0])


def test_factors_multiply_every_rate_beside_those_of_the_width() -> None:
    spec = model(128, 1, 8)
    rates = {}
    for way in WAYS:
        for factor in (1.0, 4.0):
            groups = run_of(way, spec, 10, 2, factor).optimizers.groups()
            rates[way, factor] = [(g.role, g.rule.rate) for g in groups]
    for way in WAYS:
        assert sorted(r for _, r in rates[way, 4.0]) == pytest.approx(
            sorted(4 * r for _, r in rates[way, 1.0])
        )
    matrices = {r for role, r in rates["Adam, muP", 1.0] if role is Role.MATRIX}
    fans = {w.shape[1] for w in layout(spec) if w.role is Role.MATRIX}
    assert matrices == {0.002 * 64 / fan for fan in fans}


def points(losses: dict[float, float | None]) -> list[dict[str, object]]:
    return [{"way": "w", "width": 1, "factor": f, "loss": loss} for f, loss in losses.items()]


def test_the_best_factor_is_that_of_a_parabola() -> None:
    quadratic = {2.0**k: 1.0 + 0.1 * (k - 0.3) ** 2 for k in range(-3, 4)}
    assert best_factor(points({**quadratic, 16.0: None})) == pytest.approx(2**0.3)
    assert best_factor(points({1.0: 3.0, 2.0: 2.0, 4.0: 1.0})) is None
    assert best_factor([]) is None
    summary = concluded({"sweep": points({**quadratic})})
    assert summary["w"]["best"]["1"] == pytest.approx(2**0.3)
    assert summary["w"]["spread"] is None
