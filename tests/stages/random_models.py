"""Checkpoints of random weights, of any shape, and text for them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpt.config.expand import expand
from segpt.config.layout import Role, Weight, layout
from segpt.values import Checkpoint, Tokenizer

CONTEXT = 32


def checkpoint(
    *,
    vocab: int = 120,
    width: int = 32,
    depth: int = 2,
    hidden: int = 64,
    tied: bool = True,
    route: str = ":",
    unseen: int = 0,
    seed: int = 0,
) -> Checkpoint:
    """Rows differ in size; the last ``unseen`` rows of the table are almost the same."""
    recipe: dict[str, Any] = {
        "vocab": vocab,
        "width": width,
        "context": CONTEXT,
        "depth": depth,
        "route": route,
        "join": ["mix_input"],
        "head": {"tied": tied, "softcap": 30.0},
        "layer": {
            "mixer": {
                "heads": width // 32,
                "kv_heads": 1,
                "head_dim": 32,
                "query_key": ["norm", {"kind": "rope", "dims": 8}],
            },
            "feed": {"hidden": hidden},
        },
    }
    spec, draw = expand(recipe), np.random.default_rng(seed)

    def value(weight: Weight) -> NDArray[np.float32]:
        if weight.role is Role.VECTOR:
            return draw.normal(1, 0.1, weight.shape).astype(np.float32)
        rows, columns = weight.shape
        values = draw.normal(0, columns**-0.5, weight.shape)
        values *= np.exp(0.3 * draw.normal(size=(rows, 1)))
        if weight.name == "table" and unseen:
            values[-unseen:] = values[-1] + 0.01 * values[-unseen:]
        return values.astype(np.float32)

    return Checkpoint(
        spec=spec,
        weights={w.name: value(w) for w in layout(spec)},
        tokenizer=Tokenizer("bytes", vocab),
        step=10,
        progress=1.0,
        documents=np.array([1, 2, 3], np.uint64),
        origin={"tokens": "0123456789abcdef"},
    )


def blocks(vocab: int, seed: int = 1, count: int = 6) -> list[NDArray[np.int64]]:
    """Low token ids are the most frequent."""
    draw = np.random.default_rng(seed)
    return [(draw.random((16, CONTEXT + 1)) ** 2 * vocab).astype(np.int64) for _ in range(count)]
