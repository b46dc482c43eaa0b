"""Two gloo processes train the same model as one, and agree on everything."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segpt.config.base import encode
from segpt.config.model import ModelSpec
from segpt.config.optimizer import Adam, Muon, Optimizer
from segpt.config.train import Loops, TrainSpec
from segpt.train.trainer import Trainer
from tests.processes import in_two
from tests.train.running import train

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("two_processes.py")


def run_two(spec: ModelSpec, how: TrainSpec, out: Path, **task: Any) -> list[dict[str, Any]]:
    task = (
        {"spec": encode(spec), "how": encode(how), "out": str(out)}
        | {
            "skew": 0.0,
            "stop": -1,
            "resume": [],
        }
        | task
    )
    return [lines[0] for lines in in_two(SCRIPT, json.dumps(task))]


@pytest.mark.parametrize("matrix", [Muon(decay=0.1), Adam(decay=0.1)])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_two_processes_equal_one_and_resume_bit_exactly(
    make: Callable[..., Trainer],
    batches: Callable[[int], NDArray[np.int64]],
    matrix: Muon | Adam,
    accumulation: int,
    tmp_path: Path,
) -> None:
    alone = make(
        optimizer=Optimizer(matrix=matrix), accumulation=accumulation, save_every=1, steps=6
    )
    train(alone, batches)
    ranks = run_two(alone.spec, alone.cfg, tmp_path / "w.npz", resume=list(range(1, 6)))
    assert ranks[0]["digest"] == ranks[1]["digest"]
    assert set(ranks[0]["resumed"]) == {ranks[0]["digest"]}
    with np.load(tmp_path / "w.npz") as found:
        for name, value in alone.averaged_weights().items():
            assert np.allclose(value, found[name], atol=5e-4), name


def test_two_processes_draw_the_same_loops(
    make: Callable[..., Trainer], batches: Callable[[int], NDArray[np.int64]], tmp_path: Path
) -> None:
    alone = make(loops=Loops(most=4, back=2))
    train(alone, batches)
    ranks = run_two(alone.spec, alone.cfg, tmp_path / "w.npz", resume=[5, 15])
    assert ranks[0]["digest"] == ranks[1]["digest"]
    assert set(ranks[0]["resumed"]) == {ranks[0]["digest"]}
    with np.load(tmp_path / "w.npz") as found:
        for name, value in alone.averaged_weights().items():
            assert np.allclose(value, found[name], atol=5e-4), name


def test_ranks_with_different_clocks_agree(make: Callable[..., Trainer], tmp_path: Path) -> None:
    # each rank's own clock decides when to stop and how far the rate has fallen
    from segpt.config.schedule import Seconds

    run = make(length=Seconds(count=1.0))
    ranks = run_two(run.spec, run.cfg, tmp_path / "w.npz", skew=0.03)
    assert ranks[0]["step"] == ranks[1]["step"] > 3
    assert ranks[0]["digest"] == ranks[1]["digest"]


def test_a_signal_to_one_rank_stops_both(make: Callable[..., Trainer], tmp_path: Path) -> None:
    run = make()
    ranks = run_two(run.spec, run.cfg, tmp_path / "w.npz", stop=6)
    assert [r["step"] for r in ranks] == [6, 6]
    assert all(r["interrupted"] for r in ranks)
