"""A stored value is a directory: safetensors and other files under a header with their SHA-256.

``header.json`` names the files with their sizes and digests, and carries a digest of itself, so
that a flipped bit anywhere is reported with the name of the file.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from segpt.atomic import new_directory, standing
from segpt.config.base import canonical
from segpt.errors import ArtifactError, CheckpointError, SpecError
from segpt.values import Tokenizer

from .json_files import LARGEST, parse_json

FORMAT = 1
NAMES = ("weights.safetensors", "state.safetensors", "tokenizer.bin", "documents.bin")
TEMPLATE = "chat_template.jinja"  # beside a model of others
STEP = "step-[0-9]{8,}"  # names the directory of a checkpoint
WORDS = {"run": "a run", "checkpoint": "a checkpoint", "quantized": "a quantized model"}


def write_value(path: Path, kind: str, header: dict[str, Any], files: Mapping[str, bytes]) -> None:
    """Write a value of a kind, over one of the same kind that is there."""
    listed = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    header = header | {"kind": kind, "format": FORMAT, "files": listed}
    header["digest"] = hashlib.sha256(canonical(header)).hexdigest()
    with new_directory(path, replaces=lambda place: holds(place, kind)) as directory:
        for name, data in files.items():
            (directory / name).write_bytes(data)
        (directory / "header.json").write_text(json.dumps(header, indent=1), encoding="utf-8")


def read_value(
    path: Path, kind: str, skip: tuple[str, ...] = ()
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The verified header and files of a value of a kind, without those to ``skip``."""
    path = standing(Path(path))
    header = read_header(path, kind)
    with reading(path):
        listed = {n: str(f["sha256"]) for n, f in header["files"].items() if n not in skip}
    files: dict[str, bytes] = {}
    for name, digest in listed.items():
        try:
            data = (path / Path(name).name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"cannot read {path / name}: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise CheckpointError(
                f"{path / name} is damaged: its SHA-256 does not match; use an older checkpoint"
            )
        files[name] = data
    return header, files


def read_header(path: Path, kind: str) -> dict[str, Any]:
    """The verified header of a checkpoint or quantized model, without reading its arrays.

    Raises:
        CheckpointError: if it is missing, damaged or of another kind.
    """
    header = raw_header(path, kind)
    place = Path(path) / "header.json"
    if header.get("kind") != kind:
        raise CheckpointError(_another(Path(path), header.get("kind"), kind))
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{place} has format {header.get('format')!r}; known: {FORMAT}")
    digest = header.pop("digest", None)
    if digest != hashlib.sha256(canonical(header)).hexdigest():
        raise CheckpointError(f"{place} is damaged: its digest does not match")
    return header


def raw_header(path: Path, wanted: str = "") -> dict[str, Any]:
    """A header as it stands, whether or not its digest matches; ``wanted`` is for the message."""
    place = standing(Path(path)) / "header.json"
    try:
        if place.stat().st_size > LARGEST:
            raise CheckpointError(f"{place} is too large to be a header")
        header = parse_json(place.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(_absent(Path(path), wanted)) from None
    except OSError as error:
        raise CheckpointError(f"cannot read {place}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{place} is damaged: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{place} is damaged: expected a table")
    return header


def holds(path: Path, kind: str) -> bool:
    """Whether a directory holds a value of a kind, whole or damaged, and nothing else."""
    names = {entry.name for entry in path.iterdir()}
    if not names <= {"header.json", TEMPLATE, *NAMES}:
        return False
    if "header.json" not in names:  # removed by half, by a version that did not rename it first
        return kind == "checkpoint" and re.fullmatch(STEP, path.name) is not None
    try:
        return bool(raw_header(path).get("kind") == kind)
    except CheckpointError:
        return False


def has_header(path: Path) -> bool:
    """Whether a header is there, sound or not."""
    return (path / "header.json").is_file()


def is_whole(path: Path) -> bool:
    """Whether the files that a header names are there; what is in them is seen when it is read."""
    if not has_header(path):
        return False
    try:
        names = [str(name) for name in raw_header(path)["files"]]
    except (CheckpointError, KeyError, TypeError):
        return True  # reading it says what is wrong
    return all((path / Path(name).name).is_file() for name in names)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What a header says is taken at its word, and any way in which that fails is one error."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{Path(path) / 'header.json'} is incomplete: {error!r}") from error
    except SpecError as error:
        place = Path(path) / "header.json"
        raise CheckpointError(f"{place} is not as this segpt writes it: {error}") from error
    except ArtifactError as error:
        raise CheckpointError(f"{path} holds no quantized model: {error}") from error


def pack_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as safetensors, in the order of their names."""
    return save({name: np.array(arrays[name], order="C") for name in sorted(arrays)})


def unpack_arrays(path: Path, name: str, files: Mapping[str, bytes]) -> dict[str, NDArray[Any]]:
    """The arrays of one of the files that were read from ``path``."""
    try:
        return dict(load(files[name]))
    except (KeyError, SafetensorError) as error:
        raise CheckpointError(f"{path / name} cannot be read: {error}") from error


def tokenizer_of(header: Mapping[str, Any], files: Mapping[str, bytes]) -> Tokenizer:
    """The tokenizer of a value, from its header and its files."""
    about = header["tokenizer"]
    return Tokenizer(str(about["kind"]), int(about["vocab"]), files["tokenizer.bin"])


def _another(path: Path, kind: object, wanted: str) -> str:
    """Why a path is not what was wanted, and what makes that of it."""
    if not isinstance(kind, str) or kind not in WORDS or wanted not in WORDS:
        return f"{path} holds a {str(kind)[:40]!r}, expected a {wanted}"
    line = f"{path} is {WORDS[kind]} and not {WORDS[wanted]}"
    if wanted == "quantized":
        line += f"; make one with: {shlex.join(['segpt', 'quantize', str(path)])}"
    return line


def _absent(path: Path, wanted: str) -> str:
    """Why a path has no header."""
    if path.is_file():
        return f"{path} is a file and not {WORDS.get(wanted, 'a directory of segpt')}"
    if wanted == "quantized" and any(is_whole(place) for place in path.glob("step-*")):
        return _another(path, "run", wanted)
    return f"{path} does not exist or holds no header.json"
