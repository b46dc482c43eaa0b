"""Artifacts of random weights, and what scoring them writes."""

from pathlib import Path

import numpy as np

from segpt.config.expand import expand
from segpt.config.layout import Role, layout
from segpt.config.model import ModelSpec
from segpt.config.score import Policy, ScoreSpec
from segpt.stages.json_files import write_json
from segpt.stages.pack import pack, read_artifact
from segpt.stages.score import score
from segpt.values import Float16Weight, Quantized, Text, Tokenizer, documents_digest

DOCUMENTS = (b"A record is one line of the leaderboard.", b"It is claimed until it is checked.")


def model_spec() -> ModelSpec:
    mixer = {"heads": 1, "kv_heads": 1, "head_dim": 8, "query_key": ["norm"]}
    layer = {"mixer": mixer, "feed": {"hidden": 16}}
    return expand({"vocab": 257, "width": 8, "context": 16, "depth": 1, "layer": layer})


def packed(out: Path, seed: int) -> Path:
    """An artifact of random weights, with the list of its training documents beside it."""
    spec, generator = model_spec(), np.random.default_rng(seed)
    weights = {
        w.name: Float16Weight(
            generator.normal(w.role is Role.VECTOR, 0.1, w.shape).astype(np.float16)
        )
        for w in layout(spec)
    }
    seen = np.array([1, 2, 3], np.uint64)
    origin = {
        "recipe": "0123456789abcdef",
        "documents": documents_digest(seen),
        "seed": str(seed),
    }
    pack(Quantized(spec, weights, Tokenizer("bytes", 257), origin, None, seen), out)
    return out


def scored(artifact: Path, out: Path, policy: Policy, spec: ScoreSpec | None = None) -> Path:
    """What `segpt score ARTIFACT --out OUT` writes."""
    text = Text("two documents", lambda: iter(DOCUMENTS))
    chosen = spec or ScoreSpec(stride=8, policy=policy)
    write_json(out, score(read_artifact(artifact), text, chosen).plain())
    return out
