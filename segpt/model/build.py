"""From a spec to modules: the only place where each kind of part is named twice."""

from collections.abc import Mapping
from typing import Any, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from segpt.errors import CheckpointError
from segpt.spec import model as spec
from segpt.spec import parts as slot
from segpt.spec.layout import Role

from . import parts
from .attention import Attention
from .fast import FastWeight
from .feed import Dense
from .layer import Branch, Layer
from .leaves import Matrix, weights
from .model import Head, Model


def build(s: spec.ModelSpec) -> Model:
    """The model a spec describes, with weights still to be initialised or loaded."""
    layers = [_layer(layer, s.width) for layer in s.layers]
    visits = [[_join(part, s.width) for part in visit.join] for visit in s.visits]
    matrix = None if s.head.tied else Matrix(s.width, s.vocab, role=Role.HEAD)
    return Model(s, layers, visits, Head(s.head.softcap, matrix))


def load_weights(model: Model, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Copy named arrays into the model; names and shapes must match exactly.

    Raises:
        CheckpointError: naming the first weight that is missing, unknown or misshapen.
    """
    found = {weight.name: weight.tensor for weight in weights(model)}
    if odd := sorted(found.keys() ^ arrays.keys()):
        raise CheckpointError(f"weight {odd[0]!r} is in the model or in the file, but not in both")
    with torch.no_grad():
        for name, tensor in found.items():
            if tensor.shape != arrays[name].shape:
                shape = tuple(tensor.shape)
                raise CheckpointError(f"weight {name!r} is {arrays[name].shape}, expected {shape}")
            array = np.require(arrays[name], np.float32, ["C", "W"])  # torch asks for writable
            tensor.copy_(torch.from_numpy(array))


def _layer(s: spec.Layer, width: int) -> Layer:
    mixer = feed = None
    if s.mixer is not None:
        mixer = Branch(_attention(s.mixer, width), width, s.norm_scale)
    if s.feed is not None:
        fast = None if s.feed.fast is None else FastWeight(s.feed.fast, s.feed.hidden, width)
        feed = Branch(Dense(s.feed, width, fast), width, s.norm_scale)
    join = [_join(part, width) for part in s.join]
    return Layer(join, mixer, feed, parallel=s.wiring == "parallel")


def _attention(s: spec.Attention, width: int) -> Attention:
    return Attention(
        s,
        width,
        [_query_key(part, s) for part in s.query_key],
        [_value(part) for part in s.value],
        [_output(part, s) for part in s.output],
    )


def _query_key(s: slot.Norm | slot.Rope | slot.Gain, a: spec.Attention) -> nn.Module:
    match s:
        case slot.Norm():
            return parts.Norm()
        case slot.Rope():
            return parts.Rope(s)
        case slot.Gain():
            return parts.Gain(s, a.heads)
        case _:
            assert_never(s)


def _value(s: slot.ValueResidual) -> nn.Module:
    match s:
        case slot.ValueResidual():
            return parts.ValueResidual()
        case _:
            assert_never(s)


def _output(s: slot.HeadGate | slot.ExcludeSelf, a: spec.Attention) -> nn.Module:
    match s:
        case slot.HeadGate():
            return parts.HeadGate(s, a.heads)
        case slot.ExcludeSelf():
            return parts.ExcludeSelf()
        case _:
            assert_never(s)


def _join(s: slot.MixInput | slot.Skip, width: int) -> nn.Module:
    match s:
        case slot.MixInput():
            return parts.MixInput(width)
        case slot.Skip():
            return parts.Skip(s, width)
        case _:
            assert_never(s)
