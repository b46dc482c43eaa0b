"""Random specs, drawn from the type hints so that a new field is covered when it is added."""

import dataclasses
import functools
import types
import typing
from typing import Any, Literal

import pytest
from hypothesis import reject
from hypothesis import strategies as st

from segpt.config.head import Head
from segpt.config.layer import Attention, Lanes, Layer
from segpt.config.model import ModelSpec
from segpt.config.parts import MixInput, Skip, Token, ValueResidual
from segpt.config.recipe import Recipe
from segpt.config.route import Visit
from segpt.errors import SpecError

Strategy = st.SearchStrategy[Any]


@functools.cache
def values(hint: Any) -> Strategy:
    """Anything of a type that a spec may hold."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is ModelSpec:
        return models()
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return specs(hint)
    if origin is Literal:
        return st.sampled_from(args)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([values(arg) for arg in args])
    if origin is tuple:
        return st.lists(values(args[0]), min_size=1, max_size=3).map(tuple)
    plain: dict[Any, Strategy] = {
        int: st.integers(1, 16),
        float: st.sampled_from([0.125, 0.25, 1 / 3, 0.5]),
        bool: st.booleans(),
        str: st.sampled_from(["0", "::2", "é", ""]),
        types.NoneType: st.none(),
    }
    return plain[hint]


def specs(cls: type[Any], **given: Strategy) -> Strategy:
    """A spec of random fields, some left at their defaults; those it refuses are not drawn."""
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    needed = [f.name for f in fields if f.default is dataclasses.MISSING]
    drawn = {name: given.get(name, values(hint)) for name, hint in hints.items()}

    def attempt(chosen: dict[str, Any]) -> Any:
        try:
            return cls(**chosen)
        except SpecError:
            return None

    mapping = st.fixed_dictionaries(
        {name: drawn[name] for name in needed},
        optional={name: drawn[name] for name in hints if name not in needed},
    )
    return mapping.map(attempt).filter(lambda found: found is not None)


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """A model of one to three layers; every layer is visited, some twice, some skip."""
    kv_heads, head_dim = draw(st.integers(1, 3)), 16
    mixer = specs(
        Attention,
        heads=st.integers(1, 3).map(lambda groups: groups * kv_heads),
        kv_heads=st.just(kv_heads),
        head_dim=st.just(head_dim),
        value=st.lists(values(ValueResidual), max_size=2).map(tuple),
    )
    lanes = st.builds(Lanes, order=st.sampled_from(["parallel", "serial"]))
    wiring = st.sampled_from(["serial", "parallel"]) | lanes
    any_layer = specs(Layer, mixer=st.none() | mixer, wiring=wiring)
    layers = draw(st.lists(any_layer, min_size=1, max_size=3))
    route = [*range(len(layers)), *draw(st.lists(st.integers(0, len(layers) - 1), max_size=3))]
    visits = []
    for i, layer in enumerate(route):
        skip = st.builds(Skip, source=st.integers(0, max(i - 1, 0)))
        join = st.lists(st.just(MixInput()) | skip if i else st.just(MixInput()), max_size=2)
        since = st.sampled_from([0.0, 0.35]) if i >= len(layers) else st.just(0.0)
        visits.append(Visit(layer=layer, join=tuple(draw(join)), since=draw(since)))
    feeds = [layer.feed for layer in layers if layer.feed is not None]
    chunks = [feed.fast.chunk for feed in feeds if feed.fast is not None]
    shortest = max(chunks, default=0) + 1
    return _or_rejected(
        vocab=draw(st.integers(1, 300)),
        width=draw(st.integers(16, 64)),
        context=draw(st.integers(shortest, shortest + 300)),
        embed=(Token(),),
        layers=tuple(layers),
        visits=tuple(visits),
        head=draw(specs(Head)),
    )


def _or_rejected(**fields: Any) -> ModelSpec:
    try:
        return ModelSpec(**fields)
    except SpecError:  # of what spans parts
        reject()


@pytest.fixture(scope="session")
def random_model() -> Strategy:
    return models()


@pytest.fixture(scope="session")
def random_recipe() -> Strategy:
    return values(Recipe)
