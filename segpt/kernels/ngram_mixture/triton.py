"""The mixture with n-gram counts in Triton: all tables of a target in one program, in logarithms.

Float32 holds no probability below 1e-38, so that products of shares and the model's probabilities
are added up as logarithms, and ratios are taken before they are raised.
"""

import math
from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from segpt.kernels.launch import Launch
from segpt.kernels.registry import Backend
from segpt.kernels.tiles import ANY, Tile, Tiles, tile_for

from .reference import (
    SMALLEST,
    STEEPEST,
    NgramMixtureCall,
    NgramMixtureResult,
    NgramRowsCall,
)

TILES: Tiles = {ANY: [Tile({"BLOCK": 256}, 4, 1), Tile({"BLOCK": 128}, 4, 1)]}
ROW_TILES: Tiles = {ANY: [Tile({"BLOCK": 1024}, 4, 1), Tile({"BLOCK": 2048}, 4, 1)]}
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _log(x):
    """Of a number that may be 0, whose logarithm then counts as one of nothing in a sum."""
    return tl.where(x > 0.0, tl.log(tl.maximum(x, 2e-38)), -1e30)


@triton.jit
def _joined(a, b):
    """The logarithm of the sum of two numbers of which these are the logarithms."""
    most = tl.maximum(tl.maximum(a, b), -1e29)
    return most + tl.log(tl.exp(a - most) + tl.exp(b - most))


@triton.jit
def _share(features, known, weights, table, tables, target, targets, steepest, FEATURES):
    """A table's share and the logarithm of it, and the rest of the share, by target."""
    inside = target < targets
    logit = tl.zeros(target.shape, tl.float32)
    for feature in tl.static_range(FEATURES):
        row = feature * tables + table
        value = tl.load(features + row.to(tl.int64) * targets + target, inside, other=0.0)
        logit += tl.load(weights + row).to(tl.float32) * value.to(tl.float32)
    logit = tl.minimum(tl.maximum(logit, -steepest), steepest)
    fall = tl.exp(-logit)
    seen = tl.load(known + table.to(tl.int64) * targets + target, inside, other=0) != 0
    kept = 1.0 / (1.0 + fall)
    log_kept = tl.where(seen, -tl.log(1.0 + fall), 0.0)
    return tl.where(seen, kept, 1.0), log_kept, tl.where(seen, fall * kept, 0.0)


