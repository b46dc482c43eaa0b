"""From a spec to modules: the only place where each kind of part is named twice."""

from collections.abc import Mapping
from typing import Any, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from segpt.config import caps
from segpt.config import layer as spec
from segpt.config import parts as slot
from segpt.config.head import Head as HeadSpec
from segpt.config.layout import Role
from segpt.config.model import ModelSpec
from segpt.errors import CheckpointError

from . import embed, parts
from .attention import Attention
from .fast import FastWeight
from .feed import Dense
from .head import Head
from .layer import Branch, Lanes, Layer
from .model import Model
from .norm import Normaliser
from .params import Matrix, Table, Vector, weights


def build(s: ModelSpec) -> Model:
    """The model a spec describes, with weights still to be initialised or loaded."""
    norm = Normaliser.of(s)
    layers = [_layer(layer, s.width, norm) for layer in s.layers]
    visits = [[_join(part, s.width) for part in visit.join] for visit in s.visits]
    tables = [Table(*rows.shape) for rows, _ in s.value_table_weights()]
    before = [_embed(part, s.width, norm) for part in s.embed]
    return Model(s, layers, visits, _head(s.head, s.vocab, s.width, norm), before, tables)


def load_weights(model: Model, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Copy named arrays into the model; names and shapes must match exactly.

    Raises:
        CheckpointError: naming the first weight that is missing, unknown or misshapen.
    """
    tensors = {weight.name: weight.tensor for weight in weights(model)}
    if odd := sorted(tensors.keys() ^ arrays.keys()):
        raise CheckpointError(f"weight {odd[0]!r} is in the model or in the file, but not in both")
    with torch.no_grad():
        for name, tensor in tensors.items():
            if tensor.shape != arrays[name].shape:
                shape = tuple(tensor.shape)
                raise CheckpointError(f"weight {name!r} is {arrays[name].shape}, expected {shape}")
            array = np.require(arrays[name], np.float32, ["C", "W"])  # torch asks for writable
            tensor.copy_(torch.from_numpy(array))


def _head(s: HeadSpec, vocab: int, width: int, norm: Normaliser) -> Head:
    matrix = cap = None
    if not s.tied:
        rows = s.rows(vocab)
        used = None if rows == vocab else vocab
        matrix = Matrix(width, rows, role=Role.HEAD, zero=s.zero, rows=used)
    if isinstance(s.softcap, caps.Sigmoid | caps.Algebraic | caps.Asymmetric):
        cap = _cap(s.softcap)
    softcap = s.softcap if isinstance(s.softcap, float | int) else None
    gain = Vector(width, init=1.0) if s.gain else None
    shift = Vector(width) if s.shift else None
    return Head(softcap, matrix, cap=cap, gain=gain, shift=shift, scale=s.scale, norm=norm)


def _cap(s: caps.Sigmoid | caps.Algebraic | caps.Asymmetric) -> nn.Module:
    match s:
        case caps.Sigmoid():
            return parts.Sigmoid(s)
        case caps.Algebraic():
            return parts.Algebraic(s)
        case caps.Asymmetric():
            return parts.Asymmetric(s)
        case _:
            assert_never(s)


def _embed(s: slot.EmbedPart, width: int, norm: Normaliser) -> nn.Module:
    match s:
        case slot.Token():
            return embed.Token(s, norm)
        case slot.Position():
            return embed.Position(s, width)
        case slot.Smear():
            return embed.Smear(s, width)
        case slot.Bigram():
            return embed.Bigram(s, width)
        case slot.Normalise():
            return embed.Normalise(norm)
        case _:
            assert_never(s)


def _layer(s: spec.Layer, width: int, norm: Normaliser) -> Layer:
    mixer = feed = None
    if s.mixer is not None:
        before = norm if s.norms == "both" else None
        mixer = Branch(s, _attention(s.mixer, width, norm.eps), width, before)
    if s.feed is not None:
        fast = None if s.feed.fast is None else FastWeight(s.feed.fast, s.feed.hidden, width)
        feed = Branch(s, Dense(s.feed, width, fast), width, norm)
    join = [_join(part, width) for part in s.join]
    lanes = None if s.lanes is None else Lanes(s.lanes)
    return Layer(join, mixer, feed, parallel=s.wiring == "parallel", lanes=lanes)


def _attention(s: spec.Attention, width: int, eps: float | None) -> Attention:
    return Attention(
        s,
        width,
        [_query_key(part, s, eps) for part in s.query_key],
        [_value(part, s, eps) for part in s.value],
        [_output(part, s, width) for part in s.output],
    )


def _query_key(s: slot.QueryKeyPart, a: spec.Attention, eps: float | None) -> nn.Module:
    match s:
        case slot.Norm():
            return parts.Norm(s, a.head_dim, eps)
        case slot.Rope():
            return parts.Rope(s)
        case slot.Gain():
            return parts.Gain(s, a.heads)
        case _:
            assert_never(s)


def _value(s: slot.ValuePart, a: spec.Attention, eps: float | None) -> nn.Module:
    match s:
        case slot.ValueNorm():
            return parts.ValueNorm(eps)
        case slot.ValueEmbedding():
            return parts.ValueEmbedding(s, a.kv_heads)
        case slot.ValueResidual():
            return parts.ValueResidual(s)
        case _:
            assert_never(s)


def _output(s: slot.OutputPart, a: spec.Attention, width: int) -> nn.Module:
    match s:
        case slot.HeadGate():
            return parts.HeadGate(s, a.heads, a.head_dim, width)
        case slot.ExcludeSelf():
            return parts.ExcludeSelf(s, a.heads)
        case _:
            assert_never(s)


def _join(s: slot.JoinPart, width: int) -> nn.Module:
    match s:
        case slot.MixInput():
            return parts.MixInput(s, width)
        case slot.Skip():
            return parts.Skip(s, width)
        case slot.LoopEmbedding():
            return parts.LoopEmbedding(width)
        case slot.LoopBlend():
            return parts.LoopBlend()
        case slot.LoopGain():
            return parts.LoopGain(width)
        case _:
            assert_never(s)
