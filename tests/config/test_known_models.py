"""Published models whose parameters are known to the last one."""

import math
from collections import Counter
from typing import Any

from segpt.config.expand import expand
from segpt.config.layout import Place, Role, layout, parameters
from segpt.config.model import ModelSpec


def imu(**head: Any) -> ModelSpec:
    """IMU-1: gates by head that read all channels, values of the first layer, gains on inputs."""
    return expand(
        {
            "vocab": 49_152,
            "width": 1152,
            "context": 1024,
            "depth": 30,
            "head": {"tied": True, "softcap": None, "gain": True} | head,
            "layer": {
                "gain": "input",
                "norm_scale": "depth",
                "mixer": {
                    "heads": 18,
                    "kv_heads": 6,
                    "head_dim": 64,
                    "query_key": [
                        {"kind": "rope", "dims": 64, "turn": "left"},
                        "norm",
                        {"kind": "gain", "per": "layer"},
                    ],
                    "value": [{"kind": "value_residual", "scaled": True, "first": "mixed"}],
                    "output": [{"kind": "head_gate", "inputs": None, "std": None}],
                },
                "feed": {"hidden": 3072, "act": "swiglu"},
            },
        }
    )


def test_imu_1_has_481_988_856_parameters() -> None:
    spec = imu()
    assert parameters(spec) == 481_988_856
    layer = [weight for weight in layout(spec) if weight.layer == 7]
    assert sum(weight.size for weight in layer) == 14_178_820
    assert sum(weight.size for weight in layer if weight.role is Role.MATRIX) == 14_176_512
    vectors = Counter(weight.size for weight in layer if weight.role is Role.VECTOR)
    assert vectors == {1152: 2, 1: 2, 2: 1}  # gains; one of queries and two that mix values, scaled
    outside = {weight.name: weight.size for weight in layout(spec) if weight.layer is None}
    assert outside == {"table": 56_623_104, "head.gain": 1152}
    # with a head of its own, as it was once trained by mistake
    assert parameters(imu(tied=False)) == 481_988_856 + 56_623_104


def recurrent() -> ModelSpec:
    """The recurrent nanoGPT that learns from few tokens: 12 layers, 30 visits."""
    return expand(
        {
            "vocab": 50_257,
            "width": 768,
            "context": 1024,
            "depth": 12,
            "route": "0:3 (3:9)*4 9:",
            "skips": {"kind": "mirror", "form": "add", "per": "scalar"},
            "windows": {"long": 1792, "short": 896, "by": "visit"},
            "growth": {"full": 1728},
            "head": {
                "tied": False,
                "multiple": 128,
                "zero": True,
                "softcap": {"kind": "sigmoid", "cap": 30.0, "divisor": 7.5 * math.sqrt(768)},
            },
            "layer": {
                "gain": "none",
                "join": [{"kind": "mix_input", "per": "scalar"}],
                "mixer": {
                    "heads": 6,
                    "kv_heads": 6,
                    "head_dim": 128,
                    "scale": 0.12,
                    "query_key": [
                        "norm",
                        {"kind": "rope", "dims": 128, "base": 1024.0, "rates": "half"},
                    ],
                    "value": [{"kind": "value_residual", "mode": "lerp"}],
                },
                "feed": {"hidden": 3072},
            },
        }
    )


def test_a_recurrent_model_counts_rows_to_spare() -> None:
    spec = recurrent()
    roles = Counter[Role]()
    for weight in layout(spec):
        roles[weight.role] += weight.size
    assert roles[Role.HEAD] == 50_304 * 768
    assert roles[Role.TABLE] + roles[Role.MATRIX] + roles[Role.HEAD] == 162_165_504
    assert roles[Role.VECTOR] == 15 + 12 * 2 + 12  # skips, inputs that are mixed in, values
    assert [w.place for w in layout(spec) if w.name == "head.matrix"] == [Place.HEAD]
    assert spec.windows() == (1792, 896) * 15
    assert spec.windows(0.0) == (128, 128) * 15
    assert spec.windows(0.5) == (896, 384) * 15


def test_a_small_llama_has_134_515_008_parameters() -> None:
    """SmolLM2-135M, whose head is its table."""
    mixer = {"heads": 9, "kv_heads": 3, "head_dim": 64}
    rope = {"kind": "rope", "dims": 64, "turn": "left", "base": 1e5}
    spec = expand(
        {
            "vocab": 49_152,
            "width": 576,
            "context": 8192,
            "depth": 30,
            "norm_eps": 1e-5,
            "embed": [{"kind": "token", "norm": False}],
            "head": {"softcap": None, "gain": True},
            "layer": {
                "gain": "input",
                "mixer": mixer | {"query_key": [rope]},
                "feed": {"hidden": 1536, "act": "swiglu"},
            },
        }
    )
    assert parameters(spec) == 134_515_008


def gpt2() -> ModelSpec:
    return expand(
        {
            "vocab": 50_257,
            "width": 768,
            "context": 1024,
            "depth": 12,
            "norm": "layer",
            "norm_eps": 1e-5,
            "embed": [{"kind": "token", "norm": False}, {"kind": "position", "count": 1024}],
            "head": {"softcap": None, "gain": True, "shift": True},
            "layer": {
                "gain": "input",
                "shift": True,
                "mixer": {"heads": 12, "kv_heads": 12, "head_dim": 64, "bias": "all"},
                "feed": {"hidden": 3072, "act": "gelu_tanh", "bias": True},
            },
        }
    )


def test_gpt_2_has_124_439_808_parameters() -> None:
    spec = gpt2()
    assert parameters(spec) == 124_439_808
    roles = Counter[Role]()
    for weight in layout(spec):
        roles[weight.role] += weight.size
    assert roles[Role.TABLE] == (50_257 + 1024) * 768
    assert roles[Role.VECTOR] == 12 * (4 * 768 + 4 * 768 + 3072 + 768) + 2 * 768
    assert [w.name for w in layout(spec) if w.role is Role.TABLE and w.by_token] == ["table"]
