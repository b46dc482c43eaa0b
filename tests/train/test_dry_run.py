"""What a run says about itself before it starts."""

import pytest

from segpt.errors import SpecError
from segpt.spec.recipe import read_recipe
from segpt.stages.train import describe

LOOPED = "model.route='0 (1)*3 2'"


def test_a_dry_run_states_the_loop_and_what_is_drawn() -> None:
    plain, fixed = describe(read_recipe("demo")), describe(read_recipe("demo", [LOOPED]))
    assert (plain["loop"], plain["loops"]) == (None, None)
    assert (fixed["loop"], fixed["loops"]) == ({"start": 1, "size": 1, "times": 3}, None)
    drawn = describe(read_recipe("demo", [LOOPED, "train.loops.most=6", "train.loops.mean=3"]))
    assert drawn["loop"] == fixed["loop"]
    assert drawn["loops"]["least"] == 1
    assert drawn["loops"]["most"] == 6
    assert drawn["loops"]["mean"] == 3.0


def test_a_dry_run_refuses_to_draw_without_a_loop() -> None:
    with pytest.raises(SpecError, match="has no loop"):
        describe(read_recipe("demo", ["train.loops.most=6"]))
