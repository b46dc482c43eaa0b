"""Operations per token, by hand."""

import pytest

from segpt.config.expand import expand
from segpt.config.flops import flops, seen


@pytest.mark.parametrize("context", [1, 2, 9])
@pytest.mark.parametrize("window", [None, 1, 4, 20])
def test_attention_sees_what_a_mask_leaves(context: int, window: int | None) -> None:
    reach = context if window is None else window
    by_hand = sum(min(t + 1, reach) for t in range(context)) / context
    assert seen(context, window) == pytest.approx(by_hand)


def test_every_visit_counts() -> None:
    layer = {"mixer": {"heads": 2, "kv_heads": 1, "head_dim": 8}, "feed": {"hidden": 40}}
    spec = expand(
        {"vocab": 100, "width": 16, "context": 7, "depth": 2, "route": "0 (1)*3", "layer": layer}
    )
    per_visit = 2 * (16 * 16 + 2 * 8 * 16 + 16 * 16 + 2 * 16 * 40)
    found = flops(spec)
    assert found.matrices == 4 * per_visit
    assert found.attention == 4 * 4 * 16 * 4  # visits, products, channels, (7 + 1) / 2 positions
    assert found.head == 2 * 100 * 16
    assert found.forward == sum(found)
    assert found.training == 3 * found.forward
