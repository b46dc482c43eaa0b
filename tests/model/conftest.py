"""Small models with every part, and random ones."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from segpt.model.build import build
from segpt.model.leaves import Matrix, Table, weights
from segpt.model.model import Model
from segpt.model.scaling import initialise
from segpt.spec.expand import expand
from segpt.spec.model import ModelSpec
from segpt.spec.recipe import read_recipe
from segpt.spec.train import Scaling

EVERYTHING: dict[str, Any] = {
    "vocab": 61,
    "width": 32,
    "context": 64,
    "depth": 5,
    "route": "0 (1:4)*2@0.3 (3)*2@0.6 4",
    "skips": "mirror",
    "join": ["mix_input"],
    "head": {"tied": False, "softcap": 15.0},
    "layer": {
        "join": ["mix_input"],
        "norm_scale": "depth",
        "mixer": {
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 8,
            "query_key": ["norm", {"kind": "rope", "dims": 4}, {"kind": "gain", "init": 2.0}],
            "value": ["value_residual"],
            "output": ["exclude_self", {"kind": "head_gate", "inputs": 12}],
        },
        "feed": {"hidden": 48, "act": "leaky_relu2", "fast": {"chunk": 3}},
    },
    "override": [
        {"layers": "1", "set": {"wiring": "parallel", "feed": {"act": "swiglu"}}},
        {"layers": "2", "set": {"feed": None}},
        {
            "layers": "3",
            "set": {
                "mixer": None,
                "feed": {
                    "act": "silu",
                    "fast": {"chunk": 5, "taps": 3, "source": "input", "projection": False},
                },
            },
        },
        {
            "layers": "4",
            "set": {
                "wiring": "parallel",
                "feed": {"act": "relu2", "fast": {"clip": 0.05}},
                "mixer": {
                    "query_key": [{"kind": "gain"}, {"kind": "rope", "dims": 8, "turn": "left"}]
                },
            },
        },
    ],
}
SMALL = {
    "demo": ["width=64", "context=32", "vocab=97"],
    "golf16": ["width=64", "context=32", "vocab=97", "layer.feed.hidden=96"]
    + [f"layer.mixer.{name}" for name in ("heads=4", "kv_heads=2", "head_dim=16")]
    + ["layer.mixer.query_key[1].dims=4"],
    "seed004": ["width=64", "context=32", "vocab=97", "layer.feed.hidden=96"]
    + [f"layer.mixer.{name}" for name in ("heads=4", "kv_heads=2", "head_dim=16")]
    + ["layer.mixer.query_key[1].dims=16"],
}


def small(name: str) -> ModelSpec:
    """A shipped recipe at reduced width."""
    return read_recipe(name, [f"model.{setting}" for setting in SMALL[name]]).model


def randomised(seed: int) -> ModelSpec:
    """A model with any subset of the parts, of any shape."""
    chance = random.Random(seed)

    def some(*parts: Any) -> list[Any]:
        return [part for part in parts if chance.random() < 0.6]

    def layer() -> dict[str, Any]:
        parts: dict[str, Any] = {
            "query_key": some(
                "norm",
                {"kind": "rope", "dims": 2 * chance.randint(1, head_dim // 2)},
                {"kind": "gain", "init": chance.uniform(0.5, 5)},
            ),
            "value": some("value_residual"),
            "output": some({"kind": "head_gate", "inputs": chance.randint(1, 16)}, "exclude_self"),
        }
        heads = kv_heads * chance.randint(1, 3)
        mixer = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim} | parts
        act = chance.choice(["relu2", "leaky_relu2", "silu", "swiglu"])
        fast = {
            "chunk": chance.randint(1, 6),
            "source": chance.choice(["table", "input"]),
            "projection": chance.random() < 0.5,
        }
        return {
            "wiring": chance.choice(["serial", "parallel"]),
            "norm_scale": chance.choice([1.0, 0.5, "depth"]),
            "join": some("mix_input"),
            "mixer": mixer if chance.random() < 0.8 else None,
            "feed": {
                "hidden": chance.randint(24, 40),
                "act": act,
                "fast": fast if chance.random() < 0.3 else None,
            },
        }

    kv_heads, head_dim = chance.randint(1, 2), 2 * chance.randint(2, 6)
    depth = chance.randint(2, 4)
    recipe = {
        "vocab": chance.randint(20, 60),
        "width": chance.randint(16, 40),
        "context": 32,
        "depth": depth,
        "layer": layer(),
        "override": [{"layers": str(i), "set": layer()} for i in range(1, depth)],
        "route": chance.choice([":", "(:)*2", "0 (1:)*3@0.4", "(0:2)*2@0.2 2:", ": 0"]),
        "skips": chance.choice([None, "mirror"]),
        "join": some("mix_input"),
        "head": {"tied": chance.random() < 0.5, "softcap": chance.choice([None, 20.0])},
    }
    return expand(recipe)


def made(spec: ModelSpec, seed: int = 0) -> Model:
    """A model in which every weight matters: what starts at zero or one is moved off it."""
    model = build(spec)
    initialise(model, Scaling(table=0.1), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for weight in weights(model):
            noise = torch.randn(weight.tensor.shape, generator=generator)
            match weight.leaf:
                case Matrix(zero=True):
                    weight.tensor.copy_(noise / weight.tensor.size(1) ** 0.5)
                case Table() | Matrix():
                    pass
                case _:
                    weight.tensor.add_(0.3 * noise)
    return model


Make = Callable[..., Model]


SPECS: dict[str, Callable[[], ModelSpec]] = {
    "everything": lambda: expand(EVERYTHING),
    **{name: partial(small, name) for name in SMALL},
    **{f"random{seed}": partial(randomised, seed) for seed in range(6)},
}


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    """Each small recipe, a model with every part, and random ones."""
    return SPECS[request.param]()


@pytest.fixture(scope="session")
def everything() -> ModelSpec:
    return SPECS["everything"]()


@pytest.fixture(scope="session")
def small_recipe() -> Callable[[str], ModelSpec]:
    return small


@pytest.fixture(scope="session")
def make() -> Make:
    return made


@pytest.fixture(scope="session")
def tokens() -> Callable[..., torch.Tensor]:
    """Token ids (batch, time) that fit a spec."""

    def draw(spec: ModelSpec, batch: int = 2, time: int = 12, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(spec.vocab, (batch, time), generator=generator)

    return draw
