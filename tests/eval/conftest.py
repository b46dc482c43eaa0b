"""A tiny model that has a bit of everything, and a stream for it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.config.expand import expand
from segpt.config.ngram import Ngram
from segpt.config.score import Frozen, InPlace, LowRank, Phased, Policy, ScoreSpec, Sgd
from segpt.config.train import Scaling
from segpt.eval.ledger import EncodedText
from segpt.eval.tally import Tally, score_stream
from segpt.model.build import build
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.model.scaling import initialise

MakeModel = Callable[..., Model]
MakeStream = Callable[..., NDArray[np.uint32]]
MakeLedger = Callable[..., EncodedText]
Tallied = Callable[..., Tally]

VOCAB, CONTEXT = 32, 16
STARTS = (0, 40, 41, 90, 200, 207)
LAYER = {
    "wiring": "parallel",
    "join": ["mix_input"],
    "mixer": {
        "heads": 2,
        "kv_heads": 1,
        "head_dim": 8,
        "query_key": ["norm", {"kind": "rope", "dims": 4}, {"kind": "gain"}],
        "value": ["value_residual"],
        "output": ["exclude_self", {"kind": "head_gate", "inputs": 4}],
    },
    "feed": {"hidden": 24},
}
FAST = {"chunk": 4, "rate": 0.05, "taps": 3}
ADAPTERS = LowRank(rank=2, chunk=8, rate=0.02, documents=3)
POLICIES: Mapping[str, Policy] = {
    "frozen": Frozen(),
    "sgd": Sgd(chunk=24, rate=0.2, momentum=0.5),
    "lora": ADAPTERS,
    "phased": Phased(adapters=ADAPTERS, fractions=(0.2, 0.5), chunk=32, rate=0.1),
    "inplace": InPlace(),
}


def _combinations() -> dict[str, ScoreSpec]:
    """Every mode, boundary and policy that go together, and n-grams on top of three."""
    found = {
        f"{mode}-{boundaries}-{name}": ScoreSpec(
            mode=mode, boundaries=boundaries, stride=6, batch=4, policy=policy
        )
        for mode in ("strided", "rolling")
        for boundaries in ("stream", "document")
        for name, policy in POLICIES.items()
        if (mode, boundaries) != ("rolling", "stream") or name not in ("lora", "phased")
    }
    for name in ("strided-stream-frozen", "rolling-stream-sgd", "rolling-document-lora"):
        found[f"{name}+ngram"] = dataclasses.replace(found[name], ngram=Ngram(block=16))
    return found


COMBINATIONS = _combinations()
# What others show too: each of their modes and policies stays, and so do most pairs of them.
SELDOM = frozenset(
    (
        "strided-document-frozen",
        "strided-document-sgd",
        "strided-document-inplace",
        "rolling-stream-sgd",
    )
)


@pytest.fixture(
    params=[
        pytest.param(spec, id=name, marks=[pytest.mark.campaign] * (name in SELDOM))
        for name, spec in COMBINATIONS.items()
    ]
)
def combination(request: pytest.FixtureRequest) -> ScoreSpec:
    """Each way to score in turn."""
    spec: ScoreSpec = request.param
    return spec


def make_model(*, noise: float = 0.3, **changes: Any) -> Model:
    """A tiny model with no weight at zero; changes patch the recipe."""
    recipe: dict[str, Any] = {
        "vocab": VOCAB,
        "width": 16,
        "context": CONTEXT,
        "depth": 2,
        "skips": "mirror",
        "head": {"tied": True, "softcap": 30.0},
        "layer": LAYER,
    }
    model = build(expand({**recipe, **changes}))
    initialise(model, Scaling(table=0.5), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in weights(model):
            weight.tensor.add_(torch.randn(weight.tensor.shape, generator=generator), alpha=noise)
    return model.eval()


def make_able(spec: ScoreSpec) -> Model:
    """A tiny model that the policy of a score can work on."""
    if isinstance(spec.policy, InPlace):
        return make_model(layer=LAYER | {"feed": {"hidden": 24, "fast": FAST}})
    return make_model()


def make_ledger(targets: int = 300, starts: Sequence[int] = STARTS, seed: int = 0) -> EncodedText:
    """A stream of documents, with a byte for each token but the starts."""
    ids = np.random.default_rng(seed).integers(1, VOCAB, targets + 1, dtype=np.uint32)
    ids[list(starts)] = 0
    sizes = (ids[1:] != 0).astype(np.int64)
    return EncodedText(ids, sizes, np.array(starts), int(sizes.sum()), "bytes")


@pytest.fixture
def tiny() -> MakeModel:
    """``tiny(**changes)`` builds a model with no weight at zero; changes patch the recipe."""
    return make_model


@pytest.fixture
def able() -> Callable[[ScoreSpec], Model]:
    """``able(spec)`` is a tiny model that the policy can work on."""
    return make_able


@pytest.fixture
def stream() -> MakeStream:
    """``stream(targets)`` draws ``targets + 1`` tokens, the same for the same seed."""

    def make(targets: int, seed: int = 0) -> NDArray[np.uint32]:
        generator = np.random.default_rng(seed)
        return generator.integers(0, VOCAB, targets + 1, dtype=np.uint32)

    return make


@pytest.fixture
def ledger() -> MakeLedger:
    """``ledger(targets)`` is a stream of documents, with a byte for each token but the starts."""
    return make_ledger


@pytest.fixture
def tallied() -> Tallied:
    """``tallied(model, ids, spec)`` scores a stream, by default as a single document."""

    def run(
        model: Model,
        ids: NDArray[np.uint32] | EncodedText,
        spec: ScoreSpec,
        context: int = CONTEXT,
        **more: Any,
    ) -> Tally:
        if not isinstance(ids, EncodedText):
            sizes = np.ones(len(ids) - 1, np.int64)
            ids = EncodedText(ids, sizes, np.zeros(1, np.int64), len(sizes), "bytes")
        return score_stream(model, ids, spec, context, **more)

    return run
