"""Checkpoints on disk: written whole or not at all, and verified when they are read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segpt.config.base import decode, encode
from segpt.config.model import ModelSpec
from segpt.config.run_about import RunAbout
from segpt.errors import CheckpointError
from segpt.values import Checkpoint, Origin, Tokenizer

from .run_directory import kind_of
from .value_directory import (
    TEMPLATE,
    pack_arrays,
    raw_header,
    read_header,
    read_value,
    reading,
    tokenizer_of,
    unpack_arrays,
    write_value,
)


def save_checkpoint(path: Path, checkpoint: Checkpoint, template: bytes | None = None) -> None:
    """Write a checkpoint directory; an existing one is replaced only when all is on disk.

    A ``template`` for chats is kept beside the model, and never applied.
    """
    listed = checkpoint.documents
    files = {
        "weights.safetensors": pack_arrays(checkpoint.weights),
        "tokenizer.bin": checkpoint.tokenizer.payload,
        "documents.bin": b"" if listed is None else listed.astype("<u8").tobytes(),
    }
    if template is not None:
        files[TEMPLATE] = template
    if checkpoint.state is not None:
        files["state.safetensors"] = pack_arrays(checkpoint.state)
    header = {
        "spec": encode(checkpoint.spec),
        "tokenizer": {"kind": checkpoint.tokenizer.kind, "vocab": checkpoint.tokenizer.vocab},
        "step": checkpoint.step,
        "progress": checkpoint.progress,
        "origin": dict(checkpoint.origin),
        "about": encode(checkpoint.about),
        "fingerprint": checkpoint.fingerprint,
    }
    if listed is None:  # files without the word have a list
        header["listed"] = False
    write_value(path, "checkpoint", header, files)


def read_checkpoint(path: Path, *, state: bool = False) -> Checkpoint:
    """Read and verify a checkpoint directory; with ``state`` also what resuming needs.

    Raises:
        CheckpointError: naming the file that is missing or damaged.
    """
    header, files = read_value(path, "checkpoint", skip=() if state else ("state.safetensors",))
    if state and "state.safetensors" not in files:
        raise CheckpointError(f"{path} holds no optimizer state, so training cannot resume from it")
    with reading(path):
        return Checkpoint(
            spec=decode(ModelSpec, header["spec"], "$.spec"),
            weights=unpack_arrays(path, "weights.safetensors", files),
            tokenizer=tokenizer_of(header, files),
            step=int(header["step"]),
            progress=float(header["progress"]),
            documents=(
                np.frombuffer(files["documents.bin"], "<u8").astype(np.uint64)
                if header.get("listed", True)
                else None
            ),
            origin=dict(header["origin"]),
            state=unpack_arrays(path, "state.safetensors", files) if state else None,
            about=decode(RunAbout, header["about"], "$.about"),
        )


class CheckpointHeader(NamedTuple):
    """What a checkpoint says of itself beside its arrays; ``stored`` is the table of its spec."""

    stored: Mapping[str, Any]
    step: int
    origin: Origin
    about: RunAbout
    fingerprint: str

    @property
    def spec(self) -> ModelSpec:
        """The model.

        Raises:
            SpecError: if this segpt knows no such model.
        """
        return decode(ModelSpec, self.stored, "$.spec")


def read_checkpoint_header(path: Path) -> CheckpointHeader:
    """The verified header of a checkpoint, without reading its arrays.

    Raises:
        CheckpointError: if it is missing, damaged, or of something else.
    """
    header = read_header(path, "checkpoint")
    with reading(path):
        return CheckpointHeader(
            stored=header["spec"],
            step=int(header["step"]),
            origin=dict(header["origin"]),
            about=decode(RunAbout, header["about"], "$.about"),
            fingerprint=str(header["fingerprint"]),
        )


def checkpoint_step(path: Path) -> int:
    """The step of a checkpoint, as its header says before anything else is read.

    Raises:
        CheckpointError: if the header is missing or damaged.
    """
    with reading(path):
        return int(raw_header(path)["step"])


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a checkpoint or quantized model, without reading its arrays.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    header, files = read_value(
        path, kind_of(path), skip=("weights.safetensors", "state.safetensors")
    )
    with reading(path):
        return tokenizer_of(header, files)
