"""Quantized models on disk, and coded weights as arrays and what a header says of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpt import trellis
from segpt.artifact.container import validate
from segpt.config.base import decode, encode
from segpt.config.model import ModelSpec
from segpt.config.quant_report import QuantReport
from segpt.values import (
    STEPPED_ARRAYS,
    Float16Weight,
    Origin,
    Quantized,
    QuantizedWeight,
    TrellisWeight,
    UniformWeight,
)

from .value_directory import (
    pack_arrays,
    read_header,
    read_value,
    reading,
    tokenizer_of,
    unpack_arrays,
    write_value,
)

_DTYPES = {"codes": "i1", "rows": "i1", "columns": "i1", "scales": "f2", "values": "f2"} | {
    "centre": "f2",
    "shared": "f2",
    "stored": "?",
}


def save_quantized(path: Path, quantized: Quantized) -> None:
    """Write a quantized model as a directory."""
    arrays, coding = coded_arrays(quantized.weights)
    documents = quantized.documents
    files = {
        "weights.safetensors": pack_arrays(arrays),
        "tokenizer.bin": quantized.tokenizer.payload,
        "documents.bin": b"" if documents is None else documents.astype("<u8").tobytes(),
    }
    header = {
        "spec": encode(quantized.spec),
        "tokenizer": {"kind": quantized.tokenizer.kind, "vocab": quantized.tokenizer.vocab},
        **coding,
        "origin": dict(quantized.origin),
        "report": {} if quantized.report is None else encode(quantized.report),
        "listed": documents is not None,
    }
    write_value(path, "quantized", header, files)


def read_quantized(path: Path) -> Quantized:
    """Read and verify a quantized model.

    Raises:
        CheckpointError: naming the file that is missing or damaged.
    """
    header, files = read_value(path, "quantized")
    arrays = unpack_arrays(path, "weights.safetensors", files)
    with reading(path):
        documents = np.frombuffer(files["documents.bin"], "<u8").astype(np.uint64)
        quantized = Quantized(
            spec=decode(ModelSpec, header["spec"], "$.spec"),
            weights=coded_of(header, arrays),
            tokenizer=tokenizer_of(header, files),
            origin=dict(header["origin"]),
            report=_report(header),
            documents=documents if header["listed"] else None,
        )
        validate(quantized)
    return quantized


class QuantizedHeader(NamedTuple):
    """What a quantized model says of itself beside its arrays."""

    origin: Origin
    report: QuantReport | None


def read_quantized_header(path: Path) -> QuantizedHeader:
    """The verified header of a quantized model, without reading its arrays.

    Raises:
        CheckpointError: if it is missing, damaged, or of something else.
    """
    header = read_header(path, "quantized")
    with reading(path):
        return QuantizedHeader(dict(header["origin"]), _report(header))


def _report(header: Mapping[str, Any]) -> QuantReport | None:
    table = header["report"]
    return decode(QuantReport, table, "$.report") if table else None


def coded_arrays(
    weights: Mapping[str, QuantizedWeight],
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays of coded weights, and what a header says to put them together again."""
    arrays: dict[str, NDArray[Any]] = {}
    grids: dict[str, int] = {}
    stepped: dict[str, tuple[int, str]] = {}
    for name, coded in weights.items():
        match coded:
            case UniformWeight():
                grids[name] = coded.bits
                arrays[f"codes|{name}"], arrays[f"scales|{name}"] = coded.codes, coded.scales
            case TrellisWeight():
                stepped[name] = coded.states, coded.step.hex()
                arrays |= {f"{part}|{name}": array for part, array in coded.arrays().items()}
            case Float16Weight():
                arrays[f"half|{name}"] = coded.values
    return arrays, {"bits": grids, "stepped": stepped, "order": list(weights)}


def coded_of(
    header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> dict[str, QuantizedWeight]:
    """The coded weights that :func:`coded_arrays` took apart."""
    coded: dict[str, QuantizedWeight] = {}
    for name in header["order"]:
        if name in header["bits"]:
            bits = int(header["bits"][name])
            coded[name] = UniformWeight(bits, arrays[f"codes|{name}"], arrays[f"scales|{name}"])
        elif name in header.get("stepped", {}):
            states, step = header["stepped"][name]
            keys = {part: f"{part}|{name}" for part in STEPPED_ARRAYS}
            parts = {part: arrays[key] for part, key in keys.items() if key in arrays}
            coded[name] = TrellisWeight(int(states), step=float.fromhex(step), **parts)
        else:
            coded[name] = Float16Weight(arrays[f"half|{name}"])
    return coded


def check_coded(name: str, coded: QuantizedWeight) -> None:
    """Whether arrays have the types and the shapes that go together, whatever weight it is."""
    arrays = coded.arrays() if isinstance(coded, TrellisWeight) else vars(coded)
    for part, array in arrays.items():
        if part in _DTYPES and array.dtype != np.dtype(_DTYPES[part]):
            raise ValueError(f"the {part} of {name!r} are {array.dtype}")
    match coded:
        case UniformWeight(codes=codes, scales=scales):
            sound = codes.ndim == scales.ndim == 2 and len(codes) == len(scales)
            sound = sound and 0 < scales.shape[1] <= max(1, codes.shape[1])
        case TrellisWeight(codes=codes, rows=rows, columns=columns):
            sound = codes.ndim == 2 and (rows.shape, columns.shape) == (
                codes.shape[:1],
                codes.shape[1:],
            )
            sound = sound and all(
                part is None or part.shape == columns.shape for part in (coded.centre, coded.shared)
            )
            if coded.stored is not None:
                sound = sound and coded.stored.ndim == 1 and coded.stored.sum() == len(codes)
            sound = sound and coded.states in trellis.STATES
        case Float16Weight():
            sound = True
    if not sound:
        raise ValueError(f"the parts of {name!r} do not go together")
