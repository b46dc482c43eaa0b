"""What weights the format can hold: refused on writing and on reading alike."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpt.errors import ArtifactError
from segpt.values import (
    FARTHEST_EXPONENT,
    Float16Weight,
    QuantizedWeight,
    TrellisWeight,
    UniformWeight,
)

from . import tables
from .header import StoredWeight

# The largest step is below 2^119, so that no weight overflows; the smallest is a normal number.
_LARGEST, _SMALLEST = 119, -125


def check(entry: StoredWeight, coded: QuantizedWeight) -> None:
    """Raise :class:`ArtifactError` unless the file can hold ``coded`` as ``entry`` says."""
    name, shape = entry.weight.name, entry.weight.shape
    match coded:
        case UniformWeight(codes=codes, scales=values):
            if codes.shape != shape or values.shape != (shape[0], entry.groups):
                raise ArtifactError(
                    f"{name}: codes {codes.shape} and scales {values.shape} for a weight {shape}"
                )
            _check_codes(name, codes, entry.limit, f"codes of {entry.bits} bits")
            _check_halves(name, values)
        case TrellisWeight():
            _check_stepped(entry, coded)
        case Float16Weight(values=values):
            if values.shape != shape:
                raise ArtifactError(f"{name}: {values.shape} values for a weight {shape}")
            _check_halves(name, values)


def _check_stepped(entry: StoredWeight, coded: TrellisWeight) -> None:
    name, (height, width) = entry.weight.name, entry.shape
    if coded.stored is not None:
        check_bitmap(name, coded.stored)
        height = int(coded.stored.sum())
    expected: dict[str, tuple[Any, tuple[int, ...]]] = {
        "codes": (np.int8, (height, width)),
        "rows": (np.int8, (height,)),
        "columns": (np.int8, (width,)),
    }
    expected |= {"centre": (np.float16, (width,))} if entry.centred else {}
    if entry.partial:
        expected |= {"stored": (np.bool_, entry.shape[:1]), "shared": (np.float16, (width,))}
    arrays = coded.arrays()
    for part in sorted(arrays.keys() | expected.keys()):
        actual = (arrays[part].dtype, arrays[part].shape) if part in arrays else None
        if actual != expected.get(part):
            raise ArtifactError(f"{name}: {part} are {actual}; {expected.get(part)} belong there")
    _check_codes(name, coded.codes, tables.FARTHEST, "codes")
    for half in (coded.centre, coded.shared):
        if half is not None:
            _check_halves(name, half)
    for exponents in (coded.rows, coded.columns):
        if np.abs(exponents.astype(np.int16)).max() > FARTHEST_EXPONENT:
            raise ArtifactError(f"{name}: an exponent is beyond {FARTHEST_EXPONENT}")
    _check_steps(name, coded)


def _check_steps(name: str, coded: TrellisWeight) -> None:
    """All steps, and all weights without the centre, are 0 or normal float32.

    Exponents decide, so that no rounding does.
    """
    step = coded.step
    if not math.isfinite(step) or step <= 0:
        raise ArtifactError(f"{name}: a step is positive and finite; this one is {step}")
    exponent = math.frexp(step)[1]
    least = (int(coded.rows.min()) + int(coded.columns.min())) // 8
    most = -(-(int(coded.rows.max()) + int(coded.columns.max())) // 8)
    if min(exponent, exponent + least) < _SMALLEST or max(exponent, exponent + most) > _LARGEST:
        raise ArtifactError(f"{name}: with a step of {step} some are too small or too large")
    if float(np.float32(step)) != step:
        raise ArtifactError(f"{name}: a step is a float32; {step} is none")


def check_bitmap(name: str, stored: NDArray[np.bool_]) -> None:
    """Raise :class:`ArtifactError` unless ``stored`` (rows,) is true of some rows, not of all."""
    if stored.dtype != np.bool_ or not stored.any() or stored.all():
        raise ArtifactError(f"{name}: a bitmap of rows is bool, and some are stored but not all")


def _check_codes(name: str, codes: NDArray[np.int8], limit: int, what: str) -> None:
    if codes.dtype != np.int8 or max(-int(codes.min()), int(codes.max())) > limit:
        raise ArtifactError(
            f"{name}: {what} are int8 from -{limit} to {limit}; "
            f"these are {codes.dtype} from {codes.min()} to {codes.max()}"
        )


def _check_halves(name: str, values: NDArray[np.float16]) -> None:
    if values.dtype != np.float16 or not np.isfinite(values).all():
        raise ArtifactError(f"{name}: scales and values are finite float16; these are not")
