"""Updates in Triton: one launch over many tensors for AdamW, and passes around Newton-Schulz.

Torch's own ``_foreach`` functions read and write all of a group's numbers once for each operation;
these do for each step. All arithmetic is in float32, whatever type the tensors have.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from segpt.kernels.launch import Constant, Launch
from segpt.kernels.registry import Backend
from segpt.kernels.tiles import ANY, Tile, Tiles, tile_for

from . import tables
from .reference import AdamUpdateCall, MuonMomentumCall, MuonUpdateCall, rows_of_parts
from .triton_kernels import (
    adam_kernel,
    line_scale_kernel,
    momentum_kernel,
    muon_kernel,
    second_moment_kernel,
)

ADAM_TILES: Tiles = {ANY: [Tile({"BLOCK": 1024}, 4, 1), Tile({"BLOCK": 2048}, 8, 1)]}
MOMENTUM_TILES: Tiles = {ANY: [Tile({"BLOCK": 1024}, 4, 1), Tile({"BLOCK": 2048}, 4, 1)]}
# Of rows, whose numbers lie side by side, and of columns.
ROW_TILES: Tiles = {
    ANY: [Tile({"LINES": 4, "ACROSS": 512}, 4, 1), Tile({"LINES": 8, "ACROSS": 256}, 4, 1)]
}
COLUMN_TILES: Tiles = {
    ANY: [Tile({"LINES": 64, "ACROSS": 32}, 4, 1), Tile({"LINES": 32, "ACROSS": 64}, 4, 1)]
}
MUON_TILES: Tiles = {
    ANY: [Tile({"ROWS": 32, "COLUMNS": 64}, 8, 1), Tile({"ROWS": 16, "COLUMNS": 64}, 4, 1)]
}
_SCALE_BLOCK = 1024
_MOST_PARTS = (1 << 16) - 1  # programs along the second axis of a launch
_COMPILED = "what torch.compile makes goes together with what is beside it"


class _Kind(NamedTuple):
    """What one launch of AdamW has in common."""

    step: float
    aligned: bool
    types: tuple[torch.dtype, ...]


class TritonAdamUpdate(Backend[AdamUpdateCall, list[Tensor]]):
    """One launch over all weights of one step count, type and alignment."""

    name, priority = "triton", 30

    def refusal(self, call: AdamUpdateCall) -> str | None:
        if torch.compiler.is_compiling():
            return _COMPILED
        return tables.refusal([*call.weights, *call.grads, *call.means, *call.squares])

    def run(self, call: AdamUpdateCall) -> list[Tensor]:
        columns = call.weights, call.grads, call.means, call.squares
        groups: dict[_Kind, list[tuple[Tensor, ...]]] = defaultdict(list)
        for count, *tensors in zip(call.counts, *columns, strict=True):
            if tensors[0].numel():
                is_aligned = tables.aligned(*map(tables.address, tensors))
                types = tuple(tensor.dtype for tensor in tensors)
                groups[_Kind(count, is_aligned, types)].append(tuple(tensors))
        for kind, group in groups.items():
            table, owner = adam_tables(group)
            numbers = adam_numbers(call, kind.step)
            adam(table, owner, group[0], numbers, call.cautious, kind.aligned).run()
        return list(call.weights)


class TritonMuonMomentum(Backend[MuonMomentumCall, Tensor]):
    """Momenta and the stack of updates in one pass over gradients."""

    name, priority = "triton", 30

    def refusal(self, call: MuonMomentumCall) -> str | None:
        grads = [grad for grad in call.grads if grad is not None]
        if torch.compiler.is_compiling():
            return _COMPILED
        if len({tensor.dtype for tensor in (*call.momenta, *grads)}) > 1:
            return "gradients and momenta have several types"
        return tables.refusal([*call.momenta, *grads]) or _too_many(call.momenta)

    def run(self, call: MuonMomentumCall) -> Tensor:
        first = call.momenta[0]
        rows = [m.size(-2) for m in call.momenta[: call.parts]]
        shape = len(call.momenta) // call.parts, *first.shape[:-2], sum(rows), first.size(-1)
        dtype = torch.bfloat16 if first.is_cuda else first.dtype
        stack = torch.empty(shape, dtype=dtype, device=first.device)
        if stack.numel():
            entries = tuple(_momentum_entries(call, rows))
            together = tables.aligned(*(x for at, m, _, target in entries for x in (at, m, target)))
            table = tables.table(entries, first.device)
            longest = max(size for _, _, size, _ in entries)
            share = 1.0 - call.momentum, call.momentum
            momentum(table, first, stack, longest, share, call.nesterov, together).run()
        return stack


class TritonMuonUpdate(Backend[MuonUpdateCall, list[Tensor]]):
    """One pass over updates and weights; with second moments one more over updates before it."""

    name, priority = "triton", 30

    def refusal(self, call: MuonUpdateCall) -> str | None:
        if torch.compiler.is_compiling():
            return _COMPILED
        if len({weight.dtype for weight in call.weights}) > 1:
            return "weights have several types"
        return tables.refusal([*call.weights, *call.seconds]) or _too_many(call.weights)

    def run(self, call: MuonUpdateCall) -> list[Tensor]:
        update, weights = call.update.flatten(0, -3), list(call.weights)
        if not update.numel():
            return weights
        scale = _line_scales(update, call.seconds, call.beta2) if call.seconds else None
        entries = tuple(_weight_entries(call))
        together = tables.aligned(*(x for entry in entries for x in (entry[0], entry[1], entry[3])))
        table = tables.table(entries, update.device)
        longest = max(rows for _, rows, _, _ in entries)
        rates = call.rate, call.decay
        muon(table, weights[0], update, scale, longest, rates, call.cautious, together).run()
        return weights


class LineScale(NamedTuple):
    """What lines of updates are multiplied by, ``factor`` (matrices, lines): rows, or columns."""

    factor: Tensor
    line: str


def adam_tables(group: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    """Where weights, gradients, means and squares of any shape are, and who works on them.

    Returns:
        The table (tensors, 6) and the owner (programs,), see :func:`adam_kernel`.
    """
    device = group[0][0].device
    block = tile_for(ADAM_TILES, group[0][0]).sizes["BLOCK"]
    programs = tuple(triton.cdiv(weight.numel(), block) for weight, *_ in group)
    rows, first = [], 0
    for tensors, count in zip(group, programs, strict=True):
        rows.append((*map(tables.address, tensors), tensors[0].numel(), first))
        first += count
    return tables.table(tuple(rows), device), tables.owners(programs, device)


def adam_numbers(call: AdamUpdateCall, count: float) -> dict[str, float]:
    """What the kernel is handed at the step ``count``, for tensors of any shape."""
    return {
        "mean_share": 1.0 - call.beta1,
        "beta2": call.beta2,
        "square_share": 1.0 - call.beta2,
        "root_divisor": (1.0 - call.beta2**count) ** 0.5,
        "eps": call.eps,
        "rate": call.rate / (1.0 - call.beta1**count),
        "decay": call.decay,
        "kept": 1.0 - call.decay,
    }


def adam(
    table: Tensor,
    owner: Tensor,
    like: Sequence[Tensor],
    numbers: Mapping[str, float],
    cautious: bool,
    aligned: bool,
) -> Launch:
    """What updates weights.

    Args:
        table: (tensors, 6) and
        owner: (programs,), of :func:`adam_tables`.
        like: a weight, a gradient, a mean and a square of any shape, which say the types of all.
        numbers: of :func:`adam_numbers`.
        cautious: whether decay is.
        aligned: whether every address is a multiple of 16.
    """
    tile = tile_for(ADAM_TILES, like[0])
    named = dict(zip(("weight", "grad", "mean", "square"), like, strict=True))
    constants: dict[str, Constant] = {"CAUTIOUS": cautious, "ALIGNED": aligned}
    return Launch(
        adam_kernel,
        (len(owner),),
        {"table": table, "owner": owner, **named, **numbers},
        constants | dict(tile.sizes),
        warps=tile.warps,
        stages=tile.stages,
        registers=tile.registers,
    )


def momentum(
    table: Tensor,
    like: Tensor,
    stack: Tensor,
    longest: int,
    share: tuple[float, float],
    nesterov: bool,
    aligned: bool,
) -> Launch:
    """What makes ``stack`` (matrices, ..., out, in).

    Args:
        table: (parts, 4), see :func:`momentum_kernel`.
        like: a momentum of any shape, which says the type of all and of gradients.
        stack: is written.
        longest: the most numbers that a part has.
        share: how much of a gradient enters a momentum, and how much of that an update.
        nesterov: whether an update looks ahead by the gradient.
        aligned: whether every address and place is a multiple of 16.
    """
    tile = tile_for(MOMENTUM_TILES, like)
    tensors = {"table": table, "grad": like, "velocity": like, "stack": stack}
    constants: dict[str, Constant] = {"NESTEROV": nesterov, "ALIGNED": aligned}
    return Launch(
        momentum_kernel,
        (triton.cdiv(longest, tile.sizes["BLOCK"]), len(table)),
        {**tensors, "share": share[0], "momentum": share[1]},
        constants | dict(tile.sizes),
        warps=tile.warps,
        stages=tile.stages,
        registers=tile.registers,
    )


def second_moment(
    update: Tensor, table: Tensor, second: Tensor, energy: Tensor, share: float
) -> Launch:
    """What makes ``energy`` (matrices, lines) of ``update`` (matrices, out, in), and moments.

    ``table`` (matrices, 1) has the addresses of moments, which are of the type of ``second``,
    (..., out, 1) or (..., 1, in); ``share`` of the new enters them.
    """
    by_row = second.size(-1) == 1
    matrix_stride, *strides = update.stride()
    line_stride, across_stride = strides if by_row else reversed(strides)
    lines, across = update.shape[1:] if by_row else reversed(update.shape[1:])
    tile = tile_for(ROW_TILES if across_stride == 1 else COLUMN_TILES, update)
    tensors = {"update": update, "table": table, "second": second, "energy": energy}
    numbers = {"lines": lines, "across": across, "matrix_stride": matrix_stride}
    numbers |= {"line_stride": line_stride, "across_stride": across_stride}
    return Launch(
        second_moment_kernel,
        (triton.cdiv(lines, tile.sizes["LINES"]), len(update)),
        {**tensors, **numbers, "share": share},
        tile.sizes,
        warps=tile.warps,
        stages=tile.stages,
        registers=tile.registers,
    )


def line_scale(table: Tensor, second: Tensor, energy: Tensor, scale: Tensor) -> Launch:
    """What makes ``scale`` of ``energy``, both (matrices, lines), and moments in ``table``."""
    matrices, lines = energy.shape
    tensors = {"table": table, "second": second, "energy": energy, "scale": scale}
    block: dict[str, Constant] = {"BLOCK": _SCALE_BLOCK}
    return Launch(line_scale_kernel, (matrices,), {**tensors, "lines": lines}, block)


def muon(
    table: Tensor,
    like: Tensor,
    update: Tensor,
    scale: LineScale | None,
    longest: int,
    rates: tuple[float, float],
    cautious: bool,
    aligned: bool,
) -> Launch:
    """What subtracts ``update`` (matrices, out, in) from weights.

    Args:
        table: (parts, 4), see :func:`muon_kernel`.
        like: a weight of any shape, which says the type of all.
        update: of any strides.
        scale: of its lines, if they are multiplied.
        longest: the most rows that a part has.
        rates: what updates are multiplied by, and the part of a weight that goes.
        cautious: whether decay is.
        aligned: whether addresses, rows and first rows are multiples of 16.
    """
    tile, (rate, decay) = tile_for(MUON_TILES, like), rates
    factor, line = (update, "none") if scale is None else scale
    columns = update.size(2)
    tensors = {"table": table, "weight": like, "update": update, "scale": factor}
    numbers: dict[str, float] = {"columns": columns, "lines": factor.size(1)}
    numbers |= zip(("matrix_stride", "row_stride", "column_stride"), update.stride(), strict=True)
    numbers |= {"rate": float(rate), "decay": float(decay), "kept": 1.0 - decay}
    constants: dict[str, Constant] = {"LINE": line, "CAUTIOUS": cautious, "ALIGNED": aligned}
    across = triton.cdiv(columns, tile.sizes["COLUMNS"])
    return Launch(
        muon_kernel,
        (triton.cdiv(longest, tile.sizes["ROWS"]) * across, len(table)),
        {**tensors, **numbers},
        constants | dict(tile.sizes),
        warps=tile.warps,
        stages=tile.stages,
        registers=tile.registers,
    )


def _line_scales(update: Tensor, seconds: Sequence[Tensor], beta2: float) -> LineScale:
    """Second moments follow updates (matrices, out, in); what each line is multiplied by."""
    second, matrices = seconds[0], len(update)
    lines = max(second.size(-1), second.size(-2))
    step = lines * second.element_size()
    stacked = matrices // len(seconds)
    places = tuple((m.data_ptr() + k * step,) for m in seconds for k in range(stacked))
    table = tables.table(places, update.device)
    shape = (matrices, lines)
    energy, factor = (
        torch.empty(shape, dtype=torch.float32, device=update.device) for _ in range(2)
    )
    second_moment(update, table, second, energy, 1.0 - beta2).run()
    line_scale(table, second, energy, factor).run()
    return LineScale(factor, "row" if second.size(-1) == 1 else "column")


def _places(
    tensors: Sequence[Tensor], rows: Sequence[int]
) -> Iterator[tuple[int, int, int, int, int]]:
    """Each (rows, in) of tensors (..., rows, in), which in turn are parts of matrices.

    Yields the tensor's number, the bytes before, the rows, the matrix in the flattened stack, and
    the first row in it.
    """
    parts = len(rows)
    for number, tensor in enumerate(tensors):
        stacked = tensor[..., 0, 0].numel()
        height, columns = tensor.shape[-2:]
        step = height * columns * tensor.element_size()
        first = sum(rows[: number % parts])
        for k in range(stacked):
            yield number, k * step, height, number // parts * stacked + k, first


def _momentum_entries(
    call: MuonMomentumCall, rows: Sequence[int]
) -> Iterator[tuple[int, int, int, int]]:
    columns = call.momenta[0].size(-1)
    for number, before, height, matrix, first in _places(call.momenta, rows):
        grad = tables.address(call.grads[number])
        target = (matrix * sum(rows) + first) * columns
        at = tables.address(call.momenta[number]) + before
        yield grad and grad + before, at, height * columns, target


def _weight_entries(call: MuonUpdateCall) -> Iterator[tuple[int, int, int, int]]:
    for number, before, height, matrix, first in _places(call.weights, rows_of_parts(call)):
        yield tables.address(call.weights[number]) + before, height, matrix, first


def _too_many(tensors: Sequence[Tensor]) -> str | None:
    parts = sum(tensor[..., 0, 0].numel() for tensor in tensors)
    return None if parts <= _MOST_PARTS else f"{parts:,} matrices; {_MOST_PARTS:,} fit a launch"
