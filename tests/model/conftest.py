"""Small models with every part, and random ones."""

import dataclasses
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from segpt.config.expand import expand
from segpt.config.model import ModelSpec
from segpt.config.parts import LoopBlend
from segpt.config.recipe import read_recipe
from segpt.config.train import Scaling
from segpt.model.build import build
from segpt.model.model import Model
from segpt.model.params import Matrix, Table, weights
from segpt.model.scaling import initialise

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
VARIANTS: dict[str, Any] = {
    "vocab": 53,
    "width": 32,
    "context": 64,
    "depth": 5,
    "route": "0 (1:4)*2@0.3 4",
    "windows": {"long": 9, "short": 4, "pattern": "LSS", "last": "long", "by": "visit"},
    "growth": {"full": 8, "shape": "cubic", "multiple": 3},
    "head": {
        "tied": False,
        "softcap": {"kind": "asymmetric", "init": 8.0},
        "scale": 0.7,
        "gain": True,
        "multiple": 8,
        "zero": True,
    },
    "layer": {
        "mixer": {
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 8,
            "scale": 0.12,
            "query_key": [
                {"kind": "rope", "dims": 8, "base": 50.0, "rates": "half"},
                "norm",
                {"kind": "gain", "per": "layer"},
            ],
            "value": [{"kind": "value_residual", "scaled": True, "first": "mixed"}],
            "output": [
                {"kind": "exclude_self", "gated": True},
                {"kind": "head_gate", "inputs": None, "per": "element", "std": None},
            ],
        },
        "feed": {"hidden": 48},
    },
    "override": [
        {
            "layers": "1,4",
            "set": {
                "mixer": {
                    "query_key": [{"kind": "rope", "dims": 4, "pairs": "neighbours"}],
                    "value": [{"kind": "value_residual", "mode": "lerp"}],
                    "output": [{"kind": "head_gate", "scale": 1.0, "sharpness": 0.5, "std": 0.1}],
                }
            },
        },
        {"layers": "3", "set": {"mixer": None}},
    ],
}
DOCUMENTS: dict[str, Any] = {
    "vocab": 47,
    "width": 32,
    "context": 64,
    "depth": 4,
    "route": "0 (1:3)*2@0.3 3",
    "start": 5,
    "documents": True,
    "value_tables": 2,
    "join": ["mix_input"],
    "layer": {
        "mixer": {
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 8,
            "query_key": ["norm", {"kind": "rope", "dims": 8}],
            "value": ["value_norm", {"kind": "value_embedding", "table": 0}],
        },
        "feed": {"hidden": 48},
    },
    "override": [
        {"layers": "1", "set": {"mixer": {"window": 4}}},
        {"layers": "2", "set": {"mixer": {"value": ["value_residual"]}}},
        {
            "layers": "3",
            "set": {
                "wiring": "parallel",
                "mixer": {
                    "value": [
                        {
                            "kind": "value_embedding",
                            "table": 1,
                            "keep": 0.5,
                            "blend": 0.5,
                            "per_head": True,
                        },
                        {"kind": "value_embedding", "table": 0},
                    ]
                },
            },
        },
    ],
}
EMBEDDED: dict[str, Any] = DOCUMENTS | {
    "documents": False,
    "embed": [
        {"kind": "token", "norm": False},
        {"kind": "smear", "inputs": 6},
        {"kind": "bigram", "buckets": 31, "width": 6},
        {"kind": "smear", "gate": "channel"},
        {"kind": "bigram", "buckets": 19, "width": 32, "scale": 1.0},
        "normalise",
    ],
}
ROUTED: dict[str, Any] = {
    "vocab": 43,
    "width": 32,
    "context": 64,
    "depth": 5,
    "route": "0 (1:4)*2@0.3 4",
    "skips": {"kind": "mirror", "form": "add", "per": "scalar"},
    "join": ["loop_embedding", {"kind": "mix_input", "per": "scalar"}, "loop_gain"],
    "layer": {
        "gain": "input",
        "norm_scale": "visit",
        "wiring": "lanes",
        "join": [{"kind": "mix_input", "per": "scalar"}],
        "mixer": {
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 8,
            "query_key": ["norm", {"kind": "rope", "dims": 8}],
            "value": ["value_residual"],
            "output": ["head_gate"],
        },
        "feed": {"hidden": 48},
    },
    "override": [
        {"layers": "0", "set": {"wiring": "serial", "norms": "feed", "norm_scale": 0.5}},
        {"layers": "1", "set": {"gain": "none"}},
        {"layers": "2", "set": {"wiring": {"kind": "lanes", "order": "serial"}}},
        {"layers": "3", "set": {"wiring": "parallel", "gain": "output"}},
        {"layers": "4", "set": {"wiring": {"kind": "lanes", "merge": "learned"}}},
    ],
}
# The shapes of other families: GPT-2's, and those of Qwen, Llama 3.1 and Gemma together.
SHIFTED: dict[str, Any] = {
    "vocab": 59,
    "width": 32,
    "context": 64,
    "depth": 3,
    "norm": "layer",
    "norm_eps": 1e-5,
    "embed": [{"kind": "token", "norm": False}, {"kind": "position", "count": 80}],
    "head": {"softcap": None, "gain": True, "shift": True},
    "layer": {
        "gain": "input",
        "shift": True,
        "mixer": {"heads": 4, "kv_heads": 4, "head_dim": 8, "bias": "all"},
        "feed": {"hidden": 48, "act": "gelu_tanh", "bias": True},
    },
    "override": [{"layers": "1", "set": {"wiring": "parallel", "feed": {"act": "gelu"}}}],
}
BIASED: dict[str, Any] = {
    "vocab": 59,
    "width": 32,
    "context": 64,
    "depth": 3,
    "norm_eps": 1e-3,
    "embed": [{"kind": "token", "norm": False, "scale": 5.5}],
    "head": {"tied": False, "softcap": None, "gain": True},
    "layer": {
        "gain": "input",
        "mixer": {
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 12,
            "bias": "qkv",
            "query_key": [
                {"kind": "norm", "gain": True},
                {
                    "kind": "rope",
                    "dims": 12,
                    "turn": "left",
                    "scaling": {"kind": "llama3_scaling", "context": 32},
                },
            ],
        },
        "feed": {"hidden": 48, "act": "geglu_tanh"},
    },
    "override": [
        {"layers": "1", "set": {"mixer": {"window": 5}, "feed": {"bias": True, "act": "swiglu"}}}
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


def blended(spec: ModelSpec, place: int) -> ModelSpec:
    """A model in which one visit blends in more of the first values than its layer does."""
    visits = list(spec.visits)
    visits[place] = dataclasses.replace(visits[place], join=(LoopBlend(),))
    return dataclasses.replace(spec, visits=tuple(visits))


def randomised(seed: int) -> ModelSpec:
    """A model with any subset of the parts, of any shape."""
    chance = random.Random(seed)

    def some(*parts: Any) -> list[Any]:
        return [part for part in parts if chance.random() < 0.6]

    def layer() -> dict[str, Any]:
        parts: dict[str, Any] = {
            "query_key": some(
                "norm",
                {
                    "kind": "rope",
                    "dims": 2 * chance.randint(1, head_dim // 2),
                    "pairs": chance.choice(["halves", "neighbours"]),
                },
                {
                    "kind": "gain",
                    "init": chance.uniform(0.5, 5),
                    "per": chance.choice(["head", "layer"]),
                },
            ),
            "value": some(
                {
                    "kind": "value_residual",
                    "mode": chance.choice(["normalised", "lerp"]),
                    "first": chance.choice(["raw", "mixed"]),
                }
            ),
            "output": some(
                {
                    "kind": "head_gate",
                    "inputs": chance.choice([None, chance.randint(1, 16)]),
                    "per": chance.choice(["head", "element"]),
                    "scale": chance.choice([1.0, 2.0]),
                    "std": chance.choice([0.0, 0.1, None]),
                },
                {"kind": "exclude_self", "gated": chance.random() < 0.5},
            ),
            "window": chance.choice([None, None, chance.randint(1, 20)]),
            "scale": chance.choice([None, 0.12]),
        }
        heads = kv_heads * chance.randint(1, 3)
        mixer = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim} | parts
        act = chance.choice(["relu2", "leaky_relu2", "silu", "swiglu"])
        fast = {
            "chunk": chance.randint(1, 6),
            "source": chance.choice(["table", "input"]),
            "projection": chance.random() < 0.5,
        }
        wirings = ["serial", "parallel", "lanes", {"kind": "lanes", "order": "serial"}]
        reads = chance.random() < 0.8
        return {
            "wiring": chance.choice(wirings if reads else wirings[:2]),
            "norm_scale": chance.choice([1.0, 0.5, "depth", "visit"]),
            # Large queries and keys that nothing normalises make rounding errors larger too.
            "norms": chance.choice(["both", "feed"]) if "norm" in parts["query_key"] else "both",
            "gain": chance.choice(["output", "input", "none"]),
            "join": some({"kind": "mix_input", "per": chance.choice(["channel", "scalar"])}),
            "mixer": mixer if reads else None,
            "feed": {
                "hidden": chance.randint(24, 40),
                "act": act,
                "fast": fast if chance.random() < 0.3 else None,
            },
        }

    kv_heads, head_dim = chance.randint(1, 2), 2 * chance.randint(2, 6)
    depth = chance.randint(2, 4)
    recipe: dict[str, Any] = {
        "vocab": chance.randint(20, 60),
        "width": chance.randint(16, 40),
        "context": 32,
        "depth": depth,
        "layer": layer(),
        "override": [{"layers": str(i), "set": layer()} for i in range(1, depth)],
        "route": chance.choice([":", "(:)*2", "0 (1:)*3@0.4", "(0:2)*2@0.2 2:", ": 0"]),
        "skips": chance.choice([None, "mirror", {"kind": "mirror", "form": "add"}]),
        "join": some("mix_input", "loop_embedding", "loop_gain"),
        "head": dict[str, Any](
            chance.choice([{"tied": True}, {"tied": False, "multiple": chance.randint(1, 8)}])
        )
        | {
            "softcap": chance.choice(
                [
                    None,
                    20.0,
                    {"kind": "sigmoid", "cap": 30.0, "divisor": 7.5},
                    {"kind": "algebraic", "cap": 15.0},
                    {"kind": "asymmetric", "init": 10.0},
                ]
            ),
            "gain": chance.random() < 0.5,
        },
    }
    layers = [recipe["layer"], *(override["set"] for override in recipe["override"])]
    mixed = [m["value"][0] for m in (layer["mixer"] for layer in layers) if m and m["value"]]
    for residual in mixed[:1]:
        residual["mode"] = "normalised"  # between the first values and themselves, a lerp is none
    for mixer in (layer["mixer"] for layer in layers if layer["mixer"] and chance.random() < 0.4):
        lookup = {"kind": "value_embedding", "table": 0, "per_head": chance.random() < 0.5}
        mixer["value"] = [*some("value_norm"), *mixer["value"], lookup]
        recipe["value_tables"] = 1
    recipe["start"] = chance.randrange(recipe["vocab"])
    recipe["documents"] = chance.random() < 0.4
    if chance.random() < 0.4:
        wide = chance.choice([8, recipe["width"]])
        smear = {"kind": "smear", "gate": chance.choice(["token", "channel"])}
        bigram = {"kind": "bigram", "buckets": chance.randint(2, 40), "width": wide}
        token = {"kind": "token", "norm": chance.random() < 0.5}
        recipe["embed"] = [token, *some(smear, bigram, "normalise")]
    return expand(recipe)


def made(spec: ModelSpec, seed: int = 0) -> Model:
    """A model in which every weight matters: what starts at zero or one is moved off it."""
    model = build(spec)
    initialise(model, Scaling(table=0.1), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for weight in weights(model):
            noise = torch.randn(weight.tensor.shape, generator=generator)
            match weight.param:
                case Matrix(zero=True) | Table(zero=True):
                    weight.tensor.copy_(noise / weight.tensor.size(1) ** 0.5)
                case Table() | Matrix():
                    pass
                case _:
                    weight.tensor.add_(0.3 * noise)
    return model


Make = Callable[..., Model]


SPECS: dict[str, Callable[[], ModelSpec]] = {
    "everything": lambda: expand(EVERYTHING),
    "variants": lambda: blended(expand(VARIANTS), 4),
    "documents": lambda: expand(DOCUMENTS),
    "embedded": lambda: expand(EMBEDDED),
    "routed": lambda: expand(ROUTED),
    "shifted": lambda: expand(SHIFTED),
    "biased": lambda: expand(BIASED),
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
def variants() -> ModelSpec:
    """The other forms of parts, windows by visit that grow, and a head of its own."""
    return SPECS["variants"]()


@pytest.fixture(scope="session")
def small_recipe() -> Callable[[str], ModelSpec]:
    return small


@pytest.fixture(scope="session")
def make() -> Make:
    return made


@pytest.fixture(scope="session")
def tokens() -> Callable[..., torch.Tensor]:
    """Token ids (batch, time) that fit a spec; where documents start, the first row has two."""

    def draw(spec: ModelSpec, batch: int = 2, time: int = 12, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(spec.vocab, (batch, time), generator=generator)
        if spec.start is not None:
            ids[0, time // 2] = spec.start
        return ids

    return draw