@triton.jit
def mixture_kernel(
    model,
    frequency,
    features,
    known,
    weights,
    nats,
    gradients,
    tables,
    targets,
    steepest,
    smallest,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``nats`` (targets,) and ``gradients`` (features, tables, targets); see the call.

    With K_i the product of the first i shares, that of all after is taken as K_n / K_i.
    """
    target = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = target < targets
    own = tl.load(model + target, inside, other=0.0).to(tl.float32)
    log_kept = tl.zeros((BLOCK,), tl.float32)
    counted = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, tables):
        table = tl.full((), 0, tl.int32) + i
        kept, logarithm, rest = _share(
            features, known, weights, table, tables, target, targets, steepest, FEATURES
        )
        place = table.to(tl.int64) * targets + target
        share = tl.load(frequency + place, inside, other=0.0).to(tl.float32)
        counted = kept * counted + rest * share
        log_kept += logarithm
    by_counts = _log(counted)
    mixed = _joined(own + log_kept, by_counts)
    tl.store(nats + target, (-mixed).to(nats.dtype.element_ty), inside)
    own = tl.maximum(own, smallest)  # below which a probability has no gradient, but it has nats
    mixed = _joined(own + log_kept, by_counts)
    log_before = tl.zeros((BLOCK,), tl.float32)
    counted = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, tables):
        table = tl.full((), 0, tl.int32) + i
        kept, logarithm, rest = _share(
            features, known, weights, table, tables, target, targets, steepest, FEATURES
        )
        place = table.to(tl.int64) * targets + target
        share = tl.load(frequency + place, inside, other=0.0).to(tl.float32)
        below = _joined(own + log_before, _log(counted))
        after = log_kept - log_before - logarithm - mixed
        rise = kept * rest * (tl.exp(below + after) - tl.exp(_log(share) + after))
        for feature in tl.static_range(FEATURES):
            row = (feature * tables + table).to(tl.int64) * targets + target
            value = tl.load(features + row, inside, other=0.0).to(tl.float32)
            tl.store(gradients + row, (value * rise).to(gradients.dtype.element_ty), inside)
        counted = kept * counted + rest * share
        log_before += logarithm


@triton.jit
def rows_kernel(model, kept, counted, mixed, vocab, BLOCK: tl.constexpr):
    """BLOCK numbers of a row of ``mixed`` (rows, vocab)."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = token < vocab
    share = _log(tl.load(kept + row).to(tl.float32))
    own = tl.load(model + row * vocab + token, inside, other=0.0).to(tl.float32)
    added = tl.load(counted + row * vocab + token, inside, other=0.0).to(tl.float32)
    joined = _joined(own + share, _log(added))
    tl.store(mixed + row * vocab + token, joined.to(mixed.dtype.element_ty), inside)


class TritonNgramMixture(Backend[NgramMixtureCall, NgramMixtureResult]):
    """In float32, which is enough to six digits of a nat."""

    name, priority = "triton", 30

    def refusal(self, call: NgramMixtureCall) -> str | None:
        return _refused(call.model, call.frequency, call.features, call.weights)

    def run(self, call: NgramMixtureCall) -> NgramMixtureResult:
        tensors = {name: part.contiguous() for name, part in call._asdict().items()}
        result = NgramMixtureResult(
            torch.empty_like(tensors["model"]),
            torch.empty_like(tensors["features"], dtype=call.model.dtype),
        )
        if result.nats.numel():
            mixture(NgramMixtureCall(**tensors), result).run()
        return result


class TritonNgramRows(Backend[NgramRowsCall, Tensor]):
    """One pass over rows."""

    name, priority = "triton", 30

    def refusal(self, call: NgramRowsCall) -> str | None:
        return _refused(*call)

    def run(self, call: NgramRowsCall) -> Tensor:
        tensors = NgramRowsCall(*(part.contiguous() for part in call))
        mixed = torch.empty_like(tensors.model)
        if mixed.numel():
            rows(tensors, mixed).run()
        return mixed


def mixture(call: NgramMixtureCall, result: NgramMixtureResult) -> Launch:
    """What makes ``result``, of (targets,) and (features, tables, targets); all contiguous."""
    features, tables, targets = call.features.shape
    tile = tile_for(TILES, call.model)
    known = call.known.view(torch.uint8)
    tensors: Mapping[str, Tensor] = {**call._asdict(), "known": known, **result._asdict()}
    numbers: dict[str, float] = {"tables": tables, "targets": targets}
    numbers |= {"steepest": STEEPEST, "smallest": math.log(SMALLEST)}
    return Launch(
        mixture_kernel,
        (triton.cdiv(targets, tile.sizes["BLOCK"]),),
        {**tensors, **numbers},
        {"FEATURES": features, **tile.sizes},
        warps=tile.warps,
        stages=tile.stages,
        registers=tile.registers,
    )


def rows(call: NgramRowsCall, mixed: Tensor) -> Launch:
    """What makes ``mixed`` (rows, vocab); all contiguous."""
    count, vocab = mixed.shape
    tile = tile_for(ROW_TILES, mixed)
    return Launch(
        rows_kernel,
        (count, triton.cdiv(vocab, tile.sizes["BLOCK"])),
        {**call._asdict(), "mixed": mixed, "vocab": vocab},
        tile.sizes,
        warps=tile.warps,
        stages=tile.stages,
        registers=tile.registers,
    )


def _refused(*tensors: Tensor) -> str | None:
    for tensor in tensors:
        if tensor.dtype not in _TYPES:
            return f"it takes float32, float16 and bfloat16, not {tensor.dtype}"
    return None
